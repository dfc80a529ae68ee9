"""The two layers everything is made of: a linear map and a root-mean-square norm.

Weights may be kept in fp32 while activations are bf16 (training), or both may be bf16 (serving): each layer computes
in the dtype of what it is given. That makes mixed precision visible in the code instead of a mode that is on or off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm5.ops.norm import rms_norm


class Linear(nn.Linear):
    """`nn.Linear` that casts its weight to the input's dtype. [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain. [..., dim] -> [..., dim]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU feed-forward: down(silu(gate(x)) * up(x)). The dense layers, and the experts every token shares."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., hidden_size]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
