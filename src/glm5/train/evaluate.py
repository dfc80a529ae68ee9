"""Held-out bits per byte: how many bits the model needs for each byte of text it has never seen.

Unlike a loss per token it can be compared across vocabularies, with compressors and with other people's models. Every
token of a document is charged, its first (after the document border that begins it) and the border that ends it. Long
documents are read in windows that overlap by half, so that every token but a document's first few has half a window
of context.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glm5.data.documents import Document
from glm5.errors import GLM5Error
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE, token_nll
from glm5.text.tokenizer import Tokenizer
from glm5.train.parallel import World

ALL = "all"  # the figure over all sources together
_EVAL_ROWS = 32  # rows in one forward pass


@dataclass(slots=True)
class HeldOut:
    """Documents to score, laid into rows. Tensors are int64 [rows, T]."""

    input_ids: Tensor
    targets: Tensor  # IGNORE where the token was scored in an earlier window, and in the unused end of a row
    document_ids: Tensor
    positions: Tensor
    sources: Tensor  # index into `names`, for every position
    names: list[str]
    size: dict[str, int]  # bytes scored of each source


def take_bytes(documents: Sequence[Document], limit: int) -> list[Document]:
    """The first documents of each source up to `limit` bytes a source; the last is cut at a line end."""
    used: dict[str, int] = defaultdict(int)
    taken = []
    for document in documents:
        size = len(document.text.encode())
        room = limit - used[document.source]
        if room <= 0:
            continue
        text = document.text
        if size > room:
            text = text.encode()[:room].decode(errors="ignore")
            text = text[: text.rfind("\n") + 1] or text
        used[document.source] += size  # all of it: a source that had a document cut is full
        if text:
            taken.append(Document(text, document.source, document.license, document.path))
    return taken


def lay_out(documents: Sequence[Document], tokenizer: Tokenizer, context_length: int) -> HeldOut:
    """Cut documents into windows and fill rows with them, in order.

    Raises:
        GLM5Error: there is nothing to score.
    """
    if not documents:
        raise GLM5Error("no held-out documents: raise data.held_out_fraction or add documents")
    names = sorted({document.source for document in documents})
    size = dict.fromkeys(names, 0)
    rows: list[list[tuple[list[int], list[int], int]]] = [[]]
    used = 0
    for document in documents:
        size[document.source] += len(document.text.encode())
        ids = [tokenizer.eos_id, *tokenizer.encode(document.text), tokenizer.eos_id]
        for inputs, targets in _windows(ids, context_length):
            if used + len(inputs) > context_length:
                rows.append([])
                used = 0
            rows[-1].append((inputs, targets, names.index(document.source)))
            used += len(inputs)
    shape = (len(rows), context_length)
    input_ids, targets_ = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    document_ids, positions, sources = (
        np.full(shape, -1, np.int64),
        np.tile(np.arange(context_length), (len(rows), 1)),  # padding counts on, see data/sft_loader.py
        np.zeros(shape, np.int64),
    )
    for row, segments in enumerate(rows):
        start = 0
        for number, (inputs, targets, source) in enumerate(segments):
            part = slice(start, start + len(inputs))
            input_ids[row, part], targets_[row, part] = inputs, targets
            document_ids[row, part], positions[row, part], sources[row, part] = number, np.arange(len(inputs)), source
            start += len(inputs)
    tensors = [torch.from_numpy(array) for array in (input_ids, targets_, document_ids, positions, sources)]
    return HeldOut(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], names, size)


def _windows(ids: list[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of windows over one document; every token but the first is a target exactly once."""
    step = max(length // 2, 1)
    scored = 1  # ids[:scored] need no more scoring
    start = 0
    while scored < len(ids):
        inputs, targets = ids[start : start + length], ids[start + 1 : start + length + 1]
        inputs = inputs[: len(targets)]
        known = scored - (start + 1)
        yield inputs, [IGNORE] * known + targets[known:]
        scored = start + 1 + len(targets)
        start += step


@torch.no_grad()
def bits_per_byte(
    model: Transformer, held_out: HeldOut, world: World, *, dtype: torch.dtype, sparse: bool, loss_chunk_tokens: int
) -> tuple[dict[str, float], list[list[float]]]:
    """Score the held-out text. Every process calls this and gets the same answer.

    Returns:
        bits per byte by source and for `ALL`; and each MoE layer's share of slots for every expert.
    """
    total = len(held_out.input_ids)
    batches = -(-total // (_EVAL_ROWS * world.size))
    nats = torch.zeros(len(held_out.names), dtype=torch.float64)
    load: Tensor | None = None
    for number in range(batches):
        # Every process makes the same number of passes (sharded weights are gathered together); some may score nothing.
        start = (number * world.size + world.rank) * _EVAL_ROWS
        mine = list(range(start, min(start + _EVAL_ROWS, total)))
        rows = mine or [0]
        targets = held_out.targets[rows] if mine else torch.full_like(held_out.targets[rows], IGNORE)
        inputs = [t[rows].to(world.device) for t in (held_out.input_ids, held_out.positions, held_out.document_ids)]
        output = model(*inputs, sparse=sparse, dtype=dtype)
        nll = token_nll(
            output.hidden.flatten(0, 1), model.lm_head.weight, targets.flatten().to(world.device), loss_chunk_tokens
        ).double()
        nats.index_add_(0, held_out.sources[rows].flatten(), nll.cpu())
        if output.routing:
            seen = torch.stack([routing.load for routing in output.routing]).cpu() * bool(mine)
            load = seen if load is None else load + seen
    nats = world.sum(nats.to(world.device)).cpu()
    bits = {name: float(nats[i]) / math.log(2) / held_out.size[name] for i, name in enumerate(held_out.names)}
    bits[ALL] = float(nats.sum()) / math.log(2) / sum(held_out.size.values())
    shares: list[list[float]] = []
    if load is not None:
        load = world.sum(load.to(world.device)).cpu()
        shares = [[round(share, 5) for share in row] for row in (load / load.sum(-1, keepdim=True)).tolist()]
    return bits, shares
