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

# The report reads whatever there is; it is written again when any stage before it ran again.
_REPORT = Stage(
    name="report",
    function="glm5.report.stage:write_report",
    settings=("name",),
    outputs=lambda recipe: [recipe.output / "report.html"],
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in (_TOKENIZER, _DATA, _PRETRAIN, _REPORT)}
