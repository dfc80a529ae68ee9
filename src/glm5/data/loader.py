"""Batches for pre-training: rows of tokens, each from one source chosen by the present phase's weights.

    corpus ─ source A: documents shuffled anew each epoch, laid end to end ─ cut into rows ─┐
           ─ source B: …                                                                    ├─ row r: source by weight
           ─ source C: …                                                                    ┘   at hash(seed, r)

A document cut at the end of a row goes on in the source's next row (GLM-4.5 packs its pre-training data this way, by
plain truncation), so in each epoch each token is an input once. Everything is a function of the seed and of how many
rows have been read from each source: the state is those counts, and a resumed run sees bit-identical rows however they
are batched.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm5.data.documents import hash_uniform
from glm5.data.manifest import CorpusManifest, load_manifest
from glm5.data.rows import MicroBatch
from glm5.data.shards import TokenShards
from glm5.errors import UsageError
from glm5.recipe import Phase


@dataclass(slots=True)
class Batch:
    """Rows of packed documents; all tensors are int64 [rows, context_length].

    Attributes:
        targets: the next token.
        document_ids: 0, 1, 2, … within a row; attention must not cross from one to another. The `<|endoftext|>` between
            two documents belongs to the second: predicted as the end of one, it is what the other begins from. So a
            document's first token is learned too, and generation from nothing starts with `<|endoftext|>`.
        positions: 0, 1, 2, … within a document; a document that goes on from an earlier row starts at 0 again.
        phase: of the first row.
        sources: of each row.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    document_ids: torch.Tensor
    positions: torch.Tensor
    phase: str
    sources: list[str]

    @property
    def fields(self) -> MicroBatch:
        """What the objective reads."""
        return MicroBatch(self.input_ids, self.targets, self.document_ids, self.positions)


class MixtureLoader:
    """The stream of rows of a corpus. Every data-parallel rank builds the same batches and takes its own rows."""

    def __init__(
        self, folder: Path, context_length: int, phases: Sequence[Phase], total_tokens: int, seed: int = 0
    ) -> None:
        """Open the corpus at `folder`; after `total_tokens` the last phase goes on.

        Raises:
            UsageError: no corpus there; phases that do not ascend to 1.0; a weight for an unknown source; a weighted
                source with fewer tokens than one row.
        """
        if context_length < 1 or total_tokens < 1:
            raise UsageError(f"context_length {context_length} and total_tokens {total_tokens} must be positive")
        self._manifest = load_manifest(folder)
        self._context_length = context_length
        self._total_tokens = total_tokens
        self._seed = seed
        self._phases = list(phases)
        self._check_phases()
        self._mixtures = [_source_weights(phase, self._manifest) for phase in self._phases]
        used = {name for mixture in self._mixtures for name in mixture}
        self._streams = {
            entry.name: _SourceStream(TokenShards(folder / entry.folder, self._manifest.vocab_size), entry.name, seed)
            for entry in self._manifest.sources
            if entry.name in used
        }
        for name, stream in self._streams.items():
            if stream.tokens < context_length:
                raise UsageError(f"source {name!r} has {stream.tokens} tokens, less than one row of {context_length}")
        self._row = 0
        self._source_rows = dict.fromkeys(self._streams, 0)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been read so far."""
        return {
            name: rows * self._context_length / self._streams[name].tokens for name, rows in self._source_rows.items()
        }

    @property
    def tokens(self) -> int:
        """Input tokens handed out so far."""
        return self._row * self._context_length

    def next_batch(self, rows: int) -> Batch:
        """The next `rows` rows of the stream."""
        if rows < 1:
            raise UsageError(f"a batch needs at least one row, not {rows}")
        phase = self._phase_at(self._row)
        length = self._context_length
        input_ids = np.empty((rows, length), dtype=np.int64)
        targets = np.empty_like(input_ids)
        document_ids = np.empty_like(input_ids)
        positions = np.empty_like(input_ids)
        sources = []
        for i in range(rows):
            name = self._source_of(self._row)
            tokens, ends = self._streams[name].read(self._source_rows[name] * length, length + 1)
            input_ids[i] = tokens[:-1]
            targets[i] = tokens[1:]
            document_ids[i] = np.cumsum(ends[:-1])
            positions[i] = _restart_at(ends[:-1])
            self._source_rows[name] += 1
            self._row += 1
            sources.append(name)
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(targets),
            torch.from_numpy(document_ids),
            torch.from_numpy(positions),
            phase=self._phases[phase].name,
            sources=sources,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON can hold it."""
        return {"row": self._row, "source_rows": dict(self._source_rows), "stream": self._stream_identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            UsageError: the state is of another corpus, context length or seed, so that its counts mean other rows here.
        """
        here = self._stream_identity()
        differing = [
            f"{key} was {state['stream'].get(key)}, is {value}"
            for key, value in here.items()
            if state["stream"].get(key) != value
        ]
        if differing:
            raise UsageError(f"cannot resume the data stream: {'; '.join(differing)}")
        read = {name: rows for name, rows in state["source_rows"].items() if rows}
        unknown = set(read) - set(self._streams)
        if unknown:
            raise UsageError(
                f"cannot resume the data stream: sources {', '.join(sorted(unknown))} are no longer in the mixture"
            )
        if sum(read.values()) != state["row"]:
            raise UsageError("cannot resume the data stream: its rows do not add up; the state is damaged")
        self._row = state["row"]
        self._source_rows = {name: read.get(name, 0) for name in self._streams}

    def _stream_identity(self) -> dict[str, Any]:
        """What must be equal for the counts to mean the same rows."""
        sizes = {entry.name: entry.tokens for entry in self._manifest.sources}
        return {
            "tokenizer": self._manifest.tokenizer,
            "corpus_tokens": sizes,
            "context_length": self._context_length,
            "seed": self._seed,
        }

    def _phase_at(self, row: int) -> int:
        done = row * self._context_length / self._total_tokens
        last = len(self._phases) - 1
        return next((i for i, phase in enumerate(self._phases) if done < phase.until), last)

    def _source_of(self, row: int) -> str:
        """The source of row number `row`: a function of the seed and the number alone."""
        mixture = self._mixtures[self._phase_at(row)]
        bounds = list(accumulate(mixture.values()))
        drawn = hash_uniform("row-source", self._seed, row.to_bytes(8, "little")) * bounds[-1]
        return list(mixture)[min(bisect_right(bounds, drawn), len(bounds) - 1)]

    def _check_phases(self) -> None:
        ends = [phase.until for phase in self._phases]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise UsageError(f"phases must end at ascending shares of the tokens, the last at 1.0, not at {ends}")


class _SourceStream:
    """One source's documents laid end to end: epoch after epoch, each in an order of its own."""

    def __init__(self, shards: TokenShards, name: str, seed: int) -> None:
        self.tokens = shards.tokens
        self._shards = shards
        self._name = name
        self._seed = seed
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def read(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens [start, start + count) of the endless stream, and 1 at the last token of each document, else 0."""
        tokens = np.empty(count, dtype=np.int64)
        ends = np.zeros(count, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(start + filled, self.tokens)
            order, borders = self._epoch(epoch)
            place = int(np.searchsorted(borders, offset, side="right"))
            remaining = int(borders[place]) - offset  # tokens of this document from here on
            document = self._shards.document(int(order[place]))
            taken = min(remaining, count - filled)
            tokens[filled : filled + taken] = document[len(document) - remaining :][:taken]
            filled += taken
            if taken == remaining:
                ends[filled - 1] = 1
        return tokens, ends

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the documents in an epoch, and where each ends in it."""
        if epoch not in self._epochs:
            self._epochs = {number: order for number, order in self._epochs.items() if number == epoch - 1}
            key = int(hash_uniform("epoch-order", self._seed, f"{self._name}\0{epoch}".encode()) * 2**53)
            # raw bits and a stable sort: NumPy keeps those the same in every version, unlike `permutation`
            ranks = np.random.Philox(key=key).random_raw(len(self._shards))
            order = np.argsort(ranks, kind="stable").astype(np.int64)
            self._epochs[epoch] = order, np.cumsum(self._shards.lengths[order])
        return self._epochs[epoch]


def _source_weights(phase: Phase, manifest: CorpusManifest) -> dict[str, float]:
    """The weight of each source in a phase, in the corpus's order; sources with none are left out."""
    weights = dict.fromkeys((entry.name for entry in manifest.sources), 0.0)
    for name, weight in phase.weights.items():
        members = [entry for entry in manifest.sources if name in (entry.name, entry.kind)]
        if not members:
            known = [*weights, *sorted({entry.kind for entry in manifest.sources})]
            raise UsageError(
                f"phase {phase.name!r}: the corpus has no source or kind {name!r}; it has {', '.join(known)}"
            )
        total = sum(entry.tokens for entry in members)
        for entry in members:
            weights[entry.name] += weight * entry.tokens / total
    return {name: weight for name, weight in weights.items() if weight > 0}


def _restart_at(borders: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, … that begins anew at each 1 in `borders`."""
    index = np.arange(len(borders), dtype=np.int64)
    return index - np.maximum.accumulate(index * borders)
