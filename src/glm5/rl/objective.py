"""What an RL update minimises, over packed rows of samples (train/trainer.py runs it like any other objective).

The trainer knows no algorithm and the losses know no model: here the two meet. Each token's log-probability under the
weights being trained is computed once, with its gradient; the loss decides from it, from the log-probability the
rollout engine recorded and from the advantage what the token counts (rl/losses.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE, token_log_probs
from glm5.recipe.rl import RLSection
from glm5.rl import losses
from glm5.train.objective import Losses, same_document


class PolicyRows(NamedTuple):
    """Packed samples, all [rows, T]. Position t holds what concerns the token *after* it: t predicts token t + 1.

    Attributes:
        input_ids, targets, document_ids, positions: int64, as in `MicroBatch`; `targets` is `IGNORE` where nothing is
            trained.
        advantages: fp32, of the sample the token is of.
        rollout_logprobs: fp32, recorded when the token was sampled.
        old_logprobs: fp32, under the weights the update began with; NaN where one optimiser step is made of the batch,
            so that these are the current ones.
        teacher_logprobs: fp32, NaN where there is no teacher.
        weights: fp32, what the token counts in the mean.
    """

    input_ids: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor
    advantages: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor
    teacher_logprobs: Tensor
    weights: Tensor


@dataclass(slots=True)
class PolicyStatistics:
    """Sums over the trained tokens of an update; divide by `tokens`."""

    tokens: float = 0.0
    entropy: float = 0.0
    kept: float = 0.0
    k3: float = 0.0  # estimates KL(rollout || trainer) of the engines' mismatch
    gap_max: float = 0.0
    teacher_kl: float = 0.0


class PolicyObjective:
    """Computes the loss of micro-batches; `statistics` collects what the update's record says."""

    def __init__(self, settings: RLSection, *, sparse: bool, loss_chunk_tokens: int = 4096) -> None:
        self.settings, self.sparse, self.chunk = settings, sparse, loss_chunk_tokens
        self.dtype = getattr(torch, settings.dtype)
        self.statistics = PolicyStatistics()

    def counts(self, batch: PolicyRows) -> Tensor:
        """What the micro-batch's tokens count together, fp32 [1]."""
        return batch.weights.sum()[None]

    def log_probs(self, model: Transformer, batch: PolicyRows) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Trained tokens' mask [rows, T], their log-probabilities and entropies [N], and the routers' loads."""
        output = model(
            batch.input_ids, batch.positions, same_document(batch.document_ids), sparse=self.sparse, dtype=self.dtype
        )
        mask = batch.targets != IGNORE
        hidden, targets = output.hidden[mask], batch.targets[mask]
        log_probs, entropy = token_log_probs(hidden, model.lm_head.weight, targets, self.chunk)
        return mask, log_probs, entropy, [routing.load for routing in output.routing]

    def __call__(self, model: Transformer, batch: PolicyRows, step_counts: Tensor, share: float) -> Losses:
        """Loss of one micro-batch; arguments as in `PretrainingObjective`."""
        settings = self.settings
        mask, log_probs, entropy, load = self.log_probs(model, batch)
        rollout, advantages, weights = batch.rollout_logprobs[mask], batch.advantages[mask], batch.weights[mask]
        old = batch.old_logprobs[mask]
        old = torch.where(old.isnan(), log_probs.detach(), old)
        teacher = batch.teacher_logprobs[mask]
        taught = ~teacher.isnan()
        if taught.any():
            advantages = torch.where(taught, losses.distillation_advantage(log_probs, teacher), advantages)
        per_token, kept = losses.policy_loss(
            settings.loss, log_probs, old, rollout, advantages,
            beta=settings.icepop_beta, eps_low=settings.eps_low, eps_high=settings.eps_high,
        )  # fmt: skip
        total = (per_token * weights).sum() / step_counts[0].clamp(min=1e-9)
        self._collect(log_probs.detach(), rollout, entropy, kept, teacher, taught)
        zero = total.detach().new_zeros(())
        stacked = torch.stack(load) if load else zero.new_zeros(0, 0)
        return Losses(total, (per_token * weights).sum().detach(), zero.new_zeros(0), zero, stacked)

    def _collect(
        self, log_probs: Tensor, rollout: Tensor, entropy: Tensor, kept: Tensor, teacher: Tensor, taught: Tensor
    ) -> None:
        statistics = self.statistics
        gap = log_probs - rollout
        statistics.tokens += log_probs.numel()
        statistics.entropy += float(entropy.sum())
        statistics.kept += float(kept.float().sum())
        statistics.k3 += float((gap.exp() - 1 - gap).sum())
        if gap.numel():
            statistics.gap_max = max(statistics.gap_max, float(gap.abs().max()))
        statistics.teacher_kl += float((log_probs - teacher)[taught].sum())
