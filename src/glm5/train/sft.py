"""Supervised fine-tuning: conversations make a base model an assistant (GLM-5 report §3.1).

    files ─ render, mask ─▶ FOLDER/data ─ pack ─▶ rows ─ the trainer of pre-training, losses masked ─▶ FOLDER/model

Only what the assistant produced is learned: thoughts, answers, calls, and the token that ends each turn. The stage of a
recipe and `glm5 sft`, which needs no recipe, are the same work.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from glm5.data.sft_corpus import SftManifest, build_sft_data, describe, read_sft_manifest
from glm5.data.sft_loader import PackedRows, SftLoader, stack
from glm5.errors import UsageError
from glm5.model.checkpoint import load_checkpoint, read_config
from glm5.model.config import ModelConfig
from glm5.ops.loss import IGNORE
from glm5.pipeline import STAGES, StageContext, Summary
from glm5.recipe import SftSection
from glm5.recipe.toml import to_toml
from glm5.text.messages import Message
from glm5.text.template import render_ids
from glm5.text.tokenizer import Tokenizer
from glm5.train.evaluate import HeldOut
from glm5.train.metrics import DataRecord
from glm5.train.objective import learned_targets
from glm5.train.parallel import World, work_together
from glm5.train.schedule import BatchSize
from glm5.train.stage import Plan, Samples, check_shared, joined, summary, train

_SAMPLE_TOKENS = 256
# What may change while the work is interrupted: nothing learned depends on it.
ADJUSTABLE = frozenset(key.removeprefix("sft.") for key in STAGES["sft"].adjustable)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """One piece of work: what `glm5 sft` was asked for, or a recipe's stage."""

    checkpoint: Path  # to begin from
    settings: SftSection
    folder: Path
    seed: int = 0
    threads: int = 0


def sft(context: StageContext) -> Summary:
    """Run the stage of a recipe. Raises as `fine_tune` does."""
    recipe = context.recipe
    assert recipe.sft is not None, "the recipe was checked"
    checkpoint = recipe.sft.checkpoint or context.run / "pretrain" / "model"
    settings = recipe.sft.within(context.run)
    return fine_tune(FineTuning(checkpoint, settings, context.folder, recipe.seed, recipe.threads), context.console)


def fine_tune(work: FineTuning, console: Console) -> Summary:
    """Write the data folder, train, publish `model`; goes on from what an interrupted attempt left.

    Raises:
        UsageError: the checkpoint cannot be trained so, or a file holds something else than conversations.
        GLM5Error: nothing is left to train on, or training failed; the message says what is kept.
        KeyboardInterrupt: it was interrupted; everything up to the last step is saved.
    """
    settings, data = work.settings, work.folder / "data"
    _check(settings, read_config(work.checkpoint), work.checkpoint)
    tokenizer = _tokenizer(work.checkpoint)
    work.folder.mkdir(parents=True, exist_ok=True)
    if not (data / "manifest.json").exists():
        columns = (TextColumn("  {task.description}"), TextColumn("{task.completed:,} records"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reading")
            build_sft_data(
                settings, tokenizer, data, work.seed,
                progress=lambda source, count: bar.update(task, description=source, completed=count),
            )  # fmt: skip
    loader = _loader(work, tokenizer)
    for line in describe(read_sft_manifest(data), loader.rows):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    work_together(_train, (work,), settings.processes)
    if not (work.folder / "model" / "config.json").exists():
        raise KeyboardInterrupt  # every process saved its step and left
    manifest = read_sft_manifest(data)
    counted = {
        "sequences": sum(source.sequences for source in manifest.sources),
        "learned tokens in them": sum(source.learned_tokens for source in manifest.sources),
        "dropped": sum(sum(source.dropped.values()) for source in manifest.sources),
        "truncated": sum(source.truncated for source in manifest.sources),
    }
    return summary(work.folder) | counted


def same_work(work: FineTuning) -> None:
    """Write down what `folder` holds, or see that it holds an earlier attempt at the same.

    Raises:
        UsageError: it holds something else.
    """
    path = work.folder / "sft.toml"
    files = [work.checkpoint / "config.json", *(source.path for source in work.settings.data)]
    now: dict[str, Any] = {
        "checkpoint": str(work.checkpoint),
        "seed": work.seed,
        **work.settings.model_dump(mode="json", exclude_none=True),
    }
    now["modified"] = {str(file): file.stat().st_mtime_ns for file in files if file.exists()}
    wanted = tomllib.loads(to_toml(now))
    if not (work.folder / "data" / "manifest.json").exists():  # nothing to go on from
        if work.folder.exists() and not path.exists() and any(work.folder.iterdir()):
            raise UsageError(f"{work.folder} is not empty and holds no fine-tuning: choose another --output")
        work.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(to_toml(wanted), encoding="utf-8")
        return
    before = tomllib.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in before | wanted if before.get(key) != wanted.get(key) and key not in ADJUSTABLE]
    if changed:
        told = ", ".join(f"{key} was {before.get(key)}, is {wanted.get(key)}" for key in changed)
        raise UsageError(f"{work.folder} holds a fine-tuning with other settings ({told}): choose another --output")


def _train(work: FineTuning) -> None:
    """One process's part."""
    with joined(work.folder, work.threads) as world:
        train(_plan(work, world), world)


def _plan(work: FineTuning, world: World) -> Plan:
    settings = work.settings
    check_shared("sft.rows_per_step", settings.rows_per_step, world)
    tokenizer, manifest = _tokenizer(work.checkpoint), read_sft_manifest(work.folder / "data")
    loader, config = _loader(work, tokenizer), read_config(work.checkpoint)
    steps = math.ceil(loader.rows_until(settings.epochs) / settings.rows_per_step)
    prompts = {
        text: render_ids([Message("user", text)], tokenizer, enable_thinking=False) for text in settings.sample_prompts
    }
    longest = max(map(len, prompts.values()), default=0)
    return Plan(
        settings=settings,
        folder=work.folder,
        text_files=work.checkpoint,
        tokenizer=tokenizer,
        network=lambda: load_checkpoint(work.checkpoint, torch.float32),
        batches=loader,
        total_tokens=steps * settings.rows_per_step * settings.context_length,
        warmup_steps=int(steps * settings.warmup_fraction),
        batch_size=BatchSize(settings.rows_per_step, settings.rows_per_step, 0, world.size),
        rows_per_microbatch=(settings.tokens_per_microbatch or settings.context_length) // settings.context_length,
        held_out=_held_out(work, manifest, tokenizer) if settings.held_out_fraction else None,
        samples=Samples(
            prompts, ends=tokenizer.stop_ids, tokens=min(_SAMPLE_TOKENS, config.max_position_embeddings - longest)
        ),
        sparse=config.has_indexer and settings.context_length > config.index_topk,
        data=DataRecord({source.name: _counts(asdict(source)) for source in manifest.sources}),
    )


def _loader(work: FineTuning, tokenizer: Tokenizer) -> SftLoader:
    weights = {source.title: source.weight for source in work.settings.data}
    return SftLoader(work.folder / "data", weights, tokenizer.pad_id, work.seed)


def _held_out(work: FineTuning, manifest: SftManifest, tokenizer: Tokenizer) -> HeldOut:
    """The first held-out rows of each source, with the targets that are learned; its size is that of their text."""
    names = [source.name for source in manifest.sources]
    packed = [PackedRows(work.folder / "data", manifest, name, "held_out", tokenizer.pad_id) for name in names]
    limit = work.settings.eval_rows
    batch = stack([(source, number) for source in packed for number in range(min(limit, len(source)))])
    targets = learned_targets(batch.fields)
    owners = torch.tensor([names.index(name) for name in batch.sources])[:, None].expand_as(targets)
    learned = {name: targets[(owners == number) & (targets != IGNORE)].tolist() for number, name in enumerate(names)}
    size = {name: len(tokenizer.decode_bytes(ids)) for name, ids in learned.items()}
    return HeldOut(batch.input_ids, targets, batch.document_ids, batch.positions, owners, names, size)


def _check(settings: SftSection, config: ModelConfig, checkpoint: Path) -> None:
    if settings.context_length > config.max_position_embeddings:
        raise UsageError(
            f"context_length = {settings.context_length} is above the max_position_embeddings ="
            f" {config.max_position_embeddings} of {checkpoint}"
        )
    if settings.mtp_steps and not config.num_nextn_predict_layers:
        raise UsageError(f"mtp_steps = {settings.mtp_steps} needs a layer that {checkpoint} does not have: set it to 0")


def _tokenizer(checkpoint: Path) -> Tokenizer:
    if not (checkpoint / "tokenizer.json").exists():
        raise UsageError(f"{checkpoint} has no tokenizer.json, which conversations need: copy it there")
    return Tokenizer.load(checkpoint)


def _counts(values: Mapping[str, object]) -> dict[str, int]:
    """A source's counts in one level: `dropped too long` beside `records`."""
    counts = {key: value for key, value in values.items() if isinstance(value, int)}
    dropped = values["dropped"]
    assert isinstance(dropped, dict)
    return counts | {f"dropped {reason}": count for reason, count in dropped.items()}
