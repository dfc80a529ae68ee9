"""Projection and cross-entropy in one, against torch's two steps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.ops.loss import IGNORE, linear_cross_entropy, token_log_probs, token_nll

WIDTH, VOCAB = 16, 50


def batch(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, head, targets (a fifth ignored), weights (some zero)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, VOCAB, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.2] = IGNORE
    weights = torch.rand(tokens, generator=generator)
    weights[::7] = 0
    hidden, head = torch.randn(tokens, WIDTH, generator=generator), torch.randn(VOCAB, WIDTH, generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), targets, weights


def two_steps(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    nll = F.cross_entropy(hidden @ head.T, targets, ignore_index=IGNORE, reduction="none")
    return (nll * weights).sum(), nll


@settings(deadline=None)
@given(tokens=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 1000))
def test_loss_and_gradients_for_any_chunk_size(tokens: int, chunk: int, seed: int) -> None:
    hidden, head, targets, weights = batch(tokens, seed)
    loss, nll = linear_cross_entropy(hidden, head, targets, weights, chunk)
    expected, expected_nll = two_steps(hidden, head, targets, weights)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected_nll)
    assert (nll[targets == IGNORE] == 0).all()
    assert not nll.requires_grad
    found = torch.autograd.grad(loss * 3, (hidden, head))
    for mine, theirs in zip(found, torch.autograd.grad(expected * 3, (hidden, head)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bf16_activations_with_an_fp32_head() -> None:
    hidden, head, targets, weights = batch(40)
    rounded = hidden.detach().bfloat16().requires_grad_()
    loss, _ = linear_cross_entropy(rounded, head, targets, weights, 16)
    expected, _ = two_steps(hidden, head, targets, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    found = torch.autograd.grad(loss, (rounded, head))
    assert [grad.dtype for grad in found] == [torch.bfloat16, torch.float32]
    for mine, theirs in zip(found, torch.autograd.grad(expected, (hidden, head)), strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=0, atol=2e-2 * float(theirs.abs().max()))


def test_weights_multiply_and_get_no_gradient() -> None:
    hidden, head, targets, weights = batch(20)
    single, _ = linear_cross_entropy(hidden, head, targets, weights, 8)
    double, _ = linear_cross_entropy(hidden, head, targets, weights.requires_grad_() * 2, 8)
    torch.testing.assert_close(double, 2 * single)
    assert torch.autograd.grad(double, weights, allow_unused=True) == (None,)


def test_nothing_but_ignored_targets() -> None:
    hidden, head, targets, weights = batch(6)
    loss, _ = linear_cross_entropy(hidden, head, torch.full_like(targets, IGNORE), weights, 4)
    assert loss == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, (hidden, head)))


@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_token_nll(chunk: int) -> None:
    hidden, head, targets, weights = batch(40)
    nll = token_nll(hidden, head, targets, chunk)
    torch.testing.assert_close(nll, two_steps(hidden, head, targets, weights)[1])
    assert not nll.requires_grad


@settings(deadline=None)
@given(tokens=st.integers(1, 40), chunk=st.integers(1, 50), temperature=st.floats(0.5, 2.0), seed=st.integers(0, 1000))
def test_log_probs_of_tokens_and_their_gradients(tokens: int, chunk: int, temperature: float, seed: int) -> None:
    hidden, head, targets, weights = batch(tokens, seed)
    log_probs, entropy = token_log_probs(hidden, head, targets, chunk, temperature)
    distribution = (hidden @ head.T / temperature).log_softmax(-1)
    has_target = targets != IGNORE
    expected = distribution.gather(1, targets.clamp(min=0)[:, None])[:, 0] * has_target
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropy, -(distribution.exp() * distribution).sum(-1) * has_target)
    assert not entropy.requires_grad
    # any function of the log-probabilities may follow
    gradients = torch.autograd.grad((log_probs.exp() * weights).sum(), [hidden, head], allow_unused=True)
    expected_gradients = torch.autograd.grad((expected.exp() * weights).sum(), [hidden, head])
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)
