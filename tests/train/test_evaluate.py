"""Held-out bits per byte: every token is charged once, and the sum is that of a plain loop."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.data.documents import Document
from glm5.errors import GLM5Error
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.text.tokenizer import Tokenizer
from glm5.train.evaluate import ALL, HeldOut, bits_per_byte, lay_out, take_bytes
from glm5.train.parallel import World
from tests.train.small import small_model

BYTES = Tokenizer.train([], 279)  # a token is a byte


def document(text: str, source: str = "s") -> Document:
    return Document(text, source, "MIT", "x")


def charged(held_out: HeldOut) -> list[tuple[int, int, int]]:
    """(row, column, target) of every token that is scored."""
    places = (held_out.targets != IGNORE).nonzero().tolist()
    return [(row, column, int(held_out.targets[row, column])) for row, column in places]


documents = st.lists(
    st.tuples(st.text("abcdé\n", min_size=1, max_size=40), st.sampled_from(["one", "two"])), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=120)
@given(texts=documents, length=st.integers(1, 20))
def test_every_token_is_charged_exactly_once(texts: list[tuple[str, str]], length: int) -> None:
    held_out = lay_out([document(*text) for text in texts], BYTES, length)
    wanted = [(source, token) for text, source in texts for token in [*BYTES.encode(text), BYTES.eos_id]]
    got = [(held_out.names[held_out.sources[row, column]], target) for row, column, target in charged(held_out)]
    assert got == wanted  # in order, too: documents are laid out one after the other
    assert held_out.size == {
        name: sum(len(text.encode()) for text, source in texts if source == name) for name in held_out.names
    }


@settings(deadline=None, max_examples=120)
@given(texts=documents, length=st.integers(2, 20))
def test_a_window_is_a_piece_of_one_document_with_half_a_window_of_context(
    texts: list[tuple[str, str]], length: int
) -> None:
    held_out = lay_out([document(*text) for text in texts], BYTES, length)
    for row, column, _ in charged(held_out):
        position = int(held_out.positions[row, column])
        segment = held_out.document_ids[row] == held_out.document_ids[row, column]
        first = int(segment.nonzero()[0])
        assert column - first == position  # positions count from the window's first token
        begins = int(held_out.input_ids[row, first]) == BYTES.eos_id
        assert begins or position >= length - length // 2 - 1
        if column > first and held_out.targets[row, column - 1] != IGNORE:
            assert held_out.input_ids[row, column] == held_out.targets[row, column - 1]


def slow_bits(model: Transformer, texts: list[Document]) -> dict[str, float]:
    """One document, one token at a time, each from all tokens before it."""
    nats: dict[str, float] = {}
    for text in texts:
        ids = [BYTES.eos_id, *BYTES.encode(text.text), BYTES.eos_id]
        for end in range(1, len(ids)):
            logits = model.logits(model(torch.tensor([ids[:end]]), sparse=False).hidden[:, -1])
            nats[text.source] = nats.get(text.source, 0.0) - float(logits.log_softmax(-1)[0, ids[end]])
    return {
        source: value / math.log(2) / sum(len(t.text.encode()) for t in texts if t.source == source)
        for source, value in nats.items()
    }


@torch.no_grad()
def test_bits_against_a_plain_loop() -> None:
    """Documents that fit into a row, so that windows cut nothing off."""
    model = small_model(vocab_size=279).eval()
    texts = [document("the router"), document("é", "t"), document("sends each token\n", "t"), document("on")]
    held_out = lay_out(texts, BYTES, 24)
    bits, load = bits_per_byte(model, held_out, World(), dtype=torch.float32, sparse=False, loss_chunk_tokens=7)
    slow = slow_bits(model, texts)
    assert bits.keys() == {"s", "t", ALL}
    assert bits["s"] == pytest.approx(slow["s"], rel=1e-5)
    assert bits["t"] == pytest.approx(slow["t"], rel=1e-5)
    sizes = {name: held_out.size[name] for name in ("s", "t")}
    assert bits[ALL] == pytest.approx(sum(slow[n] * sizes[n] for n in sizes) / sum(sizes.values()), rel=1e-5)
    assert len(load) == 1
    assert sum(load[0]) == pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_context_helps_never_leaks() -> None:
    """Changing a target changes nobody's inputs before it: the score of a text's beginning ignores its end."""
    model = small_model(vocab_size=279).eval()

    def nats(text: str) -> float:
        held_out = lay_out([document(text)], BYTES, 30)
        held_out = dataclasses.replace(held_out, targets=held_out.targets.clone())
        held_out.targets[:, 6:] = IGNORE
        return bits_per_byte(model, held_out, World(), dtype=torch.float32, sparse=False, loss_chunk_tokens=64)[0][ALL]

    assert nats("router a") == pytest.approx(nats("router b"), rel=1e-6)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(GLM5Error, match="held_out_fraction"):
        lay_out([], BYTES, 8)


@given(texts=documents, limit=st.integers(1, 60))
def test_taking_a_number_of_bytes(texts: list[tuple[str, str]], limit: int) -> None:
    """The first documents of each source, whole but for the last one taken, and never more than the limit."""
    given_ = [document(*text) for text in texts]
    taken = take_bytes(given_, limit)
    for source in {text.source for text in given_}:
        mine = [text.text for text in taken if text.source == source]
        theirs = [text.text for text in given_ if text.source == source]
        assert sum(len(text.encode()) for text in mine) <= limit
        assert mine[:-1] == theirs[: len(mine)][:-1]
        assert all(text for text in mine)
        if mine:
            assert theirs[len(mine) - 1].startswith(mine[-1])
        if sum(len(text.encode()) for text in theirs) <= limit:
            assert mine == theirs


def test_the_last_document_is_cut_at_a_line_end() -> None:
    taken = take_bytes([document("one\ntwo\nthree\n"), document("four\n")], 10)
    assert [text.text for text in taken] == ["one\ntwo\n"]


def test_a_document_of_one_line_is_cut_inside_it() -> None:
    assert [text.text for text in take_bytes([document("é" * 9)], 5)] == ["éé"]


def test_scores_do_not_depend_on_the_order_of_sources(tmp_path: Path) -> None:
    model = small_model(vocab_size=279).eval()
    texts = [document("alpha", "b"), document("beta gamma", "a")]
    scores = [
        bits_per_byte(
            model, lay_out(order, BYTES, 16), World(), dtype=torch.float32, sparse=False, loss_chunk_tokens=64
        )[0]
        for order in (texts, texts[::-1])
    ]
    assert scores[0] == pytest.approx(scores[1])
