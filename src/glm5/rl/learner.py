"""The trainer's side of RL: batches of samples become weights, on one rank or many.

It is pre-training's `Trainer` with another objective and another source of rows. What makes a stopped run go on, the
weights, the momenta and the number of updates, is in the checkpoint; the data is in the journal.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm5.errors import GLM5Error
from glm5.model.checkpoint import load_checkpoint, stored_tensors
from glm5.recipe.rl import RLSection
from glm5.rl.objective import PolicyObjective, PolicyRows, PolicyStatistics
from glm5.rl.records import TrainingSample
from glm5.rl.rows import pack_samples
from glm5.train.checkpoints import CheckpointFolder, Progress, fingerprint, publish
from glm5.train.optimizer import Optimizers
from glm5.train.parallel import World, shard
from glm5.train.schedule import BatchSize, LearningRate
from glm5.train.trainer import Trainer, TrainerSettings


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did; sums over its optimiser steps, means over its tokens."""

    update: int
    loss: float
    grad_norm: float
    lr_muon: float
    lr_adamw: float
    tokens: int  # trained
    entropy: float
    mismatch_kl: float
    mismatch_max: float
    masked_share: float
    teacher_kl: float
    seconds: float


class _Given:
    """Rows handed over by hand, as the trainer wants to draw them."""

    phase = "rl"

    def __init__(self) -> None:
        self.rows: PolicyRows | None = None
        self.updates = 0

    def next_batch(self, rows: int) -> "_Given":
        """The rows given last."""
        return self

    @property
    def fields(self) -> PolicyRows:
        """What the trainer cuts into micro-batches."""
        assert self.rows is not None
        return self.rows

    def state_dict(self) -> dict[str, object]:
        """How many updates were done."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from there."""
        self.updates = int(str(state["updates"]))


class Learner:
    """One trainer rank.

    Args:
        checkpoint: model to begin with, if `folder` holds no checkpoint of this stage.
        folder: of the stage.
    """

    def __init__(self, settings: RLSection, checkpoint: Path, folder: Path, world: World) -> None:
        self.settings, self.world, self.folder = settings, world, folder
        self.checkpoints = CheckpointFolder(folder / "checkpoints", checkpoint, settings.keep_checkpoints, world)
        found = self.checkpoints.all()[-1:]
        model = load_checkpoint(found[0] if found else checkpoint, torch.float32)
        config = model.config
        if settings.context_length > config.max_position_embeddings:
            raise GLM5Error(
                f"context_length = {settings.context_length} is more than the {config.max_position_embeddings}"
                f" positions of {checkpoint}"
            )
        sparse = config.has_indexer and settings.context_length > config.index_topk
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_trained(name, settings))
        self.model = shard(model.to(world.device), world)
        self.given = _Given()
        self.objective = PolicyObjective(settings, sparse=sparse)
        optimizers = Optimizers.build(
            self.model, muon_momentum=settings.muon_momentum, weight_decay=settings.weight_decay,
            adamw_betas=settings.adamw_betas, dtype=self.objective.dtype,
        )  # fmt: skip
        progress = Progress()
        if found:
            progress = self.checkpoints.restore(found[0], optimizers.state_tensors())
            self.given.load_state_dict(progress.loader or {"updates": 0})
        self.trainer = Trainer(
            self.model, optimizers, self.given, self.objective, self._loop(), self.checkpoints, None, world
        )
        self.trainer.progress = progress
        self.model.train()

    @property
    def updates(self) -> int:
        """Updates done, those before a resumption included."""
        return self.given.updates

    def update(self, samples: list[TrainingSample]) -> UpdateReport:
        """Train on one batch. Every rank is given the same samples and takes its share of the rows.

        Raises:
            GLM5Error: nothing to train, or loss or gradient are no longer finite; the weights are untouched then.
        """
        began = time.perf_counter()
        count = self.settings.minibatches
        # Dealt like cards, so that every optimiser step has some of every group and length.
        dealt = [samples[start::count] for start in range(min(count, len(samples)))]
        parts = [pack_samples(part, self.settings, self.world.size) for part in dealt]
        if count > 1:  # before the first step moves the policy
            parts = [self._with_old_log_probs(part) for part in parts]
        self.objective.statistics = PolicyStatistics()
        records = []
        self.given.updates += 1
        for part in parts:
            self.given.rows = part
            # Rows are as wide as their samples need: the micro-batch is counted in positions.
            rows = max(1, self.settings.tokens_per_microbatch // part.input_ids.shape[1])
            self.trainer.settings = dataclasses.replace(self.trainer.settings, rows_per_microbatch=rows)
            self.trainer.step()
            assert self.trainer.last is not None
            records.append(self.trainer.last)
        # Here and not in the driver: a batch that is trained again after a crash must end with the same momenta.
        if self.settings.reset_optimizer and self.given.updates % self.settings.push_every == 0:
            self._reset_optimizer()
        sums = self._everyones(self.objective.statistics)
        tokens = max(sums.tokens, 1.0)
        return UpdateReport(
            update=self.given.updates, loss=statistics.fmean(record.loss for record in records),
            grad_norm=max(record.grad_norm for record in records),
            lr_muon=records[-1].lr_muon, lr_adamw=records[-1].lr_adamw, tokens=int(sums.tokens),
            entropy=sums.entropy / tokens, mismatch_kl=sums.k3 / tokens,
            mismatch_max=sums.gap_max, masked_share=1 - sums.kept / tokens,
            teacher_kl=sums.teacher_kl / tokens, seconds=time.perf_counter() - began,
        )  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        """All tensors under their stored names, fp32, copied. Every rank must call this."""
        return {name: tensor.clone() for name, tensor in stored_tensors(self.model)}

    def save(self) -> Path:
        """Write a checkpoint. Raises GLM5Error when it cannot be written; earlier ones are whole."""
        return self.checkpoints.save(self.model, self.trainer.optimizers.state_tensors(), self.trainer.progress)

    def publish(self) -> None:
        """Copy the newest checkpoint's model to the stage's result."""
        if self.world.is_first:
            publish(self.checkpoints.all()[-1], self.folder / "model")
        self.world.barrier()

    def _reset_optimizer(self) -> None:
        """Forget every momentum: new weights in the engines make a new problem (GLM-5 report §3.3)."""
        for tensor in self.trainer.optimizers.state_tensors().values():
            tensor.zero_()

    def fingerprint(self) -> dict[str, float]:
        """A number for each trained parameter that changes when it does."""
        return fingerprint({name: p for name, p in self.model.named_parameters() if p.requires_grad})

    def _with_old_log_probs(self, rows: PolicyRows) -> PolicyRows:
        old = rows.old_logprobs.clone()
        size = max(1, self.settings.tokens_per_microbatch // rows.input_ids.shape[1])
        with torch.no_grad():
            for micro, target in zip(_split(rows, size), old.split(size), strict=True):
                mask, log_probs, _, _ = self.objective.log_probs(self.model, micro)
                target[mask] = log_probs
        return rows._replace(old_logprobs=old)

    def _everyones(self, mine: PolicyStatistics) -> PolicyStatistics:
        if self.world.size == 1:
            return mine
        every: list[PolicyStatistics | None] = [None] * self.world.size
        torch.distributed.all_gather_object(every, mine)
        total = PolicyStatistics()
        for part in every:
            assert part is not None
            for field in dataclasses.fields(PolicyStatistics):
                a, b = getattr(total, field.name), getattr(part, field.name)
                setattr(total, field.name, max(a, b) if field.name == "gap_max" else a + b)
        return total

    def _loop(self) -> TrainerSettings:
        settings = self.settings
        steps = settings.updates * settings.minibatches
        return TrainerSettings(
            context_length=settings.context_length,
            total_tokens=0,  # the driver decides when it is over
            rows_per_microbatch=1,  # set for each batch
            lr_muon=settings.lr_muon,
            lr_adamw=settings.lr_adamw,
            learning_rate=_BySteps(
                LearningRate(
                    settings.schedule, settings.lr_final_fraction, settings.warmup_updates * settings.minibatches, steps
                )
            ),
            batch_size=BatchSize(1, 1, 0, 1),
            grad_clip=settings.grad_clip,
            balance_bias_rate=settings.balance_bias_rate,
            save_every_steps=1,
        )


@dataclass(slots=True, frozen=True)
class _BySteps:
    """A learning rate that counts steps where pre-training counts tokens: batches of rollouts differ in length."""

    rate: LearningRate

    def factor(self, step: int, tokens: int) -> float:
        """The factor of the step numbered `step`."""
        return self.rate.factor(step, step)


def _is_trained(name: str, settings: RLSection) -> bool:
    if ".indexer." in name:
        return settings.train_indexer
    return not name.startswith("mtp.")


def _split(rows: PolicyRows, size: int) -> Iterator[PolicyRows]:
    for pieces in zip(*(field.split(size) for field in rows), strict=True):
        yield PolicyRows(*pieces)
