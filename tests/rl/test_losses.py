"""Losses against what they stand for: finite differences of the objective whose gradient each must have.

With a few words in the vocabulary an expectation over sampled tokens is a sum that can be written out: every word
once, weighted by its probability under the policy that sampled. No sampling noise is in these tests.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.rl.losses import (
    LOSSES,
    distillation_advantage,
    double_sided,
    icepop,
    mismatch,
    policy_gradient,
    policy_loss,
    sample_mean,
    tis,
    token_mean,
    topk_reverse_kl,
)
from glm5.rl.records import TrainingSample

BOUNDS = {"beta": 2.0, "eps_low": 0.2, "eps_high": 0.28}
WIDE = {"beta": 1e6, "eps_low": 1.0, "eps_high": 1e6}  # nothing is masked or clipped


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def difference(objective: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Gradient by central differences."""
    sides = torch.eye(len(at), dtype=at.dtype) * step
    return torch.stack([(objective(at + side) - objective(at - side)) / (2 * step) for side in sides])


def policies() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of the trainer's policy, and log-probabilities of the rollouts', of a teacher; advantages. [5] each."""
    draw = torch.Generator().manual_seed(7)
    logits, noise, teacher, advantages = (torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(4))
    return logits, (logits + 0.3 * noise).log_softmax(-1), teacher.log_softmax(-1), advantages


@pytest.mark.parametrize("kind", ["icepop", "tis", "double_sided"])
def test_off_policy_losses_have_the_gradient_of_the_expected_advantage(kind: str) -> None:
    logits, rollout, _, advantages = policies()
    theta = logits.clone().requires_grad_()
    logprobs = theta.log_softmax(-1)
    loss, kept = policy_loss(kind, logprobs, logprobs.detach(), rollout, advantages, **WIDE)
    assert kept.all()
    (rollout.exp() * loss).sum().backward()
    wanted = difference(lambda at: (at.softmax(-1) * advantages).sum(), logits)
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, -wanted, rtol=1e-6, atol=1e-9)


def test_the_policy_gradient_is_that_of_the_expected_advantage_on_policy() -> None:
    logits, _, _, advantages = policies()
    theta = logits.clone().requires_grad_()
    loss, _ = policy_gradient(theta.log_softmax(-1), advantages)
    (logits.softmax(-1) * loss).sum().backward()
    wanted = difference(lambda at: (at.softmax(-1) * advantages).sum(), logits)
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, -wanted, rtol=1e-6, atol=1e-9)


def test_distillation_has_the_gradient_of_the_reverse_kl() -> None:
    logits, rollout, teacher, _ = policies()
    theta = logits.clone().requires_grad_()
    logprobs = theta.log_softmax(-1)
    advantages = distillation_advantage(logprobs, teacher)
    assert not advantages.requires_grad
    loss, _ = policy_loss("distillation", logprobs, logprobs.detach(), rollout, advantages, **WIDE)
    (rollout.exp() * loss).sum().backward()
    wanted = difference(lambda at: (at.softmax(-1) * (at.log_softmax(-1) - teacher)).sum(), logits)
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, wanted, rtol=1e-6, atol=1e-9)


TOKENS = st.lists(
    st.tuples(st.floats(-6, -0.1), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-3, 3)), min_size=1, max_size=8
)


def columns(tokens: list[tuple[float, ...]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now, before the update, in the rollout; advantages."""
    new, moved, gap, advantages = torch.tensor(tokens, dtype=torch.float64).T
    return new, new - moved, new - moved - gap, advantages


@settings(deadline=None)
@given(tokens=TOKENS, kind=st.sampled_from(sorted(LOSSES)))
def test_the_gradient_is_that_of_finite_differences_with_the_weights_held(
    tokens: list[tuple[float, ...]], kind: str
) -> None:
    """pop and min(ρ, β) do not depend on the weights; f does, so it is held at its value."""
    new, old, rollout, advantages = columns(tokens)
    leaf = new.clone().requires_grad_()
    policy_loss(kind, leaf, old, rollout, advantages, **BOUNDS)[0].sum().backward()

    def frozen(at: Tensor) -> Tensor:
        if kind != "double_sided":
            return policy_loss(kind, at, old, rollout, advantages, **BOUNDS)[0].sum()
        ratio = (new - rollout).exp()
        weight = torch.where((ratio > 0.8) & (ratio < 1.28), ratio, 0.0)
        return -(weight * advantages * at).sum()

    kinks = torch.stack([((new - old).exp() - bound).abs() for bound in (0.8, 1.28)])
    smooth = (kinks > 1e-4).all(0)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[smooth], difference(frozen, new)[smooth], rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(tokens=TOKENS, kind=st.sampled_from(sorted(LOSSES)), scale=st.floats(0.1, 10))
def test_losses_scale_with_the_advantage_and_masked_tokens_have_no_gradient(
    tokens: list[tuple[float, ...]], kind: str, scale: float
) -> None:
    new, old, rollout, advantages = columns(tokens)
    leaf = new.clone().requires_grad_()
    loss, kept = policy_loss(kind, leaf, old, rollout, advantages, **BOUNDS)
    scaled, still_kept = policy_loss(kind, new, old, rollout, scale * advantages, **BOUNDS)
    torch.testing.assert_close(scaled, scale * loss.detach())
    assert torch.equal(kept, still_kept)
    loss.sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad[~kept] == 0).all()
    assert (loss[~kept] == 0).all()


@settings(deadline=None)
@given(tokens=TOKENS)
def test_on_policy_with_equal_engines_all_losses_have_one_gradient(tokens: list[tuple[float, ...]]) -> None:
    new, _, _, advantages = columns(tokens)
    gradients = []
    for kind in LOSSES:
        leaf = new.clone().requires_grad_()
        loss, kept = policy_loss(kind, leaf, new, new, advantages, **BOUNDS)
        assert kept.all()
        loss.sum().backward()
        gradients.append(leaf.grad)
    for gradient in gradients:
        torch.testing.assert_close(gradient, -advantages)


def test_icepop_keeps_both_ends_of_its_band() -> None:
    """ρ is exactly 1/2, 2 and just outside; at ρ = r = 1 the loss is the advantage."""
    old = vector(0.0, 0.0, 0.0, 0.0, 0.0)
    rollout = vector(math.log(2), -math.log(2), math.log(2) + 1e-9, -math.log(2) - 1e-9, 0.0)
    loss, kept = icepop(old, old, rollout, torch.ones_like(old), **BOUNDS)
    assert kept.tolist() == [True, True, False, False, True]
    torch.testing.assert_close(loss, vector(-0.5, -2, 0, 0, -1))


def test_double_sided_excludes_its_bounds_whatever_the_sign_of_the_advantage() -> None:
    ratios = vector(0.5, 0.5 + 1e-9, 1.0, 1.5 - 1e-9, 1.5)
    new = ratios.log()
    low, high = 1 - new.exp()[0].item(), new.exp()[-1].item() - 1  # bounds that the outer two meet exactly
    for sign in (1.0, -1.0):
        loss, kept = double_sided(new, torch.zeros_like(new), sign * torch.ones_like(new), low, high)
        assert kept.tolist() == [False, True, True, True, False]
        torch.testing.assert_close(loss, -sign * kept * ratios * new)


def test_tis_caps_what_icepop_drops() -> None:
    old, rollout, ones = vector(0.0, 0.0), vector(-math.log(8), math.log(8)), vector(1.0, 1.0)
    loss, kept = tis(old, old, rollout, ones, **BOUNDS)
    torch.testing.assert_close(loss, vector(-2, -1 / 8))
    assert kept.all()


def test_clipping_is_one_sided() -> None:
    """As in PPO: a step further into the direction of the advantage earns nothing, a step back always counts."""
    new = vector(0.5, -0.5, 0.5, -0.5).requires_grad_()
    loss, _ = icepop(new, vector(0, 0, 0, 0), vector(0, 0, 0, 0), vector(1, 1, -1, -1), **BOUNDS)
    loss.sum().backward()
    assert new.grad is not None
    assert (new.grad != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absurd_gaps_give_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    near, far = -1e-4, -900.0
    new = torch.tensor([near, near, far, far, near, near], dtype=dtype, requires_grad=True)
    old = torch.tensor([far, far, near, near, near, far], dtype=dtype)
    rollout = torch.tensor([far, near, far, near, far, far], dtype=dtype)
    loss, _ = policy_loss(kind, new, old, rollout, torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=dtype), **BOUNDS)
    loss.sum().backward()
    assert new.grad is not None
    assert loss.isfinite().all()
    assert new.grad.isfinite().all()


def test_an_unknown_loss_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"called dpo.*icepop, double_sided"):
        policy_loss("dpo", vector(0), vector(0), vector(0), vector(0), **BOUNDS)


def test_topk_reverse_kl_passes_gradcheck() -> None:
    logits, _, teacher, _ = policies()
    listed = teacher.topk(3).indices
    rows = torch.stack([logits, logits.flip(0)]).requires_grad_()

    def of_logits(at: Tensor) -> Tensor:
        return topk_reverse_kl(at.log_softmax(-1)[:, listed], teacher[listed].expand(2, 3))

    assert torch.autograd.gradcheck(of_logits, (rows,))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 8))
def test_topk_reverse_kl_grows_with_k_to_the_exact_one(seed: int, size: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, size, generator=draw, dtype=torch.float64).log_softmax(-1)
    exact = (student.exp() * (student - teacher)).sum()
    listed = teacher.argsort(descending=True)
    values = [topk_reverse_kl(student[None, listed[:k]], teacher[None, listed[:k]]).item() for k in range(1, size + 1)]
    assert values[0] >= -1e-12
    assert all(more >= less - 1e-9 for less, more in pairwise(values))
    assert values[-2] == pytest.approx(exact.item(), abs=1e-9)  # one word unlisted: the tail is that word
    assert values[-1] == pytest.approx(exact.item(), abs=1e-9)


def test_shrinking_all_listed_tokens_does_not_pay_with_the_tail() -> None:
    teacher = vector(0.6, 0.3).log()
    honest, shrunk = teacher[None], (teacher - 3)[None]
    assert topk_reverse_kl(honest, teacher[None]).item() == pytest.approx(0, abs=1e-12)
    assert topk_reverse_kl(shrunk, teacher[None]).item() > 1
    without_tail = (shrunk.exp() * (shrunk - teacher)).sum()
    assert without_tail < 0


def sample(rollout_id: str, trained: int, weight: float = 1.0) -> TrainingSample:
    mask = [False] + [True] * trained
    versions = [-1] + [0] * trained
    return TrainingSample(
        [0] * len(mask), mask, [0.0] * len(mask), versions, 1.0, "icepop", "e", rollout_id, 1.0, weight=weight
    )


BATCHES = st.lists(st.builds(sample, st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=8)


@settings(deadline=None)
@given(batch=BATCHES)
def test_both_means_give_the_tokens_of_a_batch_one_vote_together(batch: list[TrainingSample]) -> None:
    for factors in (token_mean(batch), sample_mean(batch)):
        votes = [factor * each.trained_tokens for factor, each in zip(factors, batch, strict=True)]
        assert sum(votes) == pytest.approx(1)
    assert len(set(token_mean(batch))) == 1


@settings(deadline=None)
@given(batch=BATCHES)
def test_the_sample_mean_gives_each_rollout_the_same_part(batch: list[TrainingSample]) -> None:
    parts: dict[str, float] = {}
    for factor, each in zip(sample_mean(batch), batch, strict=True):
        parts[each.rollout_id] = parts.get(each.rollout_id, 0) + factor * each.trained_tokens
    assert list(parts.values()) == pytest.approx([1 / len(parts)] * len(parts))


@pytest.mark.parametrize("mean", [token_mean, sample_mean])
def test_a_weight_is_a_repetition(mean: Callable[[list[TrainingSample]], list[float]]) -> None:
    weighted = mean([sample("a", 3, weight=2.0), sample("b", 5)])
    repeated = mean([sample("a", 3), sample("again", 3), sample("b", 5)])
    assert weighted == pytest.approx([repeated[0] + repeated[1], repeated[2]])
    with pytest.raises(GLM5Error, match="the batch is empty"):
        mean([])


def test_mismatch_estimates_the_kl_of_the_rollout_from_the_trainer() -> None:
    """Ten tokens drawn exactly as often as the engine's policy says: the means are the expectations."""
    words = torch.tensor([0] * 4 + [1] * 3 + [2] * 2 + [3])
    engine, trainer = vector(0.4, 0.3, 0.2, 0.1).log(), vector(0.1, 0.2, 0.3, 0.4).log()
    exact = (engine.exp() * (engine - trainer)).sum().item()
    figures = mismatch(trainer[words], engine[words], words != 3)
    assert figures.kl_k1 == pytest.approx(exact)
    assert figures.kl_k3 == pytest.approx(exact)
    assert figures.max_abs == pytest.approx(math.log(4))
    assert figures.mean_abs == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(1.5))
    assert figures.masked_share == pytest.approx(0.1)


@settings(deadline=None)
@given(tokens=TOKENS)
def test_k3_is_never_negative_and_zero_gap_is_zero(tokens: list[tuple[float, ...]]) -> None:
    new, _, rollout, _ = columns(tokens)
    assert mismatch(new, rollout, torch.ones(len(new), dtype=torch.bool)).kl_k3 >= 0
    same = mismatch(new, new, torch.ones(len(new), dtype=torch.bool))
    assert (same.kl_k1, same.kl_k3, same.mean_abs, same.max_abs, same.masked_share) == (0, 0, 0, 0, 0)
    with pytest.raises(GLM5Error, match="nothing to compare"):
        mismatch(new[:0], rollout[:0], new[:0] > 0)
