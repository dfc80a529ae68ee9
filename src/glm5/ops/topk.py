"""Deterministic top-k with a stated tie rule.

The indexer's ReLU makes many scores exactly zero, so ties at the boundary are ordinary. GLM-5's report found that a
non-deterministic top-k ruins reinforcement learning within a few steps. The rule here: **higher score first, then
smaller position**; chosen positions are returned in ascending order. The same set comes out in training, prefill and
decode, on any device and at any batch size.
"""

import torch
from torch import Tensor


def topk_mask(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` best entries of every row.

    Args:
        scores: fp32 [..., S]; -inf marks entries that may not be chosen.
        k: how many to choose; a row with fewer finite entries gets all of them.

    Returns:
        bool [..., S].
    """
    allowed = scores > float("-inf")
    if k >= scores.shape[-1]:
        return allowed
    # torch.topk may order ties as it likes, but its k-th *value* is unique: everything above it is in, and of the
    # entries equal to it the leftmost fill what room is left.
    boundary = scores.topk(k, dim=-1).values[..., -1:]
    above = scores > boundary
    tied = scores == boundary
    room = k - above.sum(-1, keepdim=True)
    return (above | (tied & (tied.cumsum(-1) <= room))) & allowed


def mask_to_indices(mask: Tensor, k: int) -> Tensor:
    """Positions of the set entries of each row in ascending order, padded with -1 to width `min(k, S)`.

    Args:
        mask: bool [..., S] with at most `k` set entries in a row.

    Returns:
        int64 [..., min(k, S)].
    """
    size = mask.shape[-1]
    positions = torch.arange(size, device=mask.device).expand_as(mask)
    ordered = torch.where(mask, positions, size).sort(dim=-1).values[..., : min(k, size)]
    return ordered.masked_fill(ordered == size, -1)


def topk_indices(scores: Tensor, k: int) -> Tensor:
    """Positions of the `k` best entries, ascending, padded with -1: [..., min(k, S)]."""
    return mask_to_indices(topk_mask(scores, k), k)
