"""Which optimiser trains what: every trainable parameter has exactly one, a frozen one has none."""

from typing import Any

import pytest
import torch
from torch import nn

from glm5.errors import GLM5Error
from glm5.train.optimizer import Optimizers
from tests.train.small import batch_of, objective, small_model


def take_steps(model: nn.Module, optimizers: Optimizers, count: int = 2, lr: float = 0.01) -> None:
    losses = objective()
    for seed in range(count):
        batch = batch_of(4, seed=seed)
        losses(model, batch, losses.counts(batch), 1.0).total.backward()  # type: ignore[arg-type]
        optimizers.step(lr, lr)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape", [{}, {"attention": "gqa", "index_topk": 0, "head_dim": 16, "attention_bias": True, "use_qk_norm": True}]
)
def test_every_trainable_parameter_has_one_optimiser(shape: dict[str, Any], tied: bool, split: bool) -> None:
    model = small_model(tie_word_embeddings=tied, **shape)
    optimizers = Optimizers.build(model, muon_split=split)
    taken = [matrix.name for matrix in optimizers.muon.matrices] + optimizers.adamw_names
    wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(taken) == sorted(wanted)
    assert len({id(p) for o in (optimizers.muon, optimizers.adamw) for p in o.param_groups[0]["params"]}) == len(wanted)


def test_adamw_has_embedding_head_norms_and_biases_and_nothing_else() -> None:
    optimizers = Optimizers.build(small_model())
    assert all(
        name.endswith(("embed_tokens.weight", "lm_head.weight", "norm.weight", "layernorm.weight"))
        for name in optimizers.adamw_names
    )
    assert all(matrix.parameter.ndim >= 2 for matrix in optimizers.muon.matrices)


def test_a_step_moves_everything_but_the_frozen_indexer() -> None:
    model = small_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    take_steps(model, Optimizers.build(model, dtype=torch.float32))
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    indexer = {name for name in before if ".indexer." in name}
    assert indexer
    assert still == indexer


def test_only_matrices_decay() -> None:
    """Gradients of zero: what still moves is decay."""
    model = small_model()
    optimizers = Optimizers.build(model, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0.1, 0.1)
    matrices = {matrix.name for matrix in optimizers.muon.matrices}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in matrices else 1.0), msg=name)


def test_gradients_are_dropped_after_a_step() -> None:
    model = small_model()
    take_steps(model, Optimizers.build(model), count=1)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("warm", [0, 2], ids=["before the first step", "later"])
def test_state_restores_the_optimisers(warm: int) -> None:
    """Copying the named tensors into fresh optimisers makes them go on exactly alike."""
    model = small_model()
    optimizers = Optimizers.build(model)
    take_steps(model, optimizers, warm)
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    others = Optimizers.build(twin)
    state = optimizers.state_tensors()
    for name, tensor in others.state_tensors().items():
        tensor.copy_(state[name])
    take_steps(model, optimizers)
    take_steps(twin, others)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_nothing_trainable_is_an_error() -> None:
    model = small_model().requires_grad_(False)
    with pytest.raises(GLM5Error, match="every parameter is frozen"):
        Optimizers.build(model)
