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

    kinds = [kind(span) for span in spans]
    arranged = sorted(range(len(spans)), key=lambda i: (kinds[i], i))
    order = [slice(0, 0)] * len(spans)
    row = 0
    for i in arranged:
        order[i] = slice(row, row + len(spans[i].ids))
        row += len(spans[i].ids)

    device = cache.device
    contexts: list[Context] = []
    dense: list[DenseGroup] = []
    sparse: list[Context] = []
    chunks: list[Context] = []
    for (is_chunk, selects, *_), alike in groupby(arranged, key=lambda i: kinds[i]):
        members = list(alike)
        table = _slot_table([spans[i] for i in members], cache.page_size, device)
        group = [
            Context(order[i], spans[i].start, slots[: spans[i].end], _stretch(spans[i], cache.page_size))
            for i, slots in zip(members, table.unbind(0))
        ]
        contexts += group
        if is_chunk:
            chunks += group
        elif selects:
            sparse += group
        else:
            dense.append(_dense_group(group, table))

    ids = torch.tensor([token for i in arranged for token in spans[i].ids], device=device)
    positions = torch.tensor([p for i in arranged for p in range(spans[i].start, spans[i].end)], device=device)
    slots = torch.cat([context.slots[context.start :] for context in contexts])
    phases = rotary_phases(positions, config.qk_rope_head_dim, config.rope_theta)
    few = chunks[0].rows.start if chunks else row
    any_selects = bool(sparse) or any(context.end > topk for context in chunks)
    return Batch(ids, slots, phases, order, contexts, few, dense, sparse, chunks, any_selects)


def _slot_table(spans: list[Span], page_size: int, device: torch.device) -> Tensor:
    """Slots of all positions, int64 [B, longest]; behind a sequence's end come those of page 0."""
    longest = max(span.end for span in spans)
    count = -(-longest // page_size)
    pages = [[*span.pages[:count], *[0] * (count - len(span.pages))] for span in spans]
    first = torch.tensor(pages, device=device)[..., None] * page_size
    return (first + torch.arange(page_size, device=device)).flatten(1)[:, :longest]


def _stretch(span: Span, page_size: int) -> slice | None:
    """The slots as a slice, if the pages lie side by side."""
    pages = span.pages[: -(-span.end // page_size)]
    first, count = pages[0], len(pages)
    # The last page tells most scattered sequences at once.
    if pages[-1] != first + count - 1 or list(pages) != list(range(first, first + count)):
        return None
    return slice(first * page_size, first * page_size + span.end)


def _dense_group(group: list[Context], table: Tensor) -> DenseGroup:
    queries = group[0].end - group[0].start
    rows = slice(group[0].rows.start, group[-1].rows.stop)
    stretch = group[0].stretch if len(group) == 1 else None
    if len(group) == 1 and queries == 1:
        return DenseGroup(rows, 1, table, None, stretch)
    first = torch.tensor([[context.start] for context in group], device=table.device)
    seen = first + torch.arange(queries, device=table.device)
    hidden = torch.arange(table.shape[1], device=table.device) > seen[..., None]
    bias = torch.zeros(hidden.shape, device=table.device).masked_fill_(hidden, float("-inf"))
    return DenseGroup(rows, queries, table, bias, stretch)
