"""Root-mean-square normalisation, as the released GLM-5 computes it: statistics in fp32, gain in the input's dtype."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `weight * x / rms(x)` over the last dimension, in `x`'s dtype.

    Args:
        x: [..., d].
        weight: [d], any float dtype; used in `x`'s dtype, so that bf16 activations stay bf16 under fp32 weights.
        eps: added to the mean square (1e-5 for block norms, 1e-6 for the latent norms of GLM-5).
    """
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)
