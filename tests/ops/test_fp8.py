"""Block quantisation: what it may lose, and the meaning of its scales."""

import pytest
import torch
from torch import Tensor

from glm5.ops.fp8 import BLOCK, dequantize_blocks, quantize_blocks

SHAPES = [(1, 1), (128, 128), (576, 200), (130, 257), (3, 300)]  # 576 rows: a latent row of the released model


def weight(rows: int, cols: int) -> Tensor:
    """Blocks of very different size, as outlier columns make them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, cols, generator=generator) * torch.logspace(-3, 1, cols)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_error_is_half_a_step_of_e4m3(shape: tuple[int, int]) -> None:
    """Three mantissa bits round by 2^-4 of a number; below the smallest normal, 2^-6, steps are even: 2^-10 of the
    scale."""
    x = weight(*shape)
    quantized, scale = quantize_blocks(x)
    assert quantized.dtype == torch.float8_e4m3fn
    assert quantized.shape == x.shape
    assert scale.shape == tuple(-(-size // BLOCK) for size in shape)
    spread = scale.repeat_interleave(BLOCK, 0)[: shape[0]].repeat_interleave(BLOCK, 1)[:, : shape[1]]
    error = (dequantize_blocks(quantized, scale) - x).abs()
    assert (error <= torch.maximum(x.abs() * 2**-4, spread * 2**-10) * 1.001).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantise_against_a_loop_over_numbers(shape: tuple[int, int]) -> None:
    quantized, _ = quantize_blocks(weight(*shape))
    scale = torch.rand([-(-size // BLOCK) for size in shape], generator=torch.Generator().manual_seed(1)) + 0.5
    numbers, factors, found = quantized.float().tolist(), scale.tolist(), dequantize_blocks(quantized, scale)
    expected = [[x * factors[i // BLOCK][j // BLOCK] for j, x in enumerate(row)] for i, row in enumerate(numbers)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_largest_number_of_a_block_survives() -> None:
    x = weight(200, 300)
    again = dequantize_blocks(*quantize_blocks(x))
    for mine, theirs in zip(again.split(BLOCK), x.split(BLOCK), strict=True):
        for block, original in zip(mine.split(BLOCK, 1), theirs.split(BLOCK, 1), strict=True):
            torch.testing.assert_close(block.abs().max(), original.abs().max())


def test_zeros_stay_zeros() -> None:
    quantized, scale = quantize_blocks(torch.zeros(130, 5))
    assert (scale > 0).all()
    assert not dequantize_blocks(quantized, scale).any()
