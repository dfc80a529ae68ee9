"""Rotary position embedding in the two layouts the GLM family uses.

GLM-5 rotates *interleaved* pairs (x0, x1), (x2, x3), ... in its attention **and** in its indexer; GLM-4.5's
grouped-query attention rotates half-split pairs (x0, x[d/2]), ... Using the wrong one in the indexer is invisible
until the context outgrows top-k, which is why each layout has its own function and neither is a default.

The interleaved rotation writes its result half-split, [evens | odds]: queries and keys are permuted alike, so every dot
product is unchanged and the pairs need not be woven together again.
"""

from functools import lru_cache

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every pair's angle.

    Args:
        positions: integer positions, [B, T].
        dim: rotary width; dim / 2 pairs.
        theta: base of the frequencies.

    Returns:
        cos, sin: fp32, each [B, T, dim / 2].
    """
    angles = positions[..., None].float() * _inverse_frequency(dim, theta, positions.device)
    return angles.cos(), angles.sin()


@lru_cache(maxsize=64)
def _inverse_frequency(dim: int, theta: float, device: torch.device) -> Tensor:
    """Kept, because a decoding step of a small network feels every operation: fp32 [dim / 2]."""
    # The exponents are spelled out in fp32 exactly as the released code does: bitwise equal tables, not just close
    # ones.
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    return 1.0 / (theta**exponent)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (x[2i], x[2i+1]); the result is laid out [evens | odds].

    Args:
        x: [B, T, H, dim].
        cos, sin: [B, T, dim / 2].
    """
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (x[i], x[i + dim/2]); same shapes as `rotate_interleaved`."""
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
