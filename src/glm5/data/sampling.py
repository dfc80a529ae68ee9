"""Which documents of a source are taken: a fixed random order cut at a number of bytes, and texts to train a tokenizer.

The order comes from a hash of each text, so a sample does not depend on the order in which a source yields, is not the
first letters of the alphabet, and a smaller sample is always part of a larger one.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from glm5.data.documents import Document, is_held_out, sampling_rank
from glm5.data.quality import DropReason, clean
from glm5.data.sources.registry import open_sources
from glm5.errors import GLM5Error


def byte_length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text.encode())


def sample_documents(documents: Iterable[Document], max_bytes: int, seed: int) -> list[Document]:
    """The longest beginning of the random order that fits into `max_bytes`; holds no more than that in memory."""
    kept: list[tuple[float, str, Document]] = []  # a heap with the last in the order on top; equal ranks by path
    total = 0
    first_left_out = 2.0  # rank from which on nothing is taken: a prefix of the order has no holes
    for document in documents:
        rank = sampling_rank(document.text, seed)
        if rank >= first_left_out:
            continue
        heapq.heappush(kept, (-rank, document.path, document))
        total += byte_length(document.text)
        while total > max_bytes:
            negative_rank, _, last = heapq.heappop(kept)
            first_left_out = -negative_rank
            total -= byte_length(last.text)
    return [document for _, _, document in sorted(kept, key=lambda entry: -entry[0])]


def sample_texts(sources: Sequence[str], max_bytes: int, seed: int, held_out_fraction: float) -> Iterator[str]:
    """Texts to train a tokenizer on: `max_bytes` in all, the same share from each source, none of them held out.

    A source with less than its share leaves the rest to those after it. `seed` and `held_out_fraction` must be those of
    the corpus; then no text here is one that `build_corpus` holds out.

    Raises:
        UsageError: a source is unknown.
        GLM5Error: a source has no document to train on, or none that fits into its share.
    """
    seen: set[bytes] = set()
    remaining = max_bytes
    opened = open_sources(sources)
    for number, source in enumerate(opened):
        dropped: Counter[DropReason] = Counter()
        documents = clean(source.documents(), source.kind, seen, dropped)
        training = (d for d in documents if not is_held_out(d.text, held_out_fraction, seed))
        share = remaining // (len(opened) - number)
        sample = sample_documents(training, share, seed)
        if not sample:
            raise GLM5Error(nothing_left(source.name, share, dropped))
        for document in sample:
            remaining -= byte_length(document.text)
            yield document.text


def nothing_left(source: str, limit: int | None, dropped: Counter[DropReason]) -> str:
    """The message for a source that ends with nothing to train on, with what became of its documents."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "none"
    within = f" within {limit} bytes" if limit is not None else ""
    return f"source {source!r} has no document to train on{within} (dropped: {reasons})"
