"""What reinforcement learning minimises, one short function an equation, on 1-D tensors over tokens.

    icepop           −pop(ρ) · min(r A, clip(r) A)          GLM-5 report §3.2, eq. 1: GRPO with IcePop
    double_sided     −f(r) · A · log π                      §3.3, eqs. 3–5: direct double-sided importance sampling
    tis              −min(ρ, β) · min(r A, clip(r) A)       truncated importance sampling: large ρ capped, not dropped
    policy_gradient  −A · log π                             REINFORCE
    distillation     icepop with A = log π_teacher − log π  §3.5, eq. 2: on-policy cross-stage distillation

π is the trainer's policy now, π_old the one that began this update, both computed by the trainer; π_rollout what the
engine recorded while sampling. ρ = π_old / π_rollout is the gap between two programs with the same weights, r what
the update has changed. Weights in front of a loss (pop, f, min(ρ, β), A) are constants to the gradient. Every loss
returns its value per token, not reduced, and which tokens it kept. Reductions and diagnostics are below them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.rl.records import TrainingSample

TokenLoss = tuple[Tensor, Tensor]  # [N] loss of each token, bool [N] whether it was kept

_MOST_LOG_RATIO = 20.0  # beyond it exp overflows, and a masked token's gradient would be 0 · inf = nan


def icepop(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    beta: float,
    eps_low: float,
    eps_high: float,
) -> TokenLoss:
    """GRPO with IcePop, eq. 1: tokens on which trainer and engine disagree are left out, not clipped.

    pop(ρ) = ρ if 1 / beta ≤ ρ ≤ beta, else 0.
    """
    rho = _ratio(old_logprobs, rollout_logprobs).detach()
    kept = (rho >= 1 / beta) & (rho <= beta)
    surrogate = _clipped(logprobs, old_logprobs, advantages, eps_low, eps_high)
    return -torch.where(kept, rho, 0.0) * surrogate, kept


def double_sided(
    logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, eps_low: float, eps_high: float
) -> TokenLoss:
    """Direct double-sided importance sampling, eqs. 3–5: no old policy, which nobody knows in an asynchronous run.

    f(r) = r if 1 − eps_low < r < 1 + eps_high, else 0, with r = π / π_rollout: both bounds are strict, and hold
    whatever the sign of the advantage. The report prints an objective; this is its negative.
    """
    ratio = _ratio(logprobs, rollout_logprobs).detach()
    kept = (ratio > 1 - eps_low) & (ratio < 1 + eps_high)
    return -torch.where(kept, ratio, 0.0) * advantages * logprobs, kept


def tis(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    beta: float,
    eps_low: float,
    eps_high: float,
) -> TokenLoss:
    """Truncated importance sampling: the gap between trainer and engine weighs a token, by `beta` at most."""
    rho = _ratio(old_logprobs, rollout_logprobs).detach()
    surrogate = _clipped(logprobs, old_logprobs, advantages, eps_low, eps_high)
    return -rho.clamp(max=beta) * surrogate, torch.ones_like(rho, dtype=torch.bool)


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> TokenLoss:
    """REINFORCE: exact if the engine's policy is the trainer's."""
    return -advantages * logprobs, torch.ones_like(logprobs, dtype=torch.bool)


def distillation_advantage(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Eq. 2: log π_teacher − log π, a constant. The expected policy gradient is then that of KL(π ‖ π_teacher)."""
    return (teacher_logprobs - logprobs).detach()


def topk_reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(π ‖ π_teacher) over k listed tokens, with all others together as one more.

    Without that tail the student could lower the sum by giving all listed tokens less. It never exceeds the KL over
    the whole vocabulary, and reaches it when every token is listed.

    Args:
        logprobs: [N, k] of the listed tokens under the student, with gradient; distinct tokens in each row.
        teacher_logprobs: [N, k] of the same tokens under the teacher.

    Returns:
        [N] nats.
    """
    listed = (logprobs.exp() * (logprobs - teacher_logprobs)).sum(-1)
    tail, teacher_tail = _log_rest(logprobs), _log_rest(teacher_logprobs)
    return listed + tail.exp() * (tail - teacher_tail)


# What a training sample's `loss_kind` may name. Distillation is eq. 1 with `distillation_advantage` for its advantages.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float, float, float], TokenLoss]] = {
    "icepop": icepop,
    "double_sided": lambda new, old, rollout, a, beta, low, high: double_sided(new, rollout, a, low, high),
    "tis": tis,
    "policy_gradient": lambda new, old, rollout, a, beta, low, high: policy_gradient(new, a),
    "distillation": icepop,
}


def policy_loss(
    kind: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    eps_low: float,
    eps_high: float,
) -> TokenLoss:
    """The loss called `kind`, by whatever of the arguments it needs.

    Args:
        logprobs: [N] of the trained tokens under the weights now, in nats, with gradient.
        old_logprobs: [N] under those that began the update; in a fully on-policy one `logprobs.detach()`.
        rollout_logprobs: [N] as the engine recorded them.
        advantages: [N].
        beta: the gap ρ is kept from 1 / beta to beta, in tis capped at beta. GLM-5: 2.
        eps_low, eps_high: r is clipped to, in double_sided must lie within, 1 − eps_low and 1 + eps_high. GLM-5: 0.2
            and 0.28 for reasoning; for agents not published.

    Raises:
        UsageError: there is no such loss.
    """
    if kind not in LOSSES:
        raise UsageError(f"no loss is called {kind}; there are: {', '.join(LOSSES)}")
    return LOSSES[kind](logprobs, old_logprobs, rollout_logprobs, advantages, beta, eps_low, eps_high)


def token_mean(samples: Sequence[TrainingSample]) -> list[float]:
    """What one trained token of each sample counts if all tokens of the batch count alike (times their weight).

    The factors are known before the first forward pass, so micro-batches and processes just add up:
    `loss = sum(factor[i] * loss_of_tokens[i].sum())`. Over the tokens of the batch they sum to 1.

    Raises:
        GLM5Error: the batch is empty or has no weight.
    """
    total = _positive(sum(sample.weight * sample.trained_tokens for sample in samples))
    return [sample.weight / total for sample in samples]


def sample_mean(samples: Sequence[TrainingSample]) -> list[float]:
    """As `token_mean`, if all rollouts count alike whatever their length: the 1/G Σ 1/|y| Σ of eq. 1.

    The samples that one rollout was forked into share its rollout id, and its one part.
    """
    lengths: dict[str, int] = {}
    for sample in samples:
        lengths[sample.rollout_id] = lengths.get(sample.rollout_id, 0) + sample.trained_tokens
    total = _positive(sum({sample.rollout_id: sample.weight for sample in samples}.values()))
    return [sample.weight / (total * lengths[sample.rollout_id]) for sample in samples]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far trainer and rollout engine are apart on the tokens that were sampled.

    The gap itself is told beside the masked share, because a fixed band may mask fewer tokens while the gap grows.

    Attributes:
        kl_k1, kl_k3: estimates of KL(π_rollout ‖ π) in nats: mean of −d, and of exp(d) − 1 − d, which is never
            negative and varies less; d = log π − log π_rollout.
        mean_abs, max_abs: of d.
        masked_share: of the tokens, those the loss did not keep.
    """

    kl_k1: float
    kl_k3: float
    mean_abs: float
    max_abs: float
    masked_share: float


@torch.no_grad()
def mismatch(logprobs: Tensor, rollout_logprobs: Tensor, kept: Tensor) -> Mismatch:
    """Measure it over all trained tokens of a step, [N] each.

    Raises:
        GLM5Error: there are none.
    """
    if not logprobs.numel():
        raise GLM5Error("no token was trained, so there is nothing to compare with the rollouts")
    gap = logprobs.double() - rollout_logprobs.double()
    k3 = gap.expm1() - gap
    figures = (-gap.mean(), k3.mean(), gap.abs().mean(), gap.abs().max(), 1 - kept.double().mean())
    return Mismatch(*(float(figure) for figure in figures))


def _ratio(logprobs: Tensor, base: Tensor) -> Tensor:
    return (logprobs - base).clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO).exp()


def _clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Tensor:
    """PPO's surrogate, to be maximised: min(r A, clip(r, 1 − eps_low, 1 + eps_high) A)."""
    ratio = _ratio(logprobs, old_logprobs.detach())
    return torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)


def _log_rest(logprobs: Tensor) -> Tensor:
    """Log of the probability that is not listed; never -inf, so that an empty tail adds 0 and not nan."""
    listed = logprobs.exp().sum(-1)
    return torch.log1p(-listed.clamp(max=1 - torch.finfo(listed.dtype).eps))


def _positive(total: float) -> float:
    if not (total > 0 and math.isfinite(total)):
        raise GLM5Error("the batch is empty: no token of it has any weight")
    return total
