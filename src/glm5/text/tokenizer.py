"""Byte-level BPE: any bytes become token ids and come back exactly.

The text is cut into words, numbers (one digit each) and spaces; the bytes of each piece are merged pair by pair in the
order learnt from data (Sennrich et al. 2016, on bytes as in Radford et al. 2019). The special tokens come last in the
vocabulary, as in GLM's own tokenizer, and their names inside ordinary text stay ordinary text unless the caller says
otherwise: a web page that mentions `<|user|>` must not be able to open a turn.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders as token_decoders
from tokenizers import models, pre_tokenizers, trainers

from glm5.errors import GLM5Error, UsageError

# Contractions, words with one leading mark or space, single digits, runs of marks, line ends, other spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END_OF_TEXT = "<|endoftext|>"
_STOP_NAMES = (_END_OF_TEXT, "<|user|>", "<|observation|>")
_KNOWN_END_NAMES = (_END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "<|end▁of▁sentence|>", "</s>")
_INVALID_BYTES = re.compile("([\udc80-\udcff]+)")  # how Python's `surrogateescape` spells bytes that are not UTF-8
_PROBE = "Byte-exact 123:\n\t«é» 漢字 🙂  end"


class Tokenizer:
    """A byte-level BPE tokenizer, home-trained or loaded from any byte-level Hugging Face `tokenizer.json`.

    A file with a Unicode normaliser (Qwen's NFC) gives back the normalised text; all others give back every byte.

    Attributes:
        vocab_size: the highest token id plus one.
        eos_id: ends a document (`<|endoftext|>` for GLM).
        pad_id: fills rows up; the same as `eos_id` where the tokenizer names no other.
        special_ids: the id of each special token, by its text, in the order of the vocabulary.
        stop_ids: where a generated turn ends: end of text, or the next speaker (GLM has no end-of-turn token).
    """

    def __init__(self, spec: dict[str, Any], eos_token: str, pad_token: str | None = None) -> None:
        """Build from the parsed `tokenizer.json`. Prefer `train` and `load`.

        Raises:
            GLM5Error: the file is not byte-level BPE, or `eos_token` is not in it.
        """
        known = dict(special_tokens())
        self._spec = spec
        self._with_special = _backend(spec, known, as_text=False)
        self._ordinary = _backend(spec, known, as_text=True)
        added = {token["content"]: token for token in spec["added_tokens"]}
        special = [token for token in added.values() if token["special"] or token["content"] in known]
        self.special_ids: dict[str, int] = {t["content"]: t["id"] for t in sorted(special, key=lambda t: t["id"])}
        if eos_token not in self.special_ids:
            raise GLM5Error(f"the tokenizer has no special token {eos_token!r} to end documents with")
        self.eos_id: int = self.special_ids[eos_token]
        self.pad_id: int = self.special_ids.get(pad_token or eos_token, self.eos_id)
        stops = {self.special_ids[name] for name in _STOP_NAMES if name in self.special_ids}
        self.stop_ids: tuple[int, ...] = tuple(sorted(stops | {self.eos_id}))

        vocabulary = self._with_special.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        for token, token_id in vocabulary.items():
            self._bytes[token_id] = token.encode() if token in added else _token_to_bytes(token)
        self._byte_ids = [vocabulary.get(_BYTE_TO_CHAR[byte], -1) for byte in range(256)]
        if min(self._byte_ids) < 0 or self.decode(self.encode(_PROBE)) != _PROBE:
            raise GLM5Error(
                "this tokenizer.json is not byte-level BPE without prefix space; such files are not supported"
            )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn a vocabulary of exactly `vocab_size` ids from `texts`; the same texts give the same tokenizer.

        Raises:
            UsageError: `vocab_size` has no room for 256 bytes and the special tokens, or is more than the texts give.
        """
        names = special_tokens()
        smallest = 256 + len(names)
        if vocab_size < smallest:
            raise UsageError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(names)} special tokens need {smallest}"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = token_decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(names),
            min_frequency=2,
            initial_alphabet=sorted(_BYTE_TO_CHAR),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        learnt = backend.get_vocab_size() + len(names)
        if learnt < vocab_size:
            raise UsageError(
                f"the texts give a vocabulary of {learnt} at most, {vocab_size} was asked for: "
                "train on more text or ask for a smaller vocab_size"
            )
        for name, content in names:
            backend.add_tokens([tokenizers.AddedToken(name, special=not content, normalized=False)])
        return cls(json.loads(backend.to_str()), eos_token=_END_OF_TEXT)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read a `tokenizer.json`, or the folder that holds one (with its `tokenizer_config.json`, if there is one).

        Raises:
            GLM5Error: there is no such file, it is not byte-level BPE, or nothing says which token ends a text.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        config_file = file.with_name("tokenizer_config.json")
        try:
            spec = json.loads(file.read_text(encoding="utf-8"))
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
        except (OSError, ValueError) as error:
            raise GLM5Error(f"cannot read a tokenizer from {path}: {error}") from error
        if not isinstance(spec, dict) or not {"model", "added_tokens"} <= spec.keys():
            raise GLM5Error(f"{file} is not a Hugging Face tokenizer.json: it has no `model` and `added_tokens`")
        present = {token["content"] for token in spec["added_tokens"]}
        fallback = next((name for name in _KNOWN_END_NAMES if name in present), None)
        eos_token = _token_text(config.get("eos_token")) or fallback
        if eos_token is None:
            raise GLM5Error(
                f"{file} does not say which token ends a text: put `eos_token` into {config_file.name} beside it"
            )
        return cls(spec, eos_token, _token_text(config.get("pad_token")))

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads as well."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {token_id: name for name, token_id in self.special_ids.items()}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names[self.eos_id],
            "pad_token": names[self.pad_id],
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer.json").write_text(json.dumps(self._spec, ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def encode(self, text: str | bytes, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. Bytes that are not UTF-8 become one token each.

        Args:
            allow_special: read the names of special tokens as those tokens (for text our own template wrote).

        Raises:
            UsageError: `text` is a str with half of a surrogate pair, which stands for no bytes.
        """
        backend = self._with_special if allow_special else self._ordinary
        ids: list[int] = []
        for piece in _INVALID_BYTES.split(_with_escapes(text)):
            if _INVALID_BYTES.match(piece):
                ids += [self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape")]
            elif piece:
                ids += backend.encode(piece, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        try:
            encodings = self._ordinary.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # a text with escaped bytes among them: the careful way
            return [self.encode(text) for text in texts]
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens by their names; what is no UTF-8 or no token shows as U+FFFD.

        A network may have more rows than its tokenizer has tokens, and an untrained one samples them too.
        """
        known = (self.token_bytes(i) if self.is_token(i) else "\ufffd".encode() for i in ids)
        return b"".join(known).decode("utf-8", "replace")

    def is_token(self, token_id: int) -> bool:
        """Whether an id stands for anything here."""
        return 0 <= token_id < self.vocab_size and self._bytes[token_id] is not None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`. Raises UsageError for an id that is not in the vocabulary."""
        return b"".join(self.token_bytes(token_id) for token_id in ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for. Raises UsageError for an id that is not in the vocabulary."""
        found = self._bytes[token_id] if self.is_token(token_id) else None
        if found is None:
            raise UsageError(f"token id {token_id} is not in this vocabulary of {self.vocab_size}")
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's contents: equal exactly when two tokenizers encode alike."""
        return hashlib.sha256(json.dumps(self._spec, sort_keys=True).encode()).hexdigest()


def special_tokens() -> list[tuple[str, bool]]:
    """GLM's special tokens in vocabulary order, each with whether it is content.

    Content marks (`<think>`, `<tool_call>`, …) are written by the model as part of its answer, so decoders that skip
    special tokens keep them; the others (roles, masks, end of text) are skipped.
    """
    lines = resources.files("glm5.text").joinpath("special_tokens.txt").read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], line.endswith(" content")) for line in lines if line]


def _backend(spec: dict[str, Any], known: dict[str, bool], as_text: bool) -> tokenizers.Tokenizer:
    """The compiled tokenizer; `as_text` makes it read the names of special tokens as ordinary text."""
    added = [{**token, "special": token["special"] or token["content"] in known} for token in spec["added_tokens"]]
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": added}))
    except Exception as error:  # the library raises bare Exception
        raise GLM5Error(f"not a tokenizer.json that the tokenizers library understands: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = as_text
    return backend


def _with_escapes(text: str | bytes) -> str:
    """`text` as a str in which each byte that is not UTF-8 is a lone low surrogate."""
    try:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has half of a surrogate pair at character {error.start}: it is not valid Unicode"
        ) from error
    return raw.decode("utf-8", "surrogateescape")


def _token_text(value: Any) -> str | None:
    """A token in a `tokenizer_config.json`: its text, or an object with a `content` field."""
    return value.get("content") if isinstance(value, dict) else value


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).

    Printable Latin-1 characters stand for themselves; the other bytes take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_BYTE_TO_CHAR = _byte_characters()
_CHAR_TO_BYTE = {char: byte for byte, char in enumerate(_BYTE_TO_CHAR)}


def _token_to_bytes(token: str) -> bytes:
    """The bytes of a vocabulary entry; entries outside the byte alphabet stand for their own text."""
    if all(char in _CHAR_TO_BYTE for char in token):
        return bytes(_CHAR_TO_BYTE[char] for char in token)
    return token.encode()
