"""Expanded attention of a chunk of queries over everything before it, as matrix products over blocks of queries.

A block multiplies only the keys up to its own end, so the upper half of the square is never computed; the scores of a
block are the only temporary. The reference is `ops.attention.expanded_attention`.
"""

import torch
from torch import Tensor

_BLOCK = 64  # queries at a time


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, selected: Tensor | None) -> Tensor:
    """Causal attention of the last T of S positions.

    Args:
        q: [H, T, d] scaled queries; k: [H, S, d]; v: [H, S, d_v]. Query i sees keys 0 .. S - T + i.
        selected: bool [T, S], which of those each query may see, at least one; None means all of them.

    Returns:
        [H, T, d_v], softmax in fp32.
    """
    heads, length, _ = q.shape
    before = k.shape[1] - length
    out = v.new_empty(heads, length, v.shape[-1])
    future = torch.full((_BLOCK, _BLOCK), float("-inf"), device=q.device).triu(1)
    for start in range(0, length, _BLOCK):
        rows = slice(start, min(start + _BLOCK, length))
        size = rows.stop - start
        seen = before + rows.stop
        scores = torch.bmm(q[:, rows], k[:, :seen].transpose(1, 2)).float()
        if selected is None:
            scores[:, :, before + start :] += future[:size, :size]
        else:
            scores.masked_fill_(~selected[rows, :seen], float("-inf"))
        out[:, rows] = torch.bmm(scores.softmax(-1).to(v.dtype), v[:, :seen])
    return out
