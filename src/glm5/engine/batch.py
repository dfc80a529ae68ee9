"""The tokens of one step, laid flat, and how each stretch of them attends.

Three kinds of attention, chosen for each sequence from its lengths alone:

| kind | when | form |
|---|---|---|
| dense group | few queries, all visible keys fit `index_topk` | absorbed, sequences of like length together |
| sparse rows | few queries, more keys than `index_topk` | indexer, then absorbed over the gathered rows |
| chunk | a stretch of a prompt | expanded; beyond `index_topk` masked by the selection, or gathered when cheaper |

Where two apply they give the same numbers (tests/engine/test_forward.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from glm5.engine.cache import PagedCache
from glm5.model.config import ModelConfig
from glm5.ops.pairs import rotary_phases

FEW_QUERIES = 17  # one token and at most sixteen drafts


@dataclass(frozen=True, slots=True)
class Span:
    """The new positions of one sequence in this step.

    Attributes:
        ids: new tokens; `start` is the position of the first.
        pages: of the sequence, enough for all positions up to the last new one.
    """

    ids: Sequence[int]
    start: int
    pages: Sequence[int]

    @property
    def end(self) -> int:
        """Keys the last new position sees."""
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A span placed in the batch.

    Attributes:
        rows: where its positions are.
        slots: int64 [end], of all positions so far.
        stretch: the same as a slice where the pages lie side by side: rows can then be read in place.
    """

    rows: slice
    start: int
    slots: Tensor
    stretch: slice | None

    @property
    def end(self) -> int:
        """Keys the last new position sees."""
        return self.slots.shape[0]

    def read(self, pool: Tensor) -> Tensor:
        """This sequence's rows of one layer's cache, [end, width]."""
        return pool[self.stretch] if self.stretch is not None else pool.index_select(0, self.slots)


@dataclass(frozen=True, slots=True)
class DenseGroup:
    """Sequences with equally many queries and like length, padded to the longest.

    Attributes:
        slots: int64 [B, K].
        bias: fp32 [B, n, K], -inf behind each query's own position; None where nothing is hidden.
        stretch: as in `Context`, for a group of one.
    """

    rows: slice
    queries: int
    slots: Tensor
    bias: Tensor | None
    stretch: slice | None


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    Attributes:
        ids, slots: int64 [N], tokens and where their rows are written.
        phases: complex64 [N, 1, rope / 2].
        order: for each span as given, its rows.
        contexts: all spans, in the order of their rows.
        few: rows [0, few) belong to spans of few queries and are computed in latent space.
        dense, sparse, chunks: the three kinds of attention.
        selects: whether some context must select.
    """

    ids: Tensor
    slots: Tensor
    phases: Tensor
    order: list[slice]
    contexts: list[Context]
    few: int
    dense: list[DenseGroup]
    sparse: list[Context]
    chunks: list[Context]
    selects: bool


def build_batch(spans: Sequence[Span], config: ModelConfig, cache: PagedCache) -> Batch:
    """Lay spans flat: those with few queries first, like beside like."""
    topk = config.index_topk if config.has_indexer else config.max_position_embeddings + FEW_QUERIES

    def kind(span: Span) -> tuple[bool, bool, int, int]:
        queries = len(span.ids)
        return queries > FEW_QUERIES, span.end > topk, queries, span.end.bit_length()

    arranged = sorted(range(len(spans)), key=lambda i: (*kind(spans[i]), i))
    order = [slice(0, 0)] * len(spans)
    contexts: list[Context] = []
    row = 0
    for i in arranged:
        span = spans[i]
        order[i] = slice(row, row + len(span.ids))
        contexts.append(_context(span, order[i], cache.page_size))
        row += len(span.ids)

    dense: list[DenseGroup] = []
    sparse: list[Context] = []
    chunks: list[Context] = []
    for (is_chunk, selects, *_), alike in groupby(zip(arranged, contexts), key=lambda pair: kind(spans[pair[0]])):
        group = [context for _, context in alike]
        if is_chunk:
            chunks += group
        elif selects:
            sparse += group
        else:
            dense.append(_dense_group(group))

    ids = torch.tensor([token for i in arranged for token in spans[i].ids])
    positions = torch.cat([torch.arange(context.start, context.end) for context in contexts])
    slots = torch.cat([context.slots[context.start :] for context in contexts])
    phases = rotary_phases(positions, config.qk_rope_head_dim, config.rope_theta)
    few = chunks[0].rows.start if chunks else row
    any_selects = bool(sparse) or any(context.end > topk for context in chunks)
    return Batch(ids, slots, phases, order, contexts, few, dense, sparse, chunks, any_selects)


def _context(span: Span, rows: slice, page_size: int) -> Context:
    pages = span.pages[: -(-span.end // page_size)]
    first = pages[0] * page_size
    if list(pages) == list(range(pages[0], pages[0] + len(pages))):
        return Context(rows, span.start, torch.arange(first, first + span.end), slice(first, first + span.end))
    slots = (torch.tensor(pages)[:, None] * page_size + torch.arange(page_size)).view(-1)[: span.end]
    return Context(rows, span.start, slots, None)


def _dense_group(group: list[Context]) -> DenseGroup:
    longest = max(context.end for context in group)
    queries = group[0].end - group[0].start
    rows = slice(group[0].rows.start, group[-1].rows.stop)
    if len(group) == 1 and queries == 1:
        return DenseGroup(rows, 1, group[0].slots[None], None, group[0].stretch)
    slots = torch.zeros(len(group), longest, dtype=torch.int64)
    for i, context in enumerate(group):
        slots[i, : context.end] = context.slots
    seen = torch.tensor([[context.start + j for j in range(queries)] for context in group])
    hidden = torch.arange(longest) > seen[..., None]
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    return DenseGroup(rows, queries, slots, bias, group[0].stretch if len(group) == 1 else None)
