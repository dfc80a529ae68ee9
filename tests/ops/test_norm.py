"""RMS norm against torch's, and its dtypes."""

import pytest
import torch
import torch.nn.functional as F

from glm5.ops.norm import rms_norm


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_against_torch(eps: float) -> None:
    x, weight = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)) * 1e-2, torch.rand(48) + 0.5
    torch.testing.assert_close(rms_norm(x, weight, eps), F.rms_norm(x, (48,), weight, eps))


def test_bf16_activations_stay_bf16_but_their_mean_square_is_fp32() -> None:
    """Numbers whose squares overflow half precision still come out with mean square one."""
    x = torch.full((1, 512), 3e4, dtype=torch.float16)
    assert rms_norm(x, torch.ones(512), 1e-5).tolist() == [[1.0] * 512]
    assert rms_norm(x.bfloat16(), torch.ones(512), 1e-5).dtype == torch.bfloat16


def test_a_zero_row_stays_zero() -> None:
    assert rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).abs().max() == 0
