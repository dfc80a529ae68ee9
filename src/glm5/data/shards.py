"""Token shards: one long array of token ids a file, with the borders of the documents beside it.

`train-00000.bin` holds little-endian uint16 or uint32 ids, `train-00000.idx` holds n + 1 little-endian int64 offsets:
document i is `tokens[offsets[i] : offsets[i + 1]]`. A document never crosses two shards. Reading maps the files into
memory, so a corpus may be much larger than RAM.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from glm5.errors import GLM5Error

TOKENS_PER_SHARD = 100_000_000


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """The smallest type that holds every id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class ShardWriter:
    """Appends documents to numbered shards in `folder`; leave the `with` block to finish the last one."""

    def __init__(self, folder: Path, vocab_size: int, tokens_per_shard: int = TOKENS_PER_SHARD) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = 0
        self.documents = 0
        self._folder = folder
        self._dtype = token_dtype(vocab_size)
        self._limit = tokens_per_shard
        self._shard = 0
        self._offsets = [0]
        self._file: BinaryIO | None = None

    def append(self, ids: Sequence[int]) -> None:
        """Write one document; a new shard begins when it does not fit into the present one."""
        if self._file is not None and self._offsets[-1] + len(ids) > self._limit:
            self._finish_shard()
        if self._file is None:
            self._file = (self._folder / f"train-{self._shard:05}.bin").open("wb")
        self._file.write(np.asarray(ids, dtype=self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))
        self.tokens += len(ids)
        self.documents += 1

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        np.asarray(self._offsets, dtype="<i8").tofile(self._folder / f"train-{self._shard:05}.idx")
        self._file, self._offsets, self._shard = None, [0], self._shard + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_shard()


class TokenShards:
    """The documents of one source, read in place.

    Attributes:
        lengths: int64 [documents], tokens of each document in stored order.
        tokens: their sum.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Map all shards in `folder`.

        Raises:
            GLM5Error: there are none, or a file is shorter or longer than its borders say.
        """
        dtype = token_dtype(vocab_size)
        self._shards: list[NDArray[np.generic]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for file in sorted(folder.glob("train-*.bin")):
            offsets = np.fromfile(file.with_suffix(".idx"), dtype="<i8")
            if len(offsets) < 2 or file.stat().st_size != offsets[-1] * dtype.itemsize:
                raise GLM5Error(f"{file} does not have the size its .idx file says: build the corpus again")
            self._shards.append(np.memmap(file, dtype=dtype, mode="r"))
            self._offsets.append(offsets)
        if not self._shards:
            raise GLM5Error(f"there are no token shards in {folder}: build the corpus again")
        self._first = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(offsets) for offsets in self._offsets])
        self.tokens = int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, number: int) -> NDArray[np.generic]:
        """The tokens of one document, `<|endoftext|>` last; a view of the file."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        start, end = self._offsets[shard][number - self._first[shard] :][:2]
        return self._shards[shard][start:end]
