"""The stages there are, and what a stage is given.

Stages live where their subject lives and are imported when their turn comes, because torch alone takes seconds.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from glm5.recipe import Recipe

Summary = dict[str, str | int | float]


@dataclass(slots=True, frozen=True)
class StageContext:
    """What a stage is given: the resolved recipe, its own folder, the run's folder, and where to talk to people."""

    recipe: Recipe
    folder: Path  # the stage makes it; it is there already if an interrupted attempt at the same work left something
    run: Path
    console: Console


@dataclass(slots=True, frozen=True)
class Stage:
    """One step of a run."""

    name: str
    function: str  # "module:name" of a `StageContext -> Summary`, which resumes from what its folder holds
    settings: tuple[str, ...] = ()  # first-level keys of the recipe that decide what it makes
    adjustable: tuple[str, ...] = ()  # of these, what may change while it is interrupted: nothing learned depends on it
    # Small files only; of something large, the manifest or index that stands for it.
    inputs: Callable[[Recipe], Sequence[Path]] = lambda recipe: ()
    outputs: Callable[[Recipe], Sequence[Path]] = lambda recipe: ()

    def load(self) -> Callable[[StageContext], Summary]:
        """Import the stage's function."""
        module, _, name = self.function.partition(":")
        return cast(Callable[[StageContext], Summary], getattr(importlib.import_module(module), name))


def _given_tokenizer(recipe: Recipe) -> list[Path]:
    if recipe.tokenizer.path is None:
        return []
    path = Path(recipe.tokenizer.path)
    return [path / "tokenizer.json" if path.is_dir() else path]


_TOKENIZER = Stage(
    name="tokenizer",
    function="glm5.data.stages:train_tokenizer",
    settings=("seed", "tokenizer", "data"),
    inputs=_given_tokenizer,
    outputs=lambda recipe: [recipe.output / "tokenizer/tokenizer.json"],
)

_DATA = Stage(
    name="data",
    function="glm5.data.stages:build_data",
    settings=("seed", "data"),
    inputs=lambda recipe: [recipe.output / "tokenizer/tokenizer.json"],
    outputs=lambda recipe: [recipe.output / "data/manifest.json"],
)

_PRETRAIN = Stage(
    name="pretrain",
    function="glm5.train.pretrain:pretrain",
    settings=("seed", "model", "pretrain"),
    adjustable=(
        "pretrain.tokens_per_microbatch",
        "pretrain.processes",
        "pretrain.activation_checkpointing",
        "pretrain.loss_chunk_tokens",
        "pretrain.eval_every_steps",
        "pretrain.eval_bytes",
        "pretrain.sample_every_steps",
        "pretrain.sample_prompts",
        "pretrain.save_every_steps",
        "pretrain.keep_checkpoints",
    ),
    inputs=lambda recipe: [recipe.output / "tokenizer/tokenizer.json", recipe.output / "data/manifest.json"],
    outputs=lambda recipe: [recipe.output / "pretrain/metrics.jsonl", recipe.output / "pretrain/model/config.json"],
)


MODEL_STAGES = ("pretrain", "sft", "reasoning-rl", "agentic-rl", "general-rl", "distillation")


def models_before(recipe: Recipe, name: str) -> list[Path]:
    """The models that stages before `name` make, in the recipe's order; each training begins with the last of them."""
    before = recipe.stages[: recipe.stages.index(name)] if name in recipe.stages else []
    return [recipe.output / stage / "model" for stage in before if stage in MODEL_STAGES]


_DEMONSTRATIONS = Stage(
    name="demonstrations",
    function="glm5.environments.stage:demonstrations",
    settings=("demonstrations",),
    outputs=lambda recipe: [
        recipe.output / "demonstrations" / f"{each.name}.jsonl"
        for each in (recipe.demonstrations.sets if recipe.demonstrations else ())
    ],
)


def _sft_inputs(recipe: Recipe) -> list[Path]:
    if recipe.sft is None:
        return []
    checkpoint = recipe.sft.checkpoint or recipe.output / "pretrain/model"
    return [checkpoint / "config.json", *(source.path for source in recipe.sft.within(recipe.output).data)]


_SFT = Stage(
    name="sft",
    function="glm5.train.sft:sft",
    settings=("seed", "sft"),
    adjustable=(
        "sft.tokens_per_microbatch",
        "sft.processes",
        "sft.activation_checkpointing",
        "sft.loss_chunk_tokens",
        "sft.eval_every_steps",
        "sft.eval_rows",
        "sft.sample_every_steps",
        "sft.sample_prompts",
        "sft.save_every_steps",
        "sft.keep_checkpoints",
    ),
    inputs=_sft_inputs,
    outputs=lambda recipe: [recipe.output / "sft/metrics.jsonl", recipe.output / "sft/model/config.json"],
)


def _reinforcement(name: str, function: str) -> Stage:
    section = name.replace("-", "_")

    def inputs(recipe: Recipe) -> list[Path]:
        settings = getattr(recipe, section)
        named = [settings.checkpoint, *(task.teacher for task in settings.tasks)] if settings else []
        stages = [recipe.output / each / "model" for each in named if each in MODEL_STAGES]
        return [model / "config.json" for model in [*models_before(recipe, name)[-1:], *stages]]

    engine = ("urls", "count", "threads", "max_sequences", "max_batch_tokens", "cache_bytes")
    adjustable = (
        *(f"engine.{key}" for key in engine),
        *("trainers", "trainer_threads", "tokens_per_microbatch", "deadline_seconds"),
        *("eval_every_updates", "save_every_updates", "keep_checkpoints"),
    )
    return Stage(
        name=name,
        function=f"glm5.rl.stage:{function}",
        settings=("seed", section),
        adjustable=tuple(f"{section}.{key}" for key in adjustable),
        inputs=inputs,
        outputs=lambda recipe: [recipe.output / name / "metrics.jsonl", recipe.output / name / "model/config.json"],
    )


_REASONING_RL = _reinforcement("reasoning-rl", "reasoning_rl")
_AGENTIC_RL = _reinforcement("agentic-rl", "agentic_rl")
_GENERAL_RL = _reinforcement("general-rl", "general_rl")
_DISTILLATION = _reinforcement("distillation", "distillation")

# The report reads whatever there is; it is written again when any stage before it ran again.
_REPORT = Stage(
    name="report",
    function="glm5.report.stage:write_report",
    settings=("name",),
    outputs=lambda recipe: [recipe.output / "report.html"],
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        _TOKENIZER, _DATA, _PRETRAIN, _DEMONSTRATIONS, _SFT, _REASONING_RL, _AGENTIC_RL, _GENERAL_RL, _DISTILLATION,
        _REPORT,
    )
}  # fmt: skip
