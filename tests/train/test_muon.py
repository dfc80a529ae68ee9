"""Muon and Muon Split: every block is orthogonalised as if it were a matrix of its own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glm5.model.experts import MoE
from glm5.ops.newton_schulz import orthogonalise
from glm5.train.muon import Matrix, Muon, blocks_of, update_scale
from glm5.train.optimizer import muon_matrices
from tests.train.small import small_model

LR = 0.1


def alone(gradients: list[Tensor], momentum: float = 0.95) -> Tensor:
    """Movement of one whole matrix over some steps without decay, written out: momentum, Nesterov, orthogonalise."""
    moved, buffer = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    rows, cols = gradients[0].shape
    for gradient in gradients:
        buffer = momentum * buffer + gradient
        update = orthogonalise((gradient + momentum * buffer)[None], torch.float32)[0]
        moved = moved - LR * 0.2 * math.sqrt(max(rows, cols)) * update
    return moved


def movement(matrix: Matrix, gradients: list[Tensor]) -> Tensor:
    """What Muon makes of the same gradients."""
    before = matrix.parameter.detach().clone()
    optimizer = Muon([matrix], LR, weight_decay=0.0, dtype=torch.float32)
    for gradient in gradients:
        matrix.parameter.grad = gradient.clone()
        optimizer.step()
    return matrix.parameter.detach() - before


def draw(shape: torch.Size | tuple[int, ...], count: int = 3, seed: int = 0) -> list[Tensor]:
    """Gradients whose blocks differ in size by far, as those of heads do."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, shape[-2])[:, None]
    return [scale * torch.randn(shape, generator=generator) for _ in range(count)]


def named(split: bool = True) -> dict[str, Matrix]:
    return {matrix.name: matrix for matrix in muon_matrices(small_model(), split)}


def test_each_head_of_q_b_moves_as_if_alone() -> None:
    matrix = named()["model.layers.0.self_attn.q_b_proj.weight"]
    gradients = draw(matrix.parameter.shape)
    moved = movement(matrix, gradients)
    heads = [slice(start, start + 16) for start in range(0, 48, 16)]  # qk_nope + qk_rope rows each
    for head in heads:
        torch.testing.assert_close(moved[head], alone([g[head] for g in gradients]))


def test_each_head_of_kv_b_is_a_key_block_and_a_value_block() -> None:
    matrix = named()["model.layers.0.self_attn.kv_b_proj.weight"]
    gradients = draw(matrix.parameter.shape)
    moved = movement(matrix, gradients)
    assert moved.shape[0] == 3 * (8 + 16)
    for start in range(0, 72, 24):
        for block in (slice(start, start + 8), slice(start + 8, start + 24)):  # qk_nope rows, then v rows
            torch.testing.assert_close(moved[block], alone([g[block] for g in gradients]))


def test_each_expert_is_alone_and_its_gate_and_up_are_apart() -> None:
    matrices = named()
    gate_up = matrices["model.layers.1.mlp.experts.gate_up_proj"]
    gradients = draw(gate_up.parameter.shape)
    moved = movement(gate_up, gradients)
    for expert in range(12):
        for rows in (slice(0, 10), slice(10, 20)):
            torch.testing.assert_close(moved[expert, rows], alone([g[expert, rows] for g in gradients]))
    down = matrices["model.layers.1.mlp.experts.down_proj"]
    gradients = draw(down.parameter.shape)
    moved = movement(down, gradients)
    for expert in range(12):
        torch.testing.assert_close(moved[expert], alone([g[expert] for g in gradients]))


def test_without_split_the_up_projections_are_whole_and_experts_still_apart() -> None:
    matrices = named(split=False)
    for name in ("q_b_proj", "kv_b_proj"):
        matrix = matrices[f"model.layers.0.self_attn.{name}.weight"]
        gradients = draw(matrix.parameter.shape)
        torch.testing.assert_close(movement(matrix, gradients), alone(gradients))
    gate_up = matrices["model.layers.1.mlp.experts.gate_up_proj"]
    gradients = draw(gate_up.parameter.shape)
    moved = movement(gate_up, gradients)
    torch.testing.assert_close(moved[3, 10:], alone([g[3, 10:] for g in gradients]))


def test_split_and_whole_differ() -> None:
    name = "model.layers.0.self_attn.q_b_proj.weight"
    gradients = draw(named()[name].parameter.shape)
    split, whole = movement(named()[name], gradients), movement(named(split=False)[name], gradients)
    assert (split - whole).norm() > 0.1 * whole.norm()


def test_only_what_the_report_splits_is_split() -> None:
    split = {".".join(matrix.name.split(".")[-2:]): matrix.split for matrix in named().values() if matrix.split}
    assert split == {"q_b_proj.weight": (16,), "kv_b_proj.weight": (8, 16), "experts.gate_up_proj": (10, 10)}


@pytest.mark.parametrize(("momentum", "tolerance"), [(0.5, 1e-6), (0.95, 0.02)])
def test_whole_matrices_agree_with_torch(momentum: float, tolerance: float) -> None:
    """torch keeps an average, buffer = m * buffer + (1 - m) * gradient, we a sum: ours is 1 / (1 - m) times as long and
    orthogonalising forgets lengths. With m = 0.5 that factor is a power of two and even bf16 rounds alike."""
    start = torch.randn(20, 36, generator=torch.Generator().manual_seed(1))
    gradients = draw(start.shape, count=6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([Matrix("weight", ours)], LR, momentum=momentum, weight_decay=0.1),
        torch.optim.Muon(
            [theirs], lr=LR, momentum=momentum, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() <= tolerance * (theirs - start).norm()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(4, 24), cols=st.integers(4, 24), seed=st.integers(0, 1000))
def test_an_update_has_the_promised_root_mean_square(rows: int, cols: int, seed: int) -> None:
    """0.2, whatever the shape: exactly for an orthogonal matrix, so within Newton-Schulz' band here."""
    exact = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols), dtype=torch.float64))[0]
    assert float((exact * update_scale(rows, cols)).square().mean().sqrt()) == pytest.approx(0.2)
    gradient = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    moved = movement(Matrix("weight", nn.Parameter(torch.zeros(rows, cols))), [gradient])
    assert 0.1 < float(moved.square().mean().sqrt()) / LR < 0.26


@settings(deadline=None, max_examples=60)
@given(split=st.lists(st.integers(1, 5), max_size=3), repeats=st.integers(1, 4), experts=st.integers(0, 3))
def test_blocks_cover_every_row_once(split: list[int], repeats: int, experts: int) -> None:
    rows = (sum(split) or 5) * (repeats if split else 1)
    tensor = torch.zeros((experts, rows, 2) if experts else (rows, 2))
    for block in blocks_of(tensor, tuple(split)):
        block.add_(1)  # views: what is written into a block is written into the tensor
    assert bool((tensor == 1).all())


def test_decay_is_decoupled_and_not_scaled_by_shape() -> None:
    parameter = nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([Matrix("weight", parameter)], LR, weight_decay=0.3).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 6), 1 - LR * 0.3))


def test_a_matrix_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(4, 6))
    Muon([Matrix("weight", parameter)], LR, weight_decay=0.3).step()
    assert bool((parameter == 1).all())


def test_routers_and_experts_are_muons() -> None:
    model = small_model()
    block = model.model.layers[1].mlp
    assert isinstance(block, MoE)
    mine = {id(matrix.parameter) for matrix in muon_matrices(model)}
    assert {id(block.gate.weight), id(block.experts.down_proj)} <= mine
