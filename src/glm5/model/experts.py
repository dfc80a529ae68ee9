"""Mixture of experts: a sigmoid router with a selection bias, routed experts, and one expert every token shares.

    s = sigmoid(W_g x) in fp32        choose the top 8 of s + b        weight = s / sum of chosen s * 2.5

The bias b only decides *who* is chosen, never with what weight; the optimiser does not touch it, the balancing rule
moves it after every step (auxiliary-loss-free balancing, DeepSeek-V3 §2.1.2; GLM-4.5 §2.4 adds a small sequence-level
loss).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm5.model.config import ModelConfig
from glm5.model.layers import MLP
from glm5.ops.experts import grouped_experts


class Routing(NamedTuple):
    """What one MoE layer's router did in one forward pass.

    Attributes:
        load: fp32 [E], slots given to each expert.
        balance_loss: scalar, sequence-level balance loss (1 when perfectly even), mean over the batch.
    """

    load: Tensor
    balance_loss: Tensor


class Router(nn.Module):
    """Chooses experts for every token. Called `gate` in the checkpoint."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.experts = config.num_experts_per_tok, config.n_routed_experts
        self.norm, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(self.experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(self.experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Route.

        Args:
            x: [B, T, d].

        Returns:
            chosen experts int64 [B, T, k], their weights fp32 [B, T, k], and the routing statistics.
        """
        scores, chosen, weights = self.choose(x)
        return chosen, weights, self._statistics(scores, chosen)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The routing rule alone: fp32 scores [..., E], chosen experts int64 [..., k], their weights fp32 [..., k]."""
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(-1, chosen)
        if self.norm:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return scores, chosen, weights * self.scaling

    def _statistics(self, scores: Tensor, chosen: Tensor) -> Routing:
        """Load, and sum over experts of (share of slots * mean normalised score) for each sequence, averaged."""
        slots = F.one_hot(chosen, self.experts).sum(2).float()  # [B, T, E]
        share = slots.mean(1) * (self.experts / self.top_k)
        probability = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).mean(1)
        return Routing(slots.sum((0, 1)), (share * probability).sum(-1).mean())


class Experts(nn.Module):
    """The routed experts' weights, stacked: gate and up rows of one expert are adjacent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def muon_split(self) -> dict[str, tuple[int, ...]]:
        """Gate and up are two matrices that are only stored together."""
        width = self.gate_up_proj.shape[1] // 2
        return {"gate_up_proj": (width, width)}

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """[N, d] tokens, [N, k] choices and weights -> [N, d]."""
        return grouped_experts(x, self.gate_up_proj, self.down_proj, chosen, weights)


class MoE(nn.Module):
    """Routed experts plus the shared one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = MLP(config.hidden_size, shared) if shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """[B, T, d] -> [B, T, d], and what the router did."""
        chosen, weights, routing = self.gate(x)
        routed = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1)).view_as(x)
        return routed if self.shared_experts is None else routed + self.shared_experts(x), routing
