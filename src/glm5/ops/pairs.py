"""Interleaved rotary embedding as one complex product: (x[2i] + x[2i+1] i) e^{iθ}, the pairs left where they are.

`ops.rotary.rotate_interleaved` writes [evens | odds] instead. Queries and keys rotated by the same function have the
same dot products either way; they must only never be mixed. Here a rotation is three small operations instead of
seven, which is what a decoding step on a CPU feels.
"""

import torch
from torch import Tensor

from glm5.ops.rotary import rotary_tables


def rotary_phases(positions: Tensor, dim: int, theta: float) -> Tensor:
    """e^{iθ} of every pair: int [N] -> complex64 [N, 1, dim / 2]."""
    cos, sin = rotary_tables(positions[None], dim, theta)
    return torch.complex(cos[0], sin[0])[:, None]


def rotate_pairs(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]).

    Args:
        x: [N, h, dim], any float dtype; the product is fp32.
        phases: complex64 [N, 1, dim / 2].
    """
    pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phases).flatten(-2).to(x.dtype)
