"""The pre-training stage: a recipe and a corpus become a base model (GLM-5 report §2.2–2.4).

runs/nano/pretrain/
    metrics.jsonl      every step, every scoring, every sample
    checkpoints/       to go on from; the newest few
    model/             the result: a Hugging Face folder
    counts.json, baselines.json   for the report
"""

import fcntl
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from glm5.data.loader import MixtureLoader
from glm5.data.manifest import held_out_documents
from glm5.engine.generate import generate
from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.model.config import ModelConfig
from glm5.model.counts import count_parameters
from glm5.model.presets import preset
from glm5.model.transformer import Transformer
from glm5.pipeline import StageContext, Summary
from glm5.recipe import PretrainSection, Recipe
from glm5.text.tokenizer import Tokenizer
from glm5.train.baselines import score_baselines
from glm5.train.checkpoints import CheckpointFolder, Progress, fingerprint, publish
from glm5.train.evaluate import ALL, bits_per_byte, lay_out, take_bytes
from glm5.train.metrics import EvalRecord, MetricsLog, SampleRecord, StepRecord, read_metrics
from glm5.train.objective import PretrainingObjective
from glm5.train.optimizer import Optimizers
from glm5.train.parallel import World, shard, work_together
from glm5.train.progress import ProgressLine
from glm5.train.schedule import BatchSize, LearningRate
from glm5.train.trainer import Interrupted, Trainer, TrainerSettings

_SAMPLE_TOKENS = 96


def pretrain(context: StageContext) -> Summary:
    """Run the stage, in as many processes as the recipe asks for, or in those torchrun started.

    Raises:
        KeyboardInterrupt: it was interrupted; everything up to the last step is saved.
        GLM5Error: training failed; the message says how, and what is kept.
    """
    recipe, folder = context.recipe, context.folder
    folder.mkdir(parents=True, exist_ok=True)
    work_together(_train, (recipe, context.run, folder), recipe.pretrain.processes)
    if not (folder / "model" / "config.json").exists():
        raise KeyboardInterrupt  # every process saved its step and left
    return _summary(folder)


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The recipe's network with the tokenizer's vocabulary.

    Raises:
        UsageError: the tokenizer has more tokens than the network has rows.
    """
    config = preset(recipe.model.preset, **recipe.model.overrides)
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size = {config.vocab_size}:"
            " make it at least as large"
        )
    return config.replace("tokenizer", eos_token_id=tuple(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id)


def _train(recipe: Recipe, run: Path, folder: Path) -> None:
    """One process's part, from opening the data to publishing the model."""
    settings = recipe.pretrain
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    world = World.join()
    if world.is_first:
        # Workers outlive a launcher that was killed by the step they finish: whoever comes next waits for them.
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    world.barrier()
    tokenizer = Tokenizer.load(run / "tokenizer")
    checkpoints = CheckpointFolder(folder / "checkpoints", run / "tokenizer", settings.keep_checkpoints, world)
    found = checkpoints.all()[-1:]
    model = _network(recipe, tokenizer, found)
    if settings.activation_checkpointing:
        model.checkpoint_activations()
    model = shard(model.to(world.device), world)
    # A network without a trained indexer is pre-trained dense; DSA is a stage of its own (GLM-5 report §2.1.1).
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
    loader = MixtureLoader(run / "data", settings.context_length, settings.phases, settings.tokens, recipe.seed)
    progress = Progress()
    if found:
        progress = checkpoints.restore(found[0], optimizers.state_tensors())
        loader.load_state_dict(progress.loader or {})
    log = MetricsLog(folder / "metrics.jsonl", progress.step) if world.is_first else None
    trainer = Trainer(
        model, optimizers, loader, _objective(settings, dtype), _loop(settings, world), checkpoints, log, world
    )
    trainer.progress = progress
    watch = _Watch(recipe, run, folder, tokenizer, trainer, dtype)
    before = None if found else fingerprint(_trained(model))
    try:
        trainer.run([watch])
    except Interrupted:
        watch.close(f"interrupted at step {trainer.progress.step}, saved")
        return
    watch.close()
    if before is not None:
        _assert_moved(before, fingerprint(_trained(model)))
    if world.is_first:
        publish(checkpoints.all()[-1], folder / "model")
    world.barrier()


def _network(recipe: Recipe, tokenizer: Tokenizer, checkpoint: list[Path]) -> Transformer:
    if checkpoint:
        return load_checkpoint(checkpoint[0], torch.float32)
    model = Transformer(model_config(recipe, tokenizer))
    model.init_weights(recipe.seed)
    return model


def _objective(settings: PretrainSection, dtype: torch.dtype) -> PretrainingObjective:
    return PretrainingObjective(
        mtp_steps=settings.mtp_steps,
        mtp_loss_weight=settings.mtp_loss_weight,
        mtp_rows_fraction=settings.mtp_rows_fraction,
        balance_loss_weight=settings.balance_loss_weight,
        loss_chunk_tokens=settings.loss_chunk_tokens,
        dtype=dtype,
    )


def _loop(settings: PretrainSection, world: World) -> TrainerSettings:
    rows = settings.tokens_per_microbatch // settings.context_length
    start = settings.rows_per_step_start or settings.rows_per_step
    for name, value in (("rows_per_step", settings.rows_per_step), ("rows_per_step_start", start)):
        if value % world.size:  # the recipe knows about its own processes, not about torchrun's
            raise UsageError(f"pretrain.{name} = {value} rows cannot be shared evenly by {world.size} processes")
    return TrainerSettings(
        context_length=settings.context_length,
        total_tokens=settings.tokens,
        rows_per_microbatch=rows,
        lr_muon=settings.lr_muon,
        lr_adamw=settings.lr_adamw,
        learning_rate=LearningRate(
            settings.schedule,
            settings.lr_final_fraction,
            settings.warmup_steps,
            settings.tokens,
            settings.wsd_decay_fraction,
        ),
        batch_size=BatchSize(start, settings.rows_per_step, settings.batch_warmup_tokens, world.size),
        grad_clip=settings.grad_clip,
        balance_bias_rate=settings.balance_bias_rate,
        save_every_steps=settings.save_every_steps,
    )


def _trained(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _assert_moved(before: dict[str, float], after: dict[str, float]) -> None:
    """No stage may do nothing silently: every parameter it claims to train must have changed."""
    still = [name for name, value in before.items() if after[name] == value]
    if still:
        raise GLM5Error(f"training did not change {len(still)} of {len(before)} parameters: {', '.join(still[:5])}")


class _Watch:
    """Scores held-out text, writes samples and draws the progress line, as the recipe says."""

    def __init__(
        self, recipe: Recipe, run: Path, folder: Path, tokenizer: Tokenizer, trainer: Trainer, dtype: torch.dtype
    ) -> None:
        self.settings, self.tokenizer, self.trainer, self.dtype = recipe.pretrain, tokenizer, trainer, dtype
        documents = take_bytes(held_out_documents(run / "data"), self.settings.eval_bytes)
        self.held_out = lay_out(documents, tokenizer, self.settings.context_length)
        self.line = None
        if trainer.world.is_first:
            config = trainer.model.config
            counts = count_parameters(config)
            _write_json(folder / "counts.json", {"parameters": counts.headline(), "parts": counts.parts})
            if not (folder / "baselines.json").exists():
                _write_json(folder / "baselines.json", score_baselines(run / "data", tokenizer, documents))
            self.line = ProgressLine(Console(stderr=True), self.settings.tokens, trainer.progress.tokens)

    def __call__(self, progress: Progress) -> None:
        settings, record = self.settings, self.trainer.last
        finished = progress.tokens >= settings.tokens
        if self.line is not None and record is not None:
            self.line.step(record)
        if finished or progress.step % settings.eval_every_steps == 0:
            self._evaluate(progress)
        if settings.sample_every_steps and (finished or progress.step % settings.sample_every_steps == 0):
            self._sample(progress)

    def close(self, words: str = "") -> None:
        """Take the progress line away."""
        if self.line is not None:
            self.line.close(words)

    def _evaluate(self, progress: Progress) -> None:
        trainer = self.trainer
        trainer.model.eval()
        bits, load = bits_per_byte(
            trainer.model, self.held_out, trainer.world,
            dtype=self.dtype, sparse=False, loss_chunk_tokens=self.settings.loss_chunk_tokens,
        )  # fmt: skip
        trainer.model.train()
        if not math.isfinite(bits[ALL]):
            raise GLM5Error(
                f"step {progress.step}: held-out text scores {bits[ALL]} bits per byte, so the weights are spoilt"
                " and not saved; the checkpoint before is kept. Lower lr_muon and lr_adamw, or train in float32."
            )
        if trainer.log is not None:
            trainer.log.write(EvalRecord(progress.step, progress.tokens, bits, load))
        if self.line is not None:
            self.line.evaluated(bits)

    def _sample(self, progress: Progress) -> None:
        prompts = [[self.tokenizer.eos_id, *self.tokenizer.encode(text)] for text in self.settings.sample_prompts]
        completions = generate(
            self.trainer.model, prompts, _SAMPLE_TOKENS,
            temperature=0.7, seed=0, stop_ids=() if self.trainer.world.size > 1 else [self.tokenizer.eos_id],
            sparse=False, dtype=self.dtype,
        )  # fmt: skip
        if self.trainer.log is None:
            return
        for text, completion in zip(self.settings.sample_prompts, completions, strict=True):
            ids = completion.ids
            ids = ids[: ids.index(self.tokenizer.eos_id)] if self.tokenizer.eos_id in ids else ids
            self.trainer.log.write(SampleRecord(progress.step, progress.tokens, text, self.tokenizer.decode(ids)))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _summary(folder: Path) -> Summary:
    """What the stage reached, read back from what it wrote."""
    records = list(read_metrics(folder / "metrics.jsonl"))
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    summary: Summary = {"steps": steps[-1].step, "tokens": steps[-1].tokens, "loss": round(steps[-1].loss, 4)}
    for name, bits in asdict(evaluations[-1])["bits_per_byte"].items():
        summary[f"bits per byte, {'held out' if name == ALL else name}"] = round(bits, 4)
    summary["tokens per second"] = round(steps[-1].tokens / steps[-1].seconds)
    return summary
