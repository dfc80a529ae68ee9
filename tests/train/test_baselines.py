"""The compressors a model has to beat, against slow loops and the program itself."""

import itertools
import lzma
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.data.corpus import build_corpus
from glm5.data.documents import Document
from glm5.text.tokenizer import Tokenizer
from glm5.train.baselines import ByteTrigram, baseline_bits_per_byte, score_baselines, training_bytes, xz_bits
from tests.data.small_files import make_files

TEXTS = [b"the router sends each token to the experts", b"each expert rests", b"", b"\x00\xff\xfe", b"a"]


@pytest.fixture(scope="module")
def trigram() -> ByteTrigram:
    model = ByteTrigram()
    model.add(TEXTS[:2])
    model.add(TEXTS[2:])
    return model


def slow_bits(training: list[bytes], text: bytes) -> float:
    """Witten and Bell's backoff with dictionaries, a byte at a time."""
    seen: list[dict[bytes, Counter[int]]] = [{}, {}, {}]
    for document in training:
        padded = b"\0\0" + document
        for i, order in itertools.product(range(2, len(padded)), range(3)):
            seen[order].setdefault(padded[i - order : i], Counter())[padded[i]] += 1
    bits = 0.0
    padded = b"\0\0" + text
    for i in range(2, len(padded)):
        probability = 1 / 256
        for order in range(3):
            counts = seen[order].get(padded[i - order : i])
            if counts:
                n, kinds = counts.total(), len(counts)
                weight = n / (n + kinds)
                probability = weight * counts[padded[i]] / n + (1 - weight) * probability
        bits -= math.log2(probability)
    return bits


@settings(deadline=None, max_examples=25)
@given(context=st.one_of(st.binary(max_size=4), st.sampled_from([b"th", b"e ", b"exp", b"\xff\xfe"])))
def test_the_256_probabilities_after_any_context_sum_to_one(trigram: ByteTrigram, context: bytes) -> None:
    before = trigram.bits(context)
    probabilities = [2.0 ** -(trigram.bits(context + bytes([byte])) - before) for byte in range(256)]
    assert min(probabilities) > 0
    assert math.fsum(probabilities) == pytest.approx(1.0)


@settings(deadline=None, max_examples=40)
@given(text=st.one_of(st.binary(max_size=30), st.text("ther xps", max_size=30).map(str.encode)))
def test_bits_against_a_loop(trigram: ByteTrigram, text: bytes) -> None:
    assert trigram.bits(text) == pytest.approx(slow_bits(TEXTS, text))


def test_how_documents_are_portioned_does_not_matter() -> None:
    """No context reaches over a document's border, however many are counted at a time; none at a time is fine too."""
    one, many = ByteTrigram(), ByteTrigram()
    many.add(TEXTS)
    many.add([])
    for text in TEXTS:
        one.add([text])
    for ours, theirs in zip(one._counts, many._counts, strict=True):
        assert np.array_equal(ours, theirs)


def test_it_learns() -> None:
    untrained = ByteTrigram()
    assert untrained.bits(b"router") == pytest.approx(6 * 8)
    untrained.add([b"the router"] * 50)
    assert untrained.bits(b"the router") < 10


@pytest.mark.parametrize("size", [0, 1, 5_000, 300_000])
def test_xz_is_the_program(size: int, tmp_path: Path) -> None:
    data = " ".join(str(n * n) for n in range(size // 6 + 1)).encode()[:size]
    assert lzma.decompress(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) == data
    if shutil.which("xz") is None:
        pytest.skip("the program xz is not installed")
    result = subprocess.run(["xz", "-9e", "--stdout"], input=data, capture_output=True, check=True)
    assert abs(xz_bits(data) / 8 - len(result.stdout)) <= 64  # checksums and headers


@pytest.mark.parametrize("documents", [1, 499, 500, 1000])
def test_every_number_of_training_documents_is_counted(documents: int) -> None:
    held_out = [Document("the router\n", "s", "MIT", "a"), Document("rests", "s", "MIT", "b")]
    training = [f"the router rests {number}".encode() for number in range(documents)]
    bits = baseline_bits_per_byte(iter(training), held_out)
    size = len("the router\nrests")
    trigram = ByteTrigram()
    trigram.add(training)
    wanted = (trigram.bits(b"the router\n") + trigram.bits(b"rests")) / size
    assert bits["byte trigram with backoff"] == pytest.approx(wanted)
    assert bits["xz -9e, all in one stream"] == xz_bits(b"the router\nrests") / size
    assert bits["xz -9e, each document"] == (xz_bits(b"the router\n") + xz_bits(b"rests")) / size


def test_the_training_side_of_a_corpus(tmp_path: Path) -> None:
    """All of it where it is small, and only what was not held out."""
    files = make_files(tmp_path / "texts", count=40, words=20, seed=1)
    tokenizer = Tokenizer.train([], 279)
    corpus = tmp_path / "corpus"
    build_corpus([f"path:{files}"], tokenizer, corpus, held_out_fraction=0.3)
    training = set(training_bytes(corpus, tokenizer, 10**9))
    everything = {file.read_bytes() for file in files.iterdir()}
    assert training < everything
    half = list(training_bytes(corpus, tokenizer, sum(map(len, training)) // 2))
    assert 0 < len(half) <= len(training) / 2
    held_out = [Document(text.decode(), "s", "MIT", "x") for text in sorted(everything - training)]
    scores = score_baselines(corpus, tokenizer, held_out)["held_out bits per byte"]
    assert 1 < scores["byte trigram with backoff"] < 4
    assert scores["xz -9e, all in one stream"] < scores["xz -9e, each document"]
