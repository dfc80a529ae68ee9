"""Block-quantised FP8 weights, as the released FP8 checkpoints store them.

`X.weight` is e4m3; `X.weight_scale_inv` holds one fp32 factor for every 128 x 128 block. Despite its name the factor
*multiplies*. The last block of a row or column may be partial (kv_a_proj has 576 rows).
"""

import torch
from torch import Tensor

BLOCK = 128
_E4M3_MAX = 448.0


def dequantize_blocks(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """Undo block quantisation.

    Args:
        weight: e4m3 [rows, cols].
        scale_inv: fp32 [ceil(rows / 128), ceil(cols / 128)].

    Returns:
        fp32 [rows, cols].
    """
    rows, cols = weight.shape
    spread = scale_inv.float().repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    return weight.float() * spread


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise [rows, cols] to e4m3 with one scale a block; returns the weight and its `scale_inv`."""
    rows, cols = weight.shape
    pad = (0, -cols % BLOCK, 0, -rows % BLOCK)
    blocks = torch.nn.functional.pad(weight.float(), pad).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = (blocks.abs().amax((1, 3)) / _E4M3_MAX).clamp(min=1e-12)
    quantized = (blocks / scale[:, None, :, None]).clamp(-_E4M3_MAX, _E4M3_MAX)
    return quantized.flatten(2, 3).flatten(0, 1)[:rows, :cols].to(torch.float8_e4m3fn), scale
