"""Grouped experts against every expert on every token."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glm5.ops.experts import _grouped_experts, experts_reference, grouped_experts

TOKENS, WIDTH, INNER, EXPERTS, TOP_K = 23, 12, 10, 5, 2

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def spread(generator: torch.Generator) -> Tensor:
    return torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices


def two_idle(generator: torch.Generator) -> Tensor:
    return torch.rand(TOKENS, EXPERTS - 2, generator=generator).topk(TOP_K).indices + 1


def all_to_one(generator: torch.Generator) -> Tensor:
    return torch.full((TOKENS, 1), 3)


CHOICES = (spread, two_idle, all_to_one)


def inputs(choose: Callable[[torch.Generator], Tensor] = spread, dtype: torch.dtype = torch.float32) -> Inputs:
    """Arguments of `grouped_experts`: everything that is differentiable wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=generator) * 0.5
    down = torch.randn(EXPERTS, WIDTH, INNER, generator=generator) * 0.5
    chosen = choose(generator)
    weights = torch.rand(chosen.shape, generator=generator) + 0.1
    return x.requires_grad_(), gate_up.requires_grad_(), down.requires_grad_(), chosen, weights.requires_grad_()


def gradients(experts: Callable[..., Tensor], arguments: Inputs) -> tuple[Tensor, ...]:
    out = experts(*arguments)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [argument for argument in arguments if argument.requires_grad]
    return out.detach(), *torch.autograd.grad(out, wanted, upstream)


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=["fp32", "bf16"])
def test_forward_and_every_gradient(choose: Callable[..., Tensor], dtype: torch.dtype, tolerance: float) -> None:
    found = gradients(grouped_experts, inputs(choose, dtype))
    expected = gradients(experts_reference, inputs(choose))
    assert found[0].dtype == found[1].dtype == dtype
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("choose", CHOICES)
def test_an_expert_without_tokens_gets_a_gradient_of_zeros(choose: Callable[..., Tensor]) -> None:
    arguments = inputs(choose)
    _, _, grad_gate_up, grad_down, _ = gradients(grouped_experts, arguments)
    for expert in range(EXPERTS):
        is_used = bool((arguments[3] == expert).any())
        assert bool(grad_gate_up[expert].any()) == bool(grad_down[expert].any()) == is_used


def test_the_order_of_tokens_does_not_matter() -> None:
    x, gate_up, down, chosen, weights = (tensor.detach() for tensor in inputs())
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    shuffled = grouped_experts(x[order], gate_up, down, chosen[order], weights[order])
    torch.testing.assert_close(shuffled, grouped_experts(x, gate_up, down, chosen, weights)[order])


def test_no_tokens() -> None:
    x, gate_up, down, chosen, weights = inputs()
    out = grouped_experts(x[:0], gate_up, down, chosen[:0], weights[:0])
    assert out.shape == (0, WIDTH)
    assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), (x, gate_up, down, weights)))


def test_the_operator_keeps_its_contract_with_torch() -> None:
    torch.library.opcheck(_grouped_experts, inputs())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_into_one_graph(backend: str) -> None:
    def layer(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return x + grouped_experts(x * 0.5, gate_up, down, chosen, weights.softmax(-1)).tanh()

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for mine, theirs in zip(gradients(compiled, inputs()), gradients(layer, inputs()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
