"""Newton–Schulz against the singular value decomposition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.ops.newton_schulz import orthogonalise


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    """[rows, cols] with singular values between 0.1 and 1, times a scale the result must not depend on."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(rows, cols, generator=generator), full_matrices=False)
    return 7.0 * (u * torch.linspace(1.0, 0.1, min(rows, cols))) @ vt


def one(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return orthogonalise(x[None], dtype)[0]


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 24), cols=st.integers(1, 24), seed=st.integers(0, 1000))
def test_singular_values_go_to_one_and_directions_stay(rows: int, cols: int, seed: int) -> None:
    """Near U Vᵀ: same singular vectors, every singular value within the coefficients' band."""
    x = matrix(rows, cols, seed)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    core = u.T @ one(x) @ vt.T
    values = core.diagonal()
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(core, values.diag(), atol=1e-3, rtol=0)


def test_bf16_is_enough() -> None:
    x = matrix(32, 48)
    values = torch.linalg.svdvals(one(x, torch.bfloat16))
    assert one(x, torch.bfloat16).dtype == torch.float32
    assert 0.6 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_each_matrix_of_a_batch_is_treated_alone(shape: tuple[int, int]) -> None:
    scales = (1e-3, 1.0, 1e3)
    batch = torch.stack([scale * matrix(*shape, seed) for seed, scale in enumerate(scales)])
    torch.testing.assert_close(orthogonalise(batch, torch.float32), torch.stack([one(x) for x in batch]))


def test_tall_is_wide_transposed() -> None:
    torch.testing.assert_close(one(matrix(20, 12)), one(matrix(20, 12).T).T)


def test_zero_stays_zero() -> None:
    assert not one(torch.zeros(4, 6)).any()


def test_the_scale_of_the_input_does_not_matter() -> None:
    torch.testing.assert_close(one(matrix(8, 8)), one(1e4 * matrix(8, 8)))
