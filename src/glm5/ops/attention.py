"""Attention cores: expanded (keys and values per head) and absorbed (one latent row per token, shared by all heads).

Both compute softmax(q·k · scale)·v over the visible keys. The absorbed form folds W_UK into the query and W_UV into the
output, so its "key" is the 512+64-wide cache row and its "value" the first 512 numbers of the same row (GLM-5 report
§2.1; DeepSeek-V2 §2.1). It reads each cache row once for all heads, which is what decoding wants; the expanded form
needs fewer operations per pair, which is what training and short prefill want.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def visibility(
    query_positions: Tensor, query_documents: Tensor, key_positions: Tensor, key_documents: Tensor
) -> Tensor:
    """Which keys each query may see: its own document, at or before its own position.

    Args:
        query_positions, query_documents: int [B, T].
        key_positions, key_documents: int [B, S].

    Returns:
        bool [B, T, S].
    """
    same = query_documents[:, :, None] == key_documents[:, None, :]
    return same & (query_positions[:, :, None] >= key_positions[:, None, :])


def expanded_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """Attention with a key and a value per head, by the fastest kernel that fits.

    Args:
        q: [B, H, T, d]; k: [B, G, S, d]; v: [B, G, S, d_v]. G divides H (grouped queries); MLA has G = H.
        visible: bool [B, T, S], or None for plain causal attention over T = S.

    Returns:
        [B, H, T, d_v].
    """
    square = q.shape[2] == k.shape[2] <= _BLOCKED_MAX_LENGTH and q.shape[1] == k.shape[1]
    gains = q.dtype == torch.bfloat16 or (torch.is_grad_enabled() and q.requires_grad)
    if q.device.type == "cpu" and square and gains:
        return _BlockedCausalAttention.apply(q, k, v, visible, scale)
    width = v.shape[-1]
    if width < q.shape[-1] and q.device.type == "cpu":
        # The fused CPU kernel wants equal widths; zero columns cost less than falling back to materialised scores.
        v = F.pad(v, (0, q.shape[-1] - width))
    mask = None if visible is None else visible[:, None]
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=visible is None, scale=scale, enable_gqa=grouped)[
        ..., :width
    ]


_BLOCK = 64  # queries at a time
_BLOCKED_MAX_LENGTH = 2048  # beyond it, keeping the probabilities for backward costs too much memory


class _BlockedCausalAttention(torch.autograd.Function):
    """Causal attention as matrix products over blocks of queries, probabilities kept for backward.

    On CPU the fused kernel of torch runs at a fraction of the speed of plain matrix products, above all in bf16
    (benchmarks/kernels.py). A block of queries multiplies only the keys up to its own end, so about half the square
    is never computed: no query may see a key that stands after it in the row. Softmax reads and writes the
    activations' dtype and accumulates in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
        batch, heads, length, _ = q.shape
        q = (q * scale).flatten(0, 1)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        out = v.new_empty(batch * heads, length, v.shape[-1])
        future = torch.full((_BLOCK, _BLOCK), float("-inf"), dtype=q.dtype).triu(1)
        hidden = (
            None if visible is None else torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
        )
        probabilities = []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))
            if hidden is None:
                scores[:, :, start:] += future[: end - start, : end - start]
            else:
                scores.view(batch, heads, end - start, end).add_(hidden[:, None, start:end, :end])
            probabilities.append(scores.softmax(-1))
            out[:, start:end] = torch.bmm(probabilities[-1], v[:, :end])
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.shape, ctx.scale = (batch, heads), scale
        return out.unflatten(0, (batch, heads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *probabilities = ctx.saved_tensors
        grad = grads[0].flatten(0, 1)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start, p in zip(range(0, q.shape[1], _BLOCK), probabilities, strict=True):
            end = start + p.shape[1]
            rows = slice(start, end)
            grad_v[:, :end] += torch.bmm(p.transpose(1, 2), grad[:, rows])
            grad_p = torch.bmm(grad[:, rows], v[:, :end].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, rows] = torch.bmm(grad_scores, k[:, :end])
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q[:, rows])
        grads_out = (grad_q.mul_(ctx.scale), grad_k.to(k.dtype), grad_v.to(v.dtype))
        return *(g.unflatten(0, ctx.shape) for g in grads_out), None, None


def absorbed_attention(q: Tensor, rows: Tensor, visible: Tensor, value_width: int, scale: float) -> Tensor:
    """Attention of all heads over shared latent rows, softmax in fp32.

    Args:
        q: [B, T, H, r] queries in latent space (latent part, then rotary part).
        rows: [B, S, r] cache rows.
        visible: bool [B, T, S]; every query sees at least one key.
        value_width: how many leading numbers of a row are its value.

    Returns:
        [B, T, H, value_width].
    """
    scores = torch.einsum("bthr,bsr->bhts", q, rows).float() * scale
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("bhts,bsv->bthv", weights, rows[..., :value_width])


def sparse_absorbed_attention(q: Tensor, rows: Tensor, indices: Tensor, value_width: int, scale: float) -> Tensor:
    """As `absorbed_attention`, over the gathered rows only: work grows with k, not with S.

    Args:
        indices: int64 [B, T, k], ascending, -1 = nothing; every query has at least one index.
    """
    batch, length, k = indices.shape
    flat = indices.clamp(min=0).view(batch, length * k, 1).expand(-1, -1, rows.shape[-1])
    chosen = rows.gather(1, flat).view(batch, length, k, -1)
    scores = torch.einsum("bthr,btkr->bthk", q, chosen).float() * scale
    weights = scores.masked_fill((indices < 0)[:, :, None], float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("bthk,btkv->bthv", weights, chosen[..., :value_width])
