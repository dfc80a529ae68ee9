"""Absorbed attention over rows picked from a paged cache: decoding, and sparse prefill.

Every query reads only the cache rows it is given, wherever they lie; work and memory grow with their number, not with
the length of the context (GLM-5 report §2.1.1). The reference is `ops.attention.absorbed_attention`.
"""

import torch
from torch import Tensor

_GATHER_ELEMENTS = 1 << 21  # of gathered rows alive at once (8 MB in fp32): they should still be in cache when re-read


def gathered_attention(q: Tensor, pool: Tensor, slots: Tensor, bias: Tensor | None, value_width: int) -> Tensor:
    """softmax(q · rows + bias) · rows, softmax in fp32.

    Args:
        q: [B, n, H, r] scaled queries in latent space; the n queries of a row of `slots` share its keys.
        pool: [slots, r] one layer's cache.
        slots: int64 [B, K] rows of the pool; masked places may hold any valid slot.
        bias: fp32 [B, n, K], 0 or -inf, or None where everything is visible.
        value_width: how many leading numbers of a row are its value.

    Returns:
        [B, n, H, value_width].
    """
    batch, queries, heads, width = q.shape
    keys = slots.shape[1]
    out = q.new_empty(batch, queries, heads, value_width)
    step = max(1, _GATHER_ELEMENTS // (keys * width))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        rows = pool.index_select(0, slots[part].reshape(-1)).view(-1, keys, width)
        out[part] = _attend(q[part], rows, None if bias is None else bias[part], value_width)
    return out


def contiguous_attention(q: Tensor, rows: Tensor, bias: Tensor | None, value_width: int) -> Tensor:
    """As `gathered_attention` for one sequence whose rows lie in one stretch: they are read in place.

    Args:
        q: [1, n, H, r]; rows: [K, r]; bias: [1, n, K] or None.
    """
    return _attend(q, rows[None], bias, value_width)


def _attend(q: Tensor, rows: Tensor, bias: Tensor | None, value_width: int) -> Tensor:
    batch, queries, heads, width = q.shape
    keys = rows.shape[1]
    scores = torch.bmm(q.reshape(batch, queries * heads, width), rows.transpose(1, 2)).float()
    if bias is not None:
        scores.view(batch, queries, heads, keys).add_(bias[:, :, None])
    weights = scores.softmax(-1).to(rows.dtype)
    return torch.bmm(weights, rows[..., :value_width]).view(batch, queries, heads, value_width)
