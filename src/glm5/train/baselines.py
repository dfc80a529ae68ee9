"""What a model has to beat: compressors anybody has, on the same held-out documents.

`xz -9e`, of all documents in one stream (it may refer back to earlier ones, which our model may not) and of each
alone; and a byte trigram model with interpolated backoff, counted on the same training documents the model reads.
"""

import lzma
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm5.data.documents import Document
from glm5.data.manifest import load_manifest
from glm5.data.shards import TokenShards
from glm5.text.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 500  # counted at a time
TRAINING_SAMPLE_BYTES = 32_000_000  # of the training side; counts of so few contexts are long settled by then


class ByteTrigram:
    """P(byte | two before it), backing off to one, to none, to uniform, weighted as Witten and Bell (1991) do.

    lambda(context) = n(context) / (n(context) + number of different bytes seen after it)
    """

    def __init__(self) -> None:
        self._counts = [np.zeros((256**order, 256), dtype=np.int64) for order in range(3)]

    def add(self, texts: Sequence[bytes]) -> None:
        """Count training documents, each of which begins after two zero bytes. Many at a time are faster than one."""
        for order, (context, byte) in enumerate(_contexts(texts)):
            counted = np.bincount(context * 256 + byte, minlength=256 ** (order + 1))
            self._counts[order] += counted.reshape(-1, 256)

    def bits(self, text: bytes) -> float:
        """Bits the model needs for a document."""
        probability = np.full(len(text), 1 / 256)
        for counts, (context, byte) in zip(self._counts, _contexts([text]), strict=True):
            rows = counts[context]
            seen = rows.sum(1)
            kinds = np.count_nonzero(rows, axis=1)
            weight = seen / np.maximum(seen + kinds, 1)
            own = rows[np.arange(len(byte)), byte] / np.maximum(seen, 1)
            probability = weight * own + (1 - weight) * probability
        return float(-np.log2(probability).sum())


def _contexts(texts: Sequence[bytes]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For orders 0, 1 and 2: the number of each byte's context, and the byte; over all documents."""
    joined = np.frombuffer(b"".join(b"\0\0" + text for text in texts), dtype=np.uint8).astype(np.int64)
    sizes = np.array([len(text) + 2 for text in texts], dtype=np.int64)
    counted = np.ones(len(joined), dtype=bool)
    starts = np.cumsum(sizes) - sizes
    counted[starts] = counted[starts + 1] = False  # the two zeros before each document are context only
    place = np.flatnonzero(counted)
    byte, before, earlier = joined[place], joined[place - 1], joined[place - 2]
    yield np.zeros_like(byte), byte
    yield before, byte
    yield earlier * 256 + before, byte


def xz_bits(data: bytes) -> int:
    """Size of `data` under `xz -9e`, in bits."""
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def baseline_bits_per_byte(training: Iterator[bytes], documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of every baseline on `documents`."""
    trigram = ByteTrigram()
    batch: list[bytes] = []
    for text in training:
        batch.append(text)
        if len(batch) == _BATCH_DOCUMENTS:
            trigram.add(batch)
            batch = []
    trigram.add(batch)
    texts = [document.text.encode() for document in documents]
    size = sum(map(len, texts))
    return {
        "byte trigram with backoff": sum(map(trigram.bits, texts)) / size,
        "xz -9e, all in one stream": xz_bits(b"".join(texts)) / size,
        "xz -9e, each document": math.fsum(map(xz_bits, texts)) / size,
    }


def training_bytes(corpus: Path, tokenizer: Tokenizer, limit: int) -> Iterator[bytes]:
    """Training documents of every source in turn, about `limit` bytes altogether, drawn evenly."""
    manifest = load_manifest(corpus)
    total = sum(entry.bytes for entry in manifest.sources)
    for entry in manifest.sources:
        shards = TokenShards(corpus / entry.folder, manifest.vocab_size)
        for number in range(int(len(shards) * min(1.0, limit / max(total, 1)))):
            yield tokenizer.decode_bytes(shards.document(number)[:-1].tolist())


def score_baselines(corpus: Path, tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, Any]:
    """What `baselines.json` holds: every baseline on `documents`, counted on `corpus`'s training side."""
    bits = baseline_bits_per_byte(training_bytes(corpus, tokenizer, TRAINING_SAMPLE_BYTES), documents)
    return {"held_out bits per byte": {name: round(value, 4) for name, value in bits.items()}}
