"""The loader against slow readings of the same rules: packing, mixture, epochs, and resuming to the exact token."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.data.corpus import build_corpus
from glm5.data.loader import Batch, MixtureLoader
from glm5.data.manifest import load_manifest
from glm5.data.shards import TokenShards
from glm5.errors import UsageError
from glm5.recipe import Phase
from glm5.text.tokenizer import Tokenizer
from tests.data.small_files import make_files

LENGTH = 64


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two general sources and one of code: 40 short, 6 long and 10 middling documents."""
    folder = tmp_path_factory.mktemp("loader")
    make_files(folder / "short", 40, 3, seed=1)
    make_files(folder / "long", 6, 150, seed=2)
    make_files(folder / "code", 10, 20, seed=3, suffix=".py")
    build_corpus(
        [f"path:{folder / name}" for name in ("short", "long", "code")],
        tokenizer,
        folder / "corpus",
        held_out_fraction=0,
    )
    return folder / "corpus"


def phase(until: float, weights: dict[str, float], name: str = "only") -> Phase:
    return Phase(name=name, until=until, weights=weights)


def named(corpus: Path, **weights: float) -> dict[str, float]:
    return {f"path:{corpus.parent / name}": weight for name, weight in weights.items()}


def mixed(corpus: Path, seed: int = 0) -> MixtureLoader:
    phases = [phase(0.3, {"general": 1.0}, "first"), phase(1.0, {"general": 0.5, "code": 0.5}, "second")]
    return MixtureLoader(corpus, LENGTH, phases, total_tokens=60 * LENGTH, seed=seed)


def rows_of(batches: Sequence[Batch]) -> list[tuple]:
    return [
        (source, *(tensor[i].tolist() for tensor in (b.input_ids, b.targets, b.document_ids, b.positions)))
        for b in batches
        for i, source in enumerate(b.sources)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), max_size=12), st.lists(st.integers(1, 7), max_size=12), st.integers(0, 3))
def test_the_stream_is_the_same_however_it_is_batched_and_resumed(
    corpus: Path, before: list[int], after: list[int], seed: int
) -> None:
    expected = rows_of([mixed(corpus, seed).next_batch(sum(before) + sum(after) or 1)])
    loader = mixed(corpus, seed)
    batches = [loader.next_batch(rows) for rows in before]
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = mixed(corpus, seed)
    resumed.load_state_dict(state)
    assert resumed.epochs == loader.epochs
    assert resumed.tokens == loader.tokens == sum(before) * LENGTH
    batches += [resumed.next_batch(rows) for rows in after]
    assert rows_of(batches) == expected[: sum(before) + sum(after)]


def test_each_epoch_reads_every_document_once_in_a_new_order(corpus: Path, tokenizer: Tokenizer) -> None:
    entry = load_manifest(corpus).sources[0]
    shards = TokenShards(corpus / entry.folder, tokenizer.vocab_size)
    stored = Counter(tuple(shards.document(i).tolist()) for i in range(len(shards)))
    loader = MixtureLoader(corpus, LENGTH, [phase(1.0, {entry.name: 1.0})], total_tokens=10**6)
    stream: list[int] = []
    while len(stream) < 2 * entry.tokens:
        stream += loader.next_batch(1).input_ids[0].tolist()
    assert loader.epochs == {entry.name: pytest.approx(len(stream) / entry.tokens)}

    orders = []
    for epoch in (0, 1):
        tokens = stream[epoch * entry.tokens : (epoch + 1) * entry.tokens]
        ends = [i + 1 for i, token in enumerate(tokens) if token == tokenizer.eos_id]
        orders.append([tuple(tokens[start:end]) for start, end in zip([0, *ends], ends)])
        assert Counter(orders[-1]) == stored
    assert orders[0] != orders[1]
    assert orders[0] != list(stored)


def test_rows_are_packed_as_the_rules_say(corpus: Path, tokenizer: Tokenizer) -> None:
    """Read every row again, token by token; the same source's next row says what follows the last token."""
    rows = rows_of([mixed(corpus).next_batch(120)])
    crossings = 0
    for number, (source, inputs, targets, document_ids, positions) in enumerate(rows):
        following = next((row[1][0] for row in rows[number + 1 :] if row[0] == source), None)
        document = position = 0
        for i, token in enumerate(inputs):
            if token == tokenizer.eos_id:  # ends one document, and is what the next begins from
                document, position, crossings = document + 1, 0, crossings + 1
            assert (document_ids[i], positions[i]) == (document, position)
            successor = inputs[i + 1] if i + 1 < LENGTH else following
            assert successor is None or targets[i] == successor
            position += 1
    assert crossings > 50


def test_phases_and_weights_choose_the_sources(corpus: Path) -> None:
    loader = mixed(corpus)
    entries = load_manifest(corpus).sources
    code = entries[2].name
    assert (entries[2].kind, entries[0].kind) == ("code", "general")
    first = loader.next_batch(18)
    assert first.phase == "first"
    assert code not in first.sources
    second = loader.next_batch(2000)  # past the end, the last phase goes on
    assert second.phase == "second"
    share = Counter(second.sources)
    assert share[code] / 2000 == pytest.approx(0.5, abs=0.05)
    expected = 0.5 * entries[0].tokens / (entries[0].tokens + entries[1].tokens)  # a kind's weight goes by size
    assert share[entries[0].name] / 2000 == pytest.approx(expected, abs=0.05)


def test_another_seed_is_another_stream(corpus: Path) -> None:
    assert rows_of([mixed(corpus, 0).next_batch(5)]) != rows_of([mixed(corpus, 1).next_batch(5)])


def test_batches_are_int64_tensors(corpus: Path) -> None:
    batch = mixed(corpus).next_batch(3)
    for tensor in (batch.input_ids, batch.targets, batch.document_ids, batch.positions):
        assert tensor.shape == (3, LENGTH)
        assert tensor.dtype == torch.int64


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wikipedia": 1.0}, "no source or kind 'wikipedia'"),
        ({"reasoning": 1.0}, "no source or kind 'reasoning'"),
    ],
)
def test_wrong_weights_are_refused(corpus: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MixtureLoader(corpus, LENGTH, [phase(1.0, weights)], total_tokens=1000)


@pytest.mark.parametrize("ends", [[], [0.5], [0.5, 0.5, 1.0], [0.7, 0.3, 1.0]])
def test_wrong_phase_ends_are_refused(corpus: Path, ends: list[float]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        MixtureLoader(corpus, LENGTH, [phase(end, {"code": 1.0}) for end in ends], total_tokens=1000)


def test_a_source_smaller_than_a_row_is_refused_only_where_it_is_used(corpus: Path) -> None:
    tokens = load_manifest(corpus).sources[2].tokens
    with pytest.raises(UsageError, match="less than one row"):
        MixtureLoader(corpus, tokens + 1, [phase(1.0, {"code": 1.0})], total_tokens=1000)
    MixtureLoader(corpus, tokens, [phase(1.0, {"code": 1.0})], total_tokens=1000).next_batch(3)
    MixtureLoader(corpus, tokens + 1, [phase(1.0, named(corpus, long=1.0))], total_tokens=1000)


def test_a_state_of_another_stream_is_refused(corpus: Path) -> None:
    loader = mixed(corpus)
    loader.next_batch(30)
    state = loader.state_dict()
    with pytest.raises(UsageError, match="seed was 0, is 1"):
        mixed(corpus, seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match=f"context_length was {LENGTH}, is 32"):
        MixtureLoader(corpus, 32, [phase(1.0, {"code": 1.0})], total_tokens=1000).load_state_dict(state)
    with pytest.raises(UsageError, match="no longer in the mixture"):
        MixtureLoader(corpus, LENGTH, [phase(1.0, {"code": 1.0})], total_tokens=1000).load_state_dict(state)
    with pytest.raises(UsageError, match="do not add up"):
        mixed(corpus).load_state_dict({**state, "row": 31})
    with pytest.raises(UsageError, match="at least one row"):
        loader.next_batch(0)
