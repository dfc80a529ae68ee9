"""The training loop. It knows batches, losses and weights; what is minimised comes from outside.

    ┌─▶ batch ─▶ micro-batches ─▶ objective ─▶ backward ─┐
    │                                                    ▼
    │   log ◀─ balance experts ◀─ step ◀─ clip ◀─ gradients (summed over processes)
    │    │
    └────┴─▶ every few steps: score held-out text, write samples, save a checkpoint

Everything that decides the next step is in the weights, the optimiser state and `Progress`; a resumed training is
bit-identical to one that was never stopped. Every process runs this loop; the first one writes and talks.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from glm5.errors import GLM5Error
from glm5.model.experts import MoE, Router
from glm5.model.transformer import Transformer
from glm5.train.checkpoints import CheckpointFolder, Progress
from glm5.train.metrics import MetricsLog, StepRecord
from glm5.train.objective import Losses
from glm5.train.optimizer import Optimizers
from glm5.train.parallel import World, synchronise_gradients
from glm5.train.schedule import BatchSize, Schedule


class Batches(Protocol):
    """A resumable stream of rows; data/loader.py is one."""

    def next_batch(self, rows: int) -> "Rows": ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class Rows(Protocol):
    """Rows of one step over all processes. `fields` is the named tuple that the objective reads (for pre-training's a
    `MicroBatch`), every tensor [rows, T]; the trainer cuts it into micro-batches of the same type."""

    phase: str

    @property
    def fields(self) -> tuple[Tensor, ...]: ...


class Objective(Protocol):
    """What is minimised; train/objective.py has pre-training's. `batch` is a part of the rows' `fields`."""

    def counts(self, batch: Any) -> Tensor: ...

    def __call__(self, model: Transformer, batch: Any, step_counts: Tensor, share: float) -> Losses: ...


class Interrupted(Exception):
    """The person asked to stop; a checkpoint has been saved."""


@dataclass(slots=True, frozen=True)
class TrainerSettings:
    """Numbers of the loop itself; `recipe` says what each means."""

    context_length: int
    total_tokens: int
    rows_per_microbatch: int
    lr_muon: float
    lr_adamw: float
    learning_rate: Schedule
    batch_size: BatchSize
    grad_clip: float
    balance_bias_rate: float
    save_every_steps: int


Watcher = Callable[[Progress], None]  # called after a step; scores, samples, draws progress


class Trainer:
    """Trains `model` until `total_tokens`."""

    def __init__(
        self,
        model: Transformer,
        optimizers: Optimizers,
        batches: Batches,
        objective: Objective,
        settings: TrainerSettings,
        checkpoints: CheckpointFolder,
        log: MetricsLog | None,
        world: World,
    ) -> None:
        self.model, self.optimizers, self.batches, self.objective = model, optimizers, batches, objective
        self.settings, self.checkpoints, self.log, self.world = settings, checkpoints, log, world
        self.progress = Progress()
        self.last: StepRecord | None = None
        self._stop_requested = False
        self._routers = [block.mlp.gate for block in model.model.layers if isinstance(block.mlp, MoE)]
        if model.mtp is not None and isinstance(model.mtp.block.mlp, MoE):
            self._routers.append(model.mtp.block.mlp.gate)

    def run(self, watchers: list[Watcher]) -> None:
        """Train to the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and saved.
            GLM5Error: the loss or gradient is not a number any more, or a checkpoint could not be written.
        """
        self.model.train()
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.progress.tokens < self.settings.total_tokens:
                stop = self.step()
                for watch in watchers:
                    watch(self.progress)
                finished = self.progress.tokens >= self.settings.total_tokens
                if stop or finished or self.progress.step % self.settings.save_every_steps == 0:
                    self.checkpoints.save(self.model, self.optimizers.state_tensors(), self.progress)
                if stop and not finished:
                    raise Interrupted
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_requested:
            raise KeyboardInterrupt  # asked twice: do not even finish the step
        self._stop_requested = True

    def step(self) -> bool:
        """One optimiser step; returns whether any process was asked to stop."""
        began = time.perf_counter()
        settings, progress = self.settings, self.progress
        batch = self.batches.next_batch(settings.batch_size.rows(progress.tokens))
        factor = settings.learning_rate.factor(progress.step, progress.tokens)
        sums, load = self._accumulate(batch)
        grad_norm = self._clip()
        counts, (main, balance, stopping), mtp = sums[0], sums[1][:3].tolist(), sums[1][3:]
        if not (torch.isfinite(sums[1]).all() and torch.isfinite(grad_norm)):
            self._stop_before_damage(main, float(grad_norm))
        self.optimizers.step(settings.lr_muon * factor, settings.lr_adamw * factor)
        self._balance(load)

        tokens = batch.fields[0].numel()
        elapsed = time.perf_counter() - began
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += elapsed
        progress.loader = self.batches.state_dict()
        self.last = StepRecord(
            step=progress.step,
            tokens=progress.tokens,
            phase=batch.phase,
            loss=main / float(counts[0]),
            mtp_loss=(mtp / counts[1:].clamp(min=1)).tolist(),
            balance_loss=balance,
            grad_norm=float(grad_norm),
            lr_muon=settings.lr_muon * factor,
            lr_adamw=settings.lr_adamw * factor,
            tokens_per_second=tokens / elapsed,
            seconds=progress.seconds,
            load_violation=_violation(load),
        )
        if self.log is not None:
            self.log.write(self.last)
        return stopping > 0

    def _accumulate(self, batch: Rows) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Backward through this process's share of the batch.

        Returns:
            target counts of the step [1 + depths]; sums over all processes of [main nats, balance loss, stop requests,
            nats of each depth]; and the load of every router's experts.
        """
        world, fields = self.world, batch.fields
        total_rows, record = fields[0].shape[0], cast(Callable[..., Any], type(fields))
        # Every process reads the whole batch, so counts need no communication.
        share_rows = total_rows // world.size
        parts = -(-share_rows // self.settings.rows_per_microbatch)
        everyones = [
            record(*pieces)
            for shares in zip(*(field.split(share_rows) for field in fields), strict=True)
            for pieces in zip(*(share.tensor_split(parts) for share in shares), strict=True)
        ]
        counts = torch.stack([self.objective.counts(micro) for micro in everyones]).sum(0).to(world.device)
        mine = everyones[world.rank * parts : (world.rank + 1) * parts]
        sums = torch.zeros(2 + len(counts), device=world.device)
        sums[2] = float(self._stop_requested)
        load = torch.zeros(0, device=world.device)
        for number, micro in enumerate(mine):
            synchronise_gradients(self.model, number == len(mine) - 1)
            share = len(micro[0]) / total_rows
            micro = record(*(field.to(world.device) for field in micro))
            losses = self.objective(self.model, micro, counts, share)
            # Sharding averages gradients over processes; ours are parts of a sum.
            (losses.total * world.size).backward()
            sums[0] += losses.main
            sums[1] += losses.balance * share
            sums[3:] += losses.mtp
            load = losses.load if load.numel() == 0 else load + losses.load
        if load.numel():
            load = world.sum(load)
        return (counts, world.sum(sums)), load

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if not parameters:
            raise GLM5Error("no parameter received a gradient: the loss does not depend on any trainable weight")
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _stop_before_damage(self, loss: float, grad_norm: float) -> None:
        kept = self.checkpoints.all()[-1:]
        raise GLM5Error(
            f"step {self.progress.step + 1}: loss {loss} and gradient norm {grad_norm} are no longer finite;"
            f" stopped before the weights were touched. Last good checkpoint: {kept[0] if kept else 'none'}. "
            "Lower lr_muon and lr_adamw, or train in float32."
        )

    @torch.no_grad()
    def _balance(self, load: Tensor) -> None:
        """Auxiliary-loss-free balancing: nudge the selection bias of every expert towards the mean load."""
        rate = self.settings.balance_bias_rate
        for router, seen in zip(self._routers, load, strict=False):
            if rate and seen.sum() > 0:
                nudge_bias(router, seen, rate)


def nudge_bias(router: Router, load: Tensor, rate: float) -> None:
    """b += rate * sign(mean load - load), then centred, for only differences decide (DeepSeek-V3 §2.1.2)."""
    bias = router.e_score_correction_bias
    bias.add_(rate * torch.sign(load.mean() - load))
    bias.sub_(bias.mean())


def _violation(load: Tensor) -> float:
    """Busiest expert's load over the mean, minus 1; mean over routers. 0 is perfect balance."""
    if load.numel() == 0:
        return 0.0
    return float((load.amax(-1) / load.mean(-1).clamp(min=1e-9) - 1).mean())
