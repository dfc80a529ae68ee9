"""The tokenizer against its own rules and against `transformers` reading the same files."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glm5.errors import GLM5Error, UsageError
from glm5.text.tokenizer import Tokenizer, special_tokens

TEXTS = [
    Path(__file__).read_text(encoding="utf-8"),
    "Größe, 漢字 and 🙂 in 2024.\r\n" * 20,
    "def f(x):\n    return x\n" * 20,
]
NAMES = [name for name, _ in special_tokens()]
VOCAB_SIZE = 420


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, VOCAB_SIZE)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as others make them: special tokens first, GPT-2's word pattern, saved by transformers."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("<think>", special=False)])
    folder = tmp_path_factory.mktemp("foreign")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.lists(st.sampled_from(["é", "\xff", " a", "🙂"])).map(
            lambda parts: b"".join(p.encode("latin-1" if p == "\xff" else "utf-8") for p in parts)
        ),
    )
)
def test_any_bytes_come_back(tokenizer: Tokenizer, foreign: Path, raw: bytes) -> None:
    for each in (tokenizer, _loaded(foreign)):
        assert each.decode_bytes(each.encode(raw)) == raw


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=4))).map("".join))
def test_text_cannot_forge_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=8))).map("".join))
def test_transformers_agrees(peer: PreTrainedTokenizerFast, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, allow_special=True)
    assert peer.encode(text, add_special_tokens=False) == ids
    assert peer.decode(ids) == tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_transformers_reads_the_same_special_tokens(peer: PreTrainedTokenizerFast, tokenizer: Tokenizer) -> None:
    assert len(peer) == tokenizer.vocab_size
    assert (peer.eos_token_id, peer.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    ids = tokenizer.encode("<|user|>hi<|assistant|><think>so</think>", allow_special=True)
    assert peer.decode(ids, skip_special_tokens=True) == "hi<think>so</think>"  # content marks stay, roles go


def test_special_tokens_come_last_in_glm_order(tokenizer: Tokenizer) -> None:
    first = VOCAB_SIZE - len(NAMES)
    assert tokenizer.special_ids == {name: first + i for i, name in enumerate(NAMES)}
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert NAMES[0] == "<|endoftext|>"
    assert tokenizer.eos_id == first
    ids = tokenizer.special_ids
    assert set(tokenizer.stop_ids) == {ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]}


def test_numbers_are_single_digits(tokenizer: Tokenizer) -> None:
    many = Tokenizer.train(["12345 " * 500, *TEXTS], 400)
    assert len(many.encode("12345")) == 5
    assert len(tokenizer.encode("def")) == 1  # whereas frequent words did merge


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(TEXTS), VOCAB_SIZE)
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(TEXTS, VOCAB_SIZE - 1).fingerprint != tokenizer.fingerprint


def test_saved_equals_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.special_ids == tokenizer.special_ids
        assert (loaded.eos_id, loaded.pad_id, loaded.stop_ids) == (
            tokenizer.eos_id,
            tokenizer.pad_id,
            tokenizer.stop_ids,
        )


def test_a_foreign_tokenizer_keeps_its_own_names(foreign: Path) -> None:
    loaded, peer = _loaded(foreign), AutoTokenizer.from_pretrained(foreign)
    text = "<|im_start|>user\nhow? <think><|im_end|>"
    assert loaded.encode(text, allow_special=True) == peer.encode(text, add_special_tokens=False)
    assert loaded.eos_id == peer.eos_token_id
    assert set(loaded.special_ids) == {"<|im_start|>", "<|im_end|>", "<think>"}
    assert not set(loaded.encode(text)) & set(loaded.special_ids.values())


def test_half_a_surrogate_pair_is_refused_and_escaped_bytes_are_not(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="character 1"):
        tokenizer.encode("a\ud83d")
    escaped = b"a\xff".decode("utf-8", "surrogateescape")
    assert tokenizer.decode_bytes(tokenizer.encode(escaped)) == b"a\xff"
    assert tokenizer.encode_batch(["b", escaped]) == [tokenizer.encode("b"), tokenizer.encode(escaped)]


def test_too_small_and_too_large_vocabularies_are_refused() -> None:
    smallest = 256 + len(NAMES)
    assert Tokenizer.train([], smallest).vocab_size == smallest
    with pytest.raises(UsageError, match=f"need {smallest}"):
        Tokenizer.train(TEXTS, smallest - 1)
    with pytest.raises(UsageError, match="train on more text"):
        Tokenizer.train(["little text"], 1000)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_unknown_ids_are_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(UsageError, match=str(token_id)):
        tokenizer.decode_bytes([token_id])
    assert not tokenizer.is_token(token_id)
    assert tokenizer.decode([token_id]) == "\ufffd"  # text is for reading: it says that something was there


def test_files_that_are_no_byte_level_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GLM5Error, match="cannot read"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("[]")
    with pytest.raises(GLM5Error, match=r"not a Hugging Face tokenizer\.json"):
        Tokenizer.load(file)
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(file))
    with pytest.raises(GLM5Error, match="eos_token"):
        Tokenizer.load(file)
    words.add_special_tokens(["</s>"])
    words.save(str(file))
    with pytest.raises(GLM5Error, match="not byte-level"):
        Tokenizer.load(file)


_cache: dict[Path, Tokenizer] = {}


def _loaded(folder: Path) -> Tokenizer:
    if folder not in _cache:
        _cache[folder] = Tokenizer.load(folder)
    return _cache[folder]
