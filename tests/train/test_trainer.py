"""The loop: what a step does, what it refuses to do, and how it can be stopped."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.model.checkpoint import load_checkpoint
from glm5.model.experts import MoE, Router
from glm5.train.checkpoints import Progress
from glm5.train.stage import assert_moved
from glm5.train.trainer import Interrupted, Trainer, nudge_bias
from tests.train.small import LENGTH, counting_row, curve, small_config, small_model, small_trainer, steps_of


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_it_learns(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, steps=40, lr=0.02)
    trainer.run([])
    losses = [record.loss for record in steps_of(tmp_path / "metrics.jsonl")]
    assert losses[0] == pytest.approx(3.9, abs=0.3)  # log of the vocabulary
    assert losses[-1] < losses[0] - 1
    assert trainer.progress.step == 40
    assert trainer.progress.tokens == 40 * 8 * LENGTH
    assert [path.name for path in trainer.checkpoints.all()] == ["step-00000040"]


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    curves = []
    for rows in (8, 2, 1):
        folder = tmp_path / str(rows)
        small_trainer(folder, steps=5, rows_per_microbatch=rows).run([])
        curves.append(curve(folder / "metrics.jsonl"))
    for other in curves[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(curves[0]), atol=2e-5, rtol=2e-5)


def test_same_seed_same_bits(tmp_path: Path) -> None:
    trainers = [small_trainer(tmp_path / name, steps=4) for name in ("one", "two")]
    for trainer in trainers:
        trainer.run([])
    assert curve(tmp_path / "one/metrics.jsonl") == curve(tmp_path / "two/metrics.jsonl")


@pytest.mark.parametrize("at", [1, 5, 6])
def test_going_on_is_bit_identical(tmp_path: Path, at: int) -> None:
    """Weights, optimisers and place in the data are everything there is."""
    small_trainer(tmp_path / "whole", steps=8, rows_per_microbatch=4).run([])
    first = small_trainer(tmp_path / "parts", steps=8, rows_per_microbatch=4, save_every_steps=at)
    with pytest.raises(KeyboardInterrupt):
        first.run([_stop_after(at + 1)])  # one step is lost and done again

    [checkpoint] = first.checkpoints.all()
    second = small_trainer(
        tmp_path / "parts", steps=8, rows_per_microbatch=4, model=_frozen(load_checkpoint(checkpoint))
    )
    second.progress = second.checkpoints.restore(checkpoint, second.optimizers.state_tensors())
    assert second.progress.step == at
    second.batches.load_state_dict(second.progress.loader or {})
    second.run([])
    assert curve(tmp_path / "parts/metrics.jsonl") == curve(tmp_path / "whole/metrics.jsonl")[at:]


def _stop_after(step: int):  # type: ignore[no-untyped-def]
    def watch(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


def _frozen(model):  # type: ignore[no-untyped-def]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    trainer = small_trainer(tmp_path, steps=20)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def watch(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        trainer.run([watch])
    assert trainer.progress.step == 4
    assert [path.name for path in trainer.checkpoints.all()] == ["step-00000004"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, steps=20)

    def watch(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run([watch])
    assert trainer.progress.step == 1
    assert threading.current_thread() is threading.main_thread()


# -- what a step refuses ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, steps=30, save_every_steps=1)
    trainer.step()
    good = trainer.checkpoints.save(trainer.model, trainer.optimizers.state_tensors(), trainer.progress)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("inf")
    before = weights(trainer)
    with pytest.raises(GLM5Error, match=r"step 2: loss .* no longer finite.*step-00000001.*Lower lr_muon"):
        trainer.run([])
    after = weights(trainer)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert trainer.checkpoints.all() == [good]
    assert bool(torch.isfinite(load_checkpoint(good).lm_head.weight).all())
    assert len(steps_of(tmp_path / "metrics.jsonl")) == 1


def test_a_gradient_that_is_no_number_stops_as_well(tmp_path: Path) -> None:
    """The loss alone may still be finite."""
    trainer = small_trainer(tmp_path)
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(trainer)
    with pytest.raises(GLM5Error, match=r"gradient norm nan.*Last good checkpoint: none"):
        trainer.step()
    after = weights(trainer)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_nothing_trainable_reached_by_the_loss_is_an_error(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)

    class Constant:
        def counts(self, batch):  # type: ignore[no-untyped-def]
            return torch.ones(3)

        def __call__(self, model, batch, step_counts, share):  # type: ignore[no-untyped-def]
            from glm5.train.objective import Losses

            zero = torch.zeros((), requires_grad=True)
            return Losses(zero, zero.detach(), torch.zeros(2), zero.detach(), torch.zeros(0, 0))

    trainer.objective = Constant()
    with pytest.raises(GLM5Error, match="no parameter received a gradient"):
        trainer.step()


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    """With AdamW the length would not show; Muon's momentum keeps it."""
    trainer = small_trainer(tmp_path, grad_clip=1e-3)
    trainer.step()
    squares = sum(
        float(state["momentum_buffer"].square().sum()) for state in trainer.optimizers.muon.state.values() if state
    )
    assert trainer.last is not None
    assert trainer.last.grad_norm > 0.1
    assert 0 < squares**0.5 <= 1e-3 * 1.001


def test_a_detached_parameter_is_found_out() -> None:
    before = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert_moved(before, {"a": 1.5, "b": 2.5, "c": 3.5})
    with pytest.raises(GLM5Error, match="did not change 1 of 3 parameters: b"):
        assert_moved(before, {"a": 1.5, "b": 2.0, "c": 3.5})


# -- balance ---------------------------------------------------------------------------------------------------------


def router_of(experts: int, top_k: int, seed: int) -> tuple[Router, torch.Tensor]:
    """A router that prefers some experts by far, and tokens to route."""
    router = Router(small_config(n_routed_experts=experts, num_experts_per_tok=top_k))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        router.weight.copy_(0.05 * torch.randn(router.weight.shape, generator=generator))
        router.weight[:, 0] += torch.linspace(-0.4, 0.4, experts)
    x = torch.randn(4, 64, router.weight.shape[1], generator=generator)
    x[..., 0] = 1.0
    return router, x


@settings(deadline=None, max_examples=10)
@given(experts=st.integers(6, 12), top_k=st.integers(1, 2), seed=st.integers(0, 100))
@torch.no_grad()
def test_nudging_evens_a_skewed_router(experts: int, top_k: int, seed: int) -> None:
    router, x = router_of(experts, top_k, seed)
    violations = []
    for _ in range(150):
        load = router(x)[2].load
        violations.append(float(load.max() / load.mean()) - 1)
        nudge_bias(router, load, 0.01)
    assert violations[0] > 0.5
    assert min(violations[-10:]) < 0.5 * violations[0]
    assert abs(float(router.e_score_correction_bias.mean())) < 1e-6


def test_a_nudge_is_of_one_size_and_towards_the_mean() -> None:
    router, _ = router_of(4, 1, 0)
    nudge_bias(router, torch.tensor([10.0, 0.0, 4.0, 6.0]), 0.1)
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([-0.1, 0.1, 0.1, -0.1]))


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_every_router_is_nudged_after_a_step_unless_told_not_to(tmp_path: Path, rate: float) -> None:
    trainer = small_trainer(tmp_path, balance_bias_rate=rate)
    trainer.step()
    assert trainer.model.mtp is not None
    for block in (trainer.model.model.layers[1], trainer.model.mtp.block):
        assert isinstance(block.mlp, MoE)
        assert bool(block.mlp.gate.e_score_correction_bias.any()) == (rate > 0)


def test_balancing_a_training_lowers_the_violation(tmp_path: Path) -> None:
    violations = []
    for rate in (0.0, 0.02):
        model = small_model()
        trainer = small_trainer(tmp_path / str(rate), model=model, steps=40, balance_bias_rate=rate)
        trainer.run([])
        last = steps_of(tmp_path / str(rate) / "metrics.jsonl")[-10:]
        violations.append(sum(record.load_violation for record in last) / 10)
    assert violations[1] < violations[0]


def test_rows_of_the_test_stream_are_what_training_reads() -> None:
    """The stream these tests train on keeps the loader's promises."""
    row = counting_row(5, LENGTH)
    assert torch.equal(row.input_ids[1:], row.targets[:-1])
    borders = row.document_ids.diff() != 0
    assert bool((row.positions[1:][borders] == 0).all())
    assert bool((row.positions.diff()[~borders] == 1).all())
