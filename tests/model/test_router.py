"""The router chooses with its bias and weighs without it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glm5.model.experts import MoE, Router
from glm5.ops.experts import experts_reference
from tests.model.shapes import perturbed, tiny_config, tokens


def router(**changes: Any) -> Router:
    gate = perturbed(tiny_config(**changes)).get_submodule("model.layers.1.mlp.gate")
    assert isinstance(gate, Router)
    gate.weight.data *= 4  # scores far apart
    return gate


def activations() -> Tensor:
    return torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(0))


def by_expert(chosen: Tensor, weights: Tensor) -> Tensor:
    """Weight of every expert for every token, 0 where it was not chosen."""
    return torch.zeros(*chosen.shape[:-1], 8).scatter(-1, chosen, weights)


@torch.no_grad()
def test_the_rule_spelled_out() -> None:
    gate, x = router(), activations()
    chosen, weights, _ = gate(x)
    for token, picked, shares in zip(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1), strict=True):
        scores = [float((row @ token).sigmoid()) for row in gate.weight]
        ranks = [score + float(bias) for score, bias in zip(scores, gate.e_score_correction_bias, strict=True)]
        best = sorted(range(8), key=lambda expert: -ranks[expert])[:2]
        assert set(picked.tolist()) == set(best)
        expected = [2.5 * scores[expert] / sum(scores[e] for e in best) for expert in picked.tolist()]
        torch.testing.assert_close(shares, torch.tensor(expected))


@torch.no_grad()
def test_the_bias_decides_who_is_chosen_but_not_with_what_weight() -> None:
    gate, x = router(norm_topk_prob=False), activations()
    before = by_expert(*gate(x)[:2])
    gate.e_score_correction_bias[5] += 10
    after = by_expert(*gate(x)[:2])
    assert (after[..., 5] > 0).all()
    assert not (before[..., 5] > 0).all()
    kept = (before > 0) & (after > 0)
    assert torch.equal(before[kept], after[kept])
    assert after.max() <= 2.5, "a weight is a sigmoid times the scaling factor, whatever the bias"


@torch.no_grad()
def test_an_equal_bias_for_everyone_changes_nothing() -> None:
    gate, x = router(), activations()
    before = by_expert(*gate(x)[:2])
    gate.e_score_correction_bias += 0.25
    torch.testing.assert_close(by_expert(*gate(x)[:2]), before)


def test_the_bias_is_no_parameter() -> None:
    assert [name for name, _ in router().named_parameters()] == ["weight"]


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fp32_whatever_the_activations(weights_dtype: torch.dtype) -> None:
    """bf16 activations are widened, not the scores narrowed."""
    gate, x = router().to(weights_dtype), activations().bfloat16()
    gate.e_score_correction_bias.data = gate.e_score_correction_bias.float()
    chosen, weights, routing = gate(x)
    assert weights.dtype == routing.load.dtype == routing.balance_loss.dtype == torch.float32
    gate.float()
    again = gate(x.float())
    torch.testing.assert_close(by_expert(chosen, weights), by_expert(*again[:2]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_load_counts_every_slot() -> None:
    chosen, _, routing = router()(activations())
    assert routing.load.sum() == 3 * 20 * 2
    assert routing.load.tolist() == chosen.flatten().bincount(minlength=8).tolist()


@torch.no_grad()
def test_the_balance_loss_is_one_when_even_and_grows_when_not() -> None:
    gate, x = router(num_experts_per_tok=8), activations()
    torch.testing.assert_close(gate(x)[2].balance_loss, torch.tensor(1.0))  # everyone always chosen: even
    lopsided = router()
    lopsided.weight.zero_()
    lopsided.weight[:2, :] = x[0, 0]
    assert lopsided(x[:1, :1])[2].balance_loss > 1.5


def test_every_moe_layer_reports_and_the_balance_loss_reaches_its_router() -> None:
    model = perturbed(tiny_config())
    routings = model(tokens(2, 12)).routing
    assert len(routings) == 3
    assert all(routing.load.sum() == 2 * 12 * 2 for routing in routings)
    torch.stack([routing.balance_loss for routing in routings]).sum().backward()
    last = model.model.layers[3].mlp
    assert isinstance(last, MoE)
    assert last.gate.weight.grad is not None
    assert last.gate.weight.grad.any()


@torch.no_grad()
def test_routed_and_shared_experts_add_up() -> None:
    layer = perturbed(tiny_config()).model.layers[1].mlp
    assert isinstance(layer, MoE)
    x = activations()
    flat = x.flatten(0, 1)
    chosen, weights, _ = layer.gate(flat[None])
    routed = experts_reference(flat, layer.experts.gate_up_proj, layer.experts.down_proj, chosen[0], weights[0])
    assert layer.shared_experts is not None
    torch.testing.assert_close(layer(x)[0].flatten(0, 1), routed + layer.shared_experts(flat), atol=1e-5, rtol=1e-4)
