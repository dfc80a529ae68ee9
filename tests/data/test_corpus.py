"""A corpus on disk: what is in it, what is kept out of it, and that it is whole or absent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.data.corpus import build_corpus
from glm5.data.documents import Document, is_held_out, sampling_rank
from glm5.data.manifest import CorpusManifest, held_out_documents, load_manifest
from glm5.data.sampling import byte_length, sample_documents, sample_texts
from glm5.data.shards import ShardWriter, TokenShards
from glm5.errors import GLM5Error, UsageError
from glm5.text.tokenizer import Tokenizer
from tests.data.small_files import make_files

Build = Callable[..., CorpusManifest]


def training_texts(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Every training document, decoded from the shards."""
    texts = []
    for entry in load_manifest(folder).sources:
        shards = TokenShards(folder / entry.folder, tokenizer.vocab_size)
        for number in range(len(shards)):
            ids = shards.document(number).tolist()
            assert ids.pop() == tokenizer.eos_id
            texts.append(tokenizer.decode(ids))
    return texts


def test_every_text_is_on_one_side_and_the_tokenizer_sees_one_side_only(
    build: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = f"path:{make_files(tmp_path / 'docs', 200, 30, seed=1)}"
    build([source], held_out_fraction=0.2, seed=7)
    originals = {path.read_text() for path in (tmp_path / "docs").iterdir()}
    held_out = {document.text for document in held_out_documents(tmp_path / "corpus")}
    training = training_texts(tmp_path / "corpus", tokenizer)
    assert held_out | set(training) == originals
    assert not held_out & set(training)
    assert 15 < len(held_out) < 65
    assert set(sample_texts([source], 10**6, seed=7, held_out_fraction=0.2)) == set(training)


def test_copies_are_taken_once_even_from_another_source(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = (make_files(tmp_path / name, 20, 30, seed=1) for name in ("a", "b"))
    (second / "own.txt").write_text("A text of its own.\n")
    (second / "000.txt").write_text((first / "000.txt").read_text().replace(" ", "\r\n"))  # differs in space only
    manifest = build([f"path:{first}", f"path:{second}"])
    assert [entry.documents for entry in manifest.sources] == [20, 1]
    assert manifest.sources[1].dropped == {"duplicate": 20}
    texts = training_texts(tmp_path / "corpus", tokenizer)
    assert len(texts) == len(set(texts)) == 21


def test_the_manifest_counts_what_is_there(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = make_files(tmp_path / "docs", 30, 20, seed=3)
    (folder / "empty.txt").write_text(" \n")
    (folder / "binary.txt").write_bytes(b"text\0more")
    seen = []
    manifest = build([f"path:{folder}"], progress=lambda source, done: seen.append((source, done)))
    texts = training_texts(tmp_path / "corpus", tokenizer)
    (entry,) = manifest.sources
    assert load_manifest(tmp_path / "corpus") == manifest
    assert entry.documents == len(texts) == 30
    assert entry.bytes == sum(map(byte_length, texts))
    assert entry.tokens == entry.bytes + 30  # this tokenizer has one token a byte, and one end for each document
    assert manifest.bytes_per_token == pytest.approx(entry.bytes / entry.tokens)
    assert entry.dropped == {"empty": 1, "binary": 1}
    assert entry.licenses == {"user's own": 30}
    assert manifest.tokenizer == tokenizer.fingerprint
    assert seen == [(f"path:{folder}", entry.bytes)]
    lines = [json.loads(line) for line in (tmp_path / "corpus" / entry.folder / "documents.jsonl").open()]
    assert [(folder / line["path"]).read_text() for line in lines] == texts
    assert [line["tokens"] for line in lines] == [byte_length(text) + 1 for text in texts]


def test_the_same_call_writes_the_same_bytes(build: Build, tmp_path: Path) -> None:
    source = f"path:{make_files(tmp_path / 'docs', 50, 20, seed=3)}"
    contents = []
    for name in ("one", "two"):
        build([source], name=name, held_out_fraction=0.1, max_bytes=3000)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_an_interrupted_build_leaves_nothing_that_looks_whole(build: Build, tmp_path: Path) -> None:
    sources = [f"path:{make_files(tmp_path / name, 5, 20, seed)}" for seed, name in enumerate("ab")]

    def interrupt(source: str, done: int) -> None:
        if source == sources[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(sources, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "corpus.partial" / "rest").mkdir(parents=True)  # what a killed process leaves
    build(sources)
    assert not (tmp_path / "corpus.partial").exists()


def test_wrong_requests_say_what_is_wrong(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = f"path:{make_files(tmp_path / 'docs', 5, 20, seed=3)}"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "nothing.txt").write_text("\n")
    with pytest.raises(UsageError, match="no sources"):
        build([])
    with pytest.raises(UsageError, match="below 1"):
        build([source], held_out_fraction=1.0)
    with pytest.raises(UsageError, match="sources that are not read: sympy"):
        build([source], max_bytes={"sympy": 10})
    with pytest.raises(GLM5Error, match=r"no document to train on within 10 bytes \(dropped: none\)"):
        build([source], max_bytes=10)
    with pytest.raises(GLM5Error, match=r"no document to train on \(dropped: 1 empty\)"):
        build([f"path:{empty}"])
    with pytest.raises(GLM5Error, match="holds out no document"):
        build([source], held_out_fraction=1e-9)
    with pytest.raises(GLM5Error, match="no document to train on"):
        list(sample_texts([f"path:{empty}"], 1000, seed=0, held_out_fraction=0.0))
    with pytest.raises(UsageError, match="no corpus"):
        load_manifest(tmp_path)
    build([source])
    with pytest.raises(UsageError, match="exists already"):
        build([source])
    with pytest.raises(GLM5Error, match="no held-out documents"):
        held_out_documents(tmp_path / "corpus")


def test_a_limit_for_one_source_leaves_the_others_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sources = [f"path:{make_files(tmp_path / name, 30, 20, seed)}" for seed, name in enumerate("ab")]
    manifest = build_corpus(sources, tokenizer, tmp_path / "c", held_out_fraction=0, max_bytes={sources[0]: 1000})
    assert 500 < manifest.sources[0].bytes <= 1000
    assert manifest.sources[1].documents == 30


@given(st.lists(st.text(min_size=1), unique=True), st.integers(0, 200), st.randoms())
def test_a_sample_is_a_beginning_of_the_random_order(texts: list[str], max_bytes: int, random) -> None:
    documents = [
        Document(text, "s", "l", str(number))
        for number, text in enumerate({sampling_rank(t, 0): t for t in texts}.values())
    ]
    expected, total = [], 0
    for document in sorted(documents, key=lambda d: sampling_rank(d.text, 0)):
        total += byte_length(document.text)
        if total > max_bytes:
            break
        expected.append(document)
    random.shuffle(documents)
    assert sample_documents(documents, max_bytes, seed=0) == expected


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_held_out_at_a_small_fraction_is_held_out_at_a_larger_one(text: str, a: float, b: float, seed: int) -> None:
    assert is_held_out(text, min(a, b), seed) <= is_held_out(text, max(a, b), seed)
    assert not is_held_out(text, 0.0, seed)
    assert is_held_out(text, 1.0, seed)


def test_the_split_takes_its_fraction_and_depends_on_the_seed() -> None:
    sides = {seed: [is_held_out(str(i), 0.1, seed) for i in range(5000)] for seed in (0, 1)}
    assert sides[0] != sides[1]
    assert all(400 < sum(side) < 600 for side in sides.values())


def test_the_tokenizer_sample_is_even_over_sources(tmp_path: Path) -> None:
    folders = [make_files(tmp_path / name, 60, 20, seed) for seed, name in enumerate("ab")]
    texts = list(sample_texts([f"path:{folder}" for folder in folders], 3000, seed=0, held_out_fraction=0.1))
    sizes = [sum(byte_length(text) for text in texts if text.startswith(f"{seed}.")) for seed in (0, 1)]
    assert all(1200 < size <= 1800 for size in sizes)
    assert not any(is_held_out(text, 0.1, 0) for text in texts)


@given(st.lists(st.lists(st.integers(0, 69_999), min_size=1, max_size=9), min_size=1), st.integers(1, 20))
def test_shards_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], limit: int
) -> None:
    for vocab_size in (70_000, 65_536):
        documents = [[token % vocab_size for token in document] for document in documents]
        folder = tmp_path_factory.mktemp("shards")
        with ShardWriter(folder, vocab_size, tokens_per_shard=limit) as writer:
            for document in documents:
                writer.append(document)
        shards = TokenShards(folder, vocab_size)
        assert [shards.document(number).tolist() for number in range(len(shards))] == documents
        assert shards.tokens == writer.tokens == sum(map(len, documents))


def test_a_truncated_shard_is_noticed(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest = build([f"path:{make_files(tmp_path / 'docs', 5, 20, seed=3)}"])
    folder = tmp_path / "corpus" / manifest.sources[0].folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(GLM5Error, match="does not have the size"):
        TokenShards(folder, tokenizer.vocab_size)
    shard.unlink()
    with pytest.raises(GLM5Error, match="no token shards"):
        TokenShards(folder, tokenizer.vocab_size)
