"""What every training stage does, whatever it learns: a network, its optimisers, the loop, scores, samples, a model.

STAGE/
    metrics.jsonl      every step, every scoring, every sample
    checkpoints/       to go on from; the newest few
    model/             the result: a Hugging Face folder
    counts.json        parameters, for the report
"""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from glm5.engine.generate import generate
from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.model.counts import count_parameters
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.pipeline import Summary
from glm5.recipe import PretrainSection, SftSection
from glm5.text.tokenizer import Tokenizer
from glm5.train.checkpoints import CheckpointFolder, Progress, fingerprint, publish
from glm5.train.evaluate import ALL, HeldOut, bits_per_byte
from glm5.train.metrics import DataRecord, EvalRecord, MetricsLog, SampleRecord, StepRecord, read_metrics
from glm5.train.objective import PretrainingObjective
from glm5.train.optimizer import Optimizers
from glm5.train.parallel import World, shard
from glm5.train.progress import ProgressLine
from glm5.train.schedule import BatchSize, LearningRate
from glm5.train.trainer import Batches, Interrupted, Trainer, TrainerSettings


@dataclass(slots=True)
class Samples:
    """What the model is asked to continue now and then.

    Attributes:
        prompts: token ids of each prompt, by its text.
        ends: ids that end a continuation; they are not shown.
        tokens: length of a continuation at most.
    """

    prompts: Mapping[str, Sequence[int]]
    ends: Sequence[int]
    tokens: int


@dataclass(slots=True)
class Plan:
    """One stage's training.

    Attributes:
        folder: of the stage.
        text_files: folder with the tokenizer files that go with the model.
        network: makes the network to begin with, where there is no checkpoint to go on from.
        held_out: what is scored; None where nothing is.
        sparse: whether attention selects.
        data: what the batches are made of, for the record.
    """

    settings: PretrainSection | SftSection
    folder: Path
    text_files: Path
    tokenizer: Tokenizer
    network: Callable[[], Transformer]
    batches: Batches
    total_tokens: int
    warmup_steps: int
    batch_size: BatchSize
    rows_per_microbatch: int
    held_out: HeldOut | None
    samples: Samples
    sparse: bool = False
    data: DataRecord | None = None


@contextmanager
def joined(folder: Path, threads: int) -> Iterator[World]:
    """Join the processes that train in `folder`, and keep those of another attempt out of it."""
    if threads:
        torch.set_num_threads(threads)
    world = World.join()
    with (folder / ".lock").open("w") as lock:
        if world.is_first:
            # Workers outlive a launcher that was killed by the step they finish: whoever comes next waits for them.
            fcntl.flock(lock, fcntl.LOCK_EX)
        world.barrier()
        yield world


def train(plan: Plan, world: World) -> None:
    """One process's part, from the network to the published model; goes on from the newest checkpoint.

    Raises:
        GLM5Error: training failed; the message says how, and what is kept.
    """
    settings = plan.settings
    checkpoints = CheckpointFolder(plan.folder / "checkpoints", plan.text_files, settings.keep_checkpoints, world)
    found = checkpoints.all()[-1:]
    model = load_checkpoint(found[0], torch.float32) if found else plan.network()
    if settings.activation_checkpointing:
        model.checkpoint_activations()
    model = shard(model.to(world.device), world)
    # Indexers are trained in a stage of their own, against the attention they stand for (GLM-5 report §2.1.1).
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name and (settings.mtp_steps > 0 or not name.startswith("mtp.")))
    dtype = getattr(torch, settings.dtype)
    optimizers = Optimizers.build(
        model,
        muon_momentum=settings.muon_momentum,
        muon_split=settings.muon_split,
        weight_decay=settings.weight_decay,
        adamw_betas=settings.adamw_betas,
        dtype=dtype,
    )
    objective = PretrainingObjective(
        mtp_steps=settings.mtp_steps,
        mtp_loss_weight=settings.mtp_loss_weight,
        mtp_rows_fraction=settings.mtp_rows_fraction,
        balance_loss_weight=settings.balance_loss_weight,
        loss_chunk_tokens=settings.loss_chunk_tokens,
        dtype=dtype,
        sparse=plan.sparse,
    )
    progress = Progress()
    if found:
        progress = checkpoints.restore(found[0], optimizers.state_tensors())
        plan.batches.load_state_dict(progress.loader or {})
    log = MetricsLog(plan.folder / "metrics.jsonl", progress.step) if world.is_first else None
    if log is not None and plan.data is not None and not found:
        log.write(plan.data)
    trainer = Trainer(model, optimizers, plan.batches, objective, _loop(plan), checkpoints, log, world)
    trainer.progress = progress
    watch = _Watch(plan, trainer, dtype)
    before = None if found else fingerprint(_trained(model))
    try:
        trainer.run([watch])
    except Interrupted:
        watch.close(f"interrupted at step {trainer.progress.step}, saved")
        return
    watch.close()
    if before is not None:
        assert_moved(before, fingerprint(_trained(model)))
    if world.is_first:
        publish(checkpoints.all()[-1], plan.folder / "model")
    world.barrier()


def check_shared(name: str, rows: int, world: World) -> None:
    """Raise UsageError where a step's rows cannot be shared evenly: recipes know nothing of torchrun's processes."""
    if rows % world.size:
        raise UsageError(f"{name} = {rows} rows cannot be shared evenly by {world.size} processes")


def assert_moved(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """No stage may do nothing silently: every parameter it claims to train must have changed.

    Raises:
        GLM5Error: one did not.
    """
    still = [name for name, value in before.items() if after[name] == value]
    if still:
        raise GLM5Error(f"training did not change {len(still)} of {len(before)} parameters: {', '.join(still[:5])}")


def summary(folder: Path) -> Summary:
    """What the stage reached, read back from what it wrote."""
    records = list(read_metrics(folder / "metrics.jsonl"))
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    reached: Summary = {"steps": steps[-1].step, "tokens": steps[-1].tokens, "loss": round(steps[-1].loss, 4)}
    for record in evaluations[-1:]:
        for name, bits in record.bits_per_byte.items():
            reached[f"bits per byte, {'held out' if name == ALL else name}"] = round(bits, 4)
    reached["tokens per second"] = round(steps[-1].tokens / steps[-1].seconds)
    return reached


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a small file for the report."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _loop(plan: Plan) -> TrainerSettings:
    settings = plan.settings
    return TrainerSettings(
        context_length=settings.context_length,
        total_tokens=plan.total_tokens,
        rows_per_microbatch=plan.rows_per_microbatch,
        lr_muon=settings.lr_muon,
        lr_adamw=settings.lr_adamw,
        learning_rate=LearningRate(
            settings.schedule,
            settings.lr_final_fraction,
            plan.warmup_steps,
            plan.total_tokens,
            settings.wsd_decay_fraction,
        ),
        batch_size=plan.batch_size,
        grad_clip=settings.grad_clip,
        balance_bias_rate=settings.balance_bias_rate,
        save_every_steps=settings.save_every_steps,
    )


def _trained(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class _Watch:
    """Scores held-out text, writes samples and draws the progress line, as the settings say."""

    def __init__(self, plan: Plan, trainer: Trainer, dtype: torch.dtype) -> None:
        self.plan, self.settings, self.trainer, self.dtype = plan, plan.settings, trainer, dtype
        self.line = None
        if trainer.world.is_first:
            counts = count_parameters(trainer.model.config)
            write_json(plan.folder / "counts.json", {"parameters": counts.headline(), "parts": counts.parts})
            self.line = ProgressLine(Console(stderr=True), plan.total_tokens, trainer.progress.tokens)

    def __call__(self, progress: Progress) -> None:
        settings, record = self.settings, self.trainer.last
        finished = progress.tokens >= self.plan.total_tokens
        if self.line is not None and record is not None:
            self.line.step(record)
        if self.plan.held_out is not None and (finished or progress.step % settings.eval_every_steps == 0):
            self._evaluate(progress, self.plan.held_out)
        if settings.sample_every_steps and (finished or progress.step % settings.sample_every_steps == 0):
            self._sample(progress)

    def close(self, words: str = "") -> None:
        """Take the progress line away."""
        if self.line is not None:
            self.line.close(words)

    def _evaluate(self, progress: Progress, held_out: HeldOut) -> None:
        trainer = self.trainer
        trainer.model.eval()
        bits, load = bits_per_byte(
            trainer.model, held_out, trainer.world,
            dtype=self.dtype, sparse=self.plan.sparse, loss_chunk_tokens=self.settings.loss_chunk_tokens,
        )  # fmt: skip
        trainer.model.train()
        if not math.isfinite(bits[ALL]):
            raise GLM5Error(
                f"step {progress.step}: held-out text scores {bits[ALL]} bits per byte, so the weights are spoilt"
                " and not saved; the checkpoint before is kept. Lower lr_muon and lr_adamw, or train in float32."
            )
        if trainer.log is not None:
            loss = nats_per_token(bits, held_out)
            trainer.log.write(EvalRecord(progress.step, progress.tokens, bits, load, loss))
        if self.line is not None:
            self.line.evaluated(bits)

    def _sample(self, progress: Progress) -> None:
        samples, tokenizer = self.plan.samples, self.plan.tokenizer
        completions = generate(
            self.trainer.model, [list(ids) for ids in samples.prompts.values()], samples.tokens,
            temperature=0.7, seed=0, stop_ids=() if self.trainer.world.size > 1 else samples.ends,
            sparse=self.plan.sparse, dtype=self.dtype,
        )  # fmt: skip
        if self.trainer.log is None:
            return
        for prompt, completion in zip(samples.prompts, completions, strict=True):
            end = next((place for place, i in enumerate(completion.ids) if i in samples.ends), None)
            text = tokenizer.decode(completion.ids[:end])
            self.trainer.log.write(SampleRecord(progress.step, progress.tokens, prompt, text))


def nats_per_token(bits: Mapping[str, float], held_out: HeldOut) -> dict[str, float]:
    """Scores in bits per byte as losses per scored token, by source and for `ALL`."""
    scored = held_out.sources[held_out.targets != IGNORE].bincount(minlength=len(held_out.names)).tolist()
    tokens = dict(zip(held_out.names, scored, strict=True)) | {ALL: sum(scored)}
    size = held_out.size | {ALL: sum(held_out.size.values())}
    return {name: score * math.log(2) * size[name] / tokens[name] for name, score in bits.items()}
