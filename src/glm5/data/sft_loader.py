"""Batches for supervised fine-tuning: rows of whole training sequences, with a mask of the tokens that are learned.

    each source: sequences ─ best fit ─▶ rows, shuffled anew each time they are all read
    epoch e: source s gives its rows from e · weight · n to (e + 1) · weight · n, shuffled with those of the others

Everything is a function of the data folder, the seed and the number of rows read, which is the state: a resumed run
sees bit-identical rows however they are batched.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glm5.data.documents import hash_uniform
from glm5.data.packing import pack
from glm5.data.rows import MaskedMicroBatch
from glm5.data.sft_corpus import MASK_VALUES, SftManifest, read_sft_manifest, shard_folders
from glm5.data.shards import TokenShards
from glm5.errors import UsageError

PADDING = -1  # document id of what no sequence fills


@dataclass(slots=True)
class SftBatch:
    """Rows of packed sequences; all tensors are [rows, context_length].

    Attributes:
        targets: int64, the true next token, learned or not; padding in the padding.
        document_ids: int64, 0, 1, 2, … within a row, `PADDING` after the last.
        positions: int64, 0, 1, 2, … within a sequence.
        loss_mask: bool, whether the target is learned.
        sources: of each row.
    """

    input_ids: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor
    loss_mask: Tensor
    sources: list[str]
    phase: str = "sft"

    @property
    def fields(self) -> MaskedMicroBatch:
        """What the objective reads."""
        return MaskedMicroBatch(self.input_ids, self.targets, self.document_ids, self.positions, self.loss_mask)


class _Row(NamedTuple):
    """One row in the order of `SftBatch`'s tensors, [context_length] each."""

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    document_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]


class PackedRows:
    """One source's sequences, packed into rows, which are numbered as `pack` made them."""

    def __init__(self, folder: Path, manifest: SftManifest, source: str, split: str, pad_id: int) -> None:
        """Map a source's shards and plan its rows.

        Raises:
            GLM5Error: the shards are damaged.
        """
        ids, masks = shard_folders(folder, source, split)
        self.name = source
        self._ids, self._masks = TokenShards(ids, manifest.vocab_size), TokenShards(masks, MASK_VALUES)
        self._length, self._pad_id = manifest.context_length, pad_id
        self._rows = pack((self._ids.lengths - 1).tolist(), self._length)  # the last id is only a target

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> _Row:
        """One row."""
        length = self._length
        row = _Row(
            np.full(length, self._pad_id),
            np.full(length, self._pad_id),
            np.full(length, PADDING),
            np.arange(length),  # padding counts on: a query of it must not see, and select, only what stands behind it
            np.zeros(length, np.bool_),
        )
        start = 0
        for document, index in enumerate(self._rows[number]):
            ids = self._ids.document(index)
            part = slice(start, start + len(ids) - 1)
            row.input_ids[part], row.targets[part] = ids[:-1], ids[1:]
            row.document_ids[part], row.positions[part] = document, np.arange(len(ids) - 1)
            row.loss_mask[part] = self._masks.document(index)[1:]
            start = part.stop
        return row


def stack(rows: Sequence[tuple[PackedRows, int]]) -> SftBatch:
    """The numbered rows of some sources as one batch."""
    columns = zip(*(source.row(number) for source, number in rows), strict=True)
    tensors = [torch.from_numpy(np.stack(column)) for column in columns]
    return SftBatch(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], [source.name for source, _ in rows])


class SftLoader:
    """The endless stream of rows of a data folder. Every process builds the same batches and takes its own rows."""

    def __init__(self, folder: Path, weights: Mapping[str, float], pad_id: int, seed: int = 0) -> None:
        """Open the folder that `build_sft_data` wrote.

        Args:
            weights: of each source, how often it is read in an epoch.

        Raises:
            GLM5Error: there is no such folder, or it is damaged.
            UsageError: the weights read no row in the first epoch.
        """
        manifest = read_sft_manifest(folder)
        self._sources = [PackedRows(folder, manifest, name, "train", pad_id) for name in weights]
        self._weights, self._seed = list(weights.values()), seed
        self._identity = {
            "tokenizer": manifest.tokenizer,
            "context_length": manifest.context_length,
            "rows": self.rows,
            "weights": dict(weights),
            "seed": seed,
        }
        self._row = 0
        self._epoch, self._first, self._order = -1, 0, list[tuple[PackedRows, int]]()  # the epoch `_row` is in
        self._turn_to(0)
        if not self._order:
            raise UsageError(f"weights {dict(weights)} of {self.rows} rows read nothing in an epoch; raise them")

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each source."""
        return {source.name: len(source) for source in self._sources}

    def rows_until(self, epochs: float) -> int:
        """Rows in the first `epochs` epochs, at least one."""
        return max(1, sum(_share(epochs, weight, source) for weight, source in self._weighted()))

    def next_batch(self, rows: int) -> SftBatch:
        """The next rows of the stream."""
        if rows < 1:
            raise UsageError(f"a batch needs at least one row, not {rows}")
        chosen = []
        for number in range(self._row, self._row + rows):
            while number - self._first >= len(self._order):
                self._turn_to(self._epoch + 1)
            chosen.append(self._order[number - self._first])
        self._row += rows
        return stack(chosen)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON can hold it."""
        return {"row": self._row, "stream": self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            UsageError: the state is of other data, weights or another seed, so that its count means other rows here.
        """
        differing = [
            f"{key} was {state['stream'].get(key)}, is {value}"
            for key, value in self._identity.items()
            if state["stream"].get(key) != value
        ]
        if differing:
            raise UsageError(f"cannot resume the data stream: {'; '.join(differing)}")
        self._row = state["row"]
        self._turn_to(0)

    def _weighted(self) -> list[tuple[float, PackedRows]]:
        return list(zip(self._weights, self._sources, strict=True))

    def _turn_to(self, epoch: int) -> None:
        """Lay out the rows of an epoch; `_first` is the number of its first row in the stream."""
        self._first = self._first + len(self._order) if epoch else 0
        self._epoch = epoch
        rows = [
            (source, number)
            for weight, source in self._weighted()
            for number in self._reading(source, _share(epoch, weight, source), _share(epoch + 1, weight, source))
        ]
        self._order = [rows[place] for place in self._shuffled(f"\0{epoch}", len(rows))]

    def _reading(self, source: PackedRows, begin: int, end: int) -> Iterator[int]:
        """Rows number `begin` to `end` of a source that is read again and again."""
        order, reading = np.empty(0, np.int64), -1
        for place in range(begin, end):
            if place // len(source) != reading:
                reading = place // len(source)
                order = self._shuffled(f"{source.name}\0{reading}", len(source))
            yield int(order[place % len(source)])

    def _shuffled(self, purpose: str, count: int) -> NDArray[np.int64]:
        """0 … count - 1 in an order that depends on the seed and `purpose` alone."""
        key = int(hash_uniform("sft-order", self._seed, purpose.encode()) * 2**53)
        # raw bits and a stable sort: NumPy keeps those the same in every version, unlike `permutation`
        return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable").astype(np.int64)


def _share(epochs: float, weight: float, source: PackedRows) -> int:
    """Rows that a source has given after `epochs` epochs."""
    return round(epochs * weight * len(source))
