"""The stages of a recipe that are reinforcement learning: the same loop with other settings."""

from pathlib import Path

from rich.console import Console

from glm5.errors import UsageError
from glm5.pipeline import StageContext, Summary
from glm5.pipeline.stages import models_before
from glm5.recipe import Recipe
from glm5.recipe.rl import RLRequest, RLSection
from glm5.rl.cluster import Run
from glm5.rl.console import LoopConsole
from glm5.rl.driver import reinforce
from glm5.rl.metrics import EvalRecord, UpdateRecord, read_metrics
from glm5.rl.monitor import Monitor


def reasoning_rl(context: StageContext) -> Summary:
    """Reasoning RL: GRPO with IcePop (GLM-5 report §3.2)."""
    return _run(context, "reasoning-rl", context.recipe.reasoning_rl)


def agentic_rl(context: StageContext) -> Summary:
    """Agentic RL: asynchronous, with double-sided importance sampling (GLM-5 report §3.3)."""
    return _run(context, "agentic-rl", context.recipe.agentic_rl)


def general_rl(context: StageContext) -> Summary:
    """General RL (GLM-5 report §3.4)."""
    return _run(context, "general-rl", context.recipe.general_rl)


def distillation(context: StageContext) -> Summary:
    """On-policy cross-stage distillation (GLM-5 report §3.5)."""
    return _run(context, "distillation", context.recipe.distillation)


def _run(context: StageContext, name: str, settings: RLSection | None) -> Summary:
    assert settings is not None, "the recipe was checked: a stage that is named has its section"
    checkpoint = begins_with(context.recipe, name, settings)
    teachers = {
        task.environment: _model(context.run, task.teacher) for task in settings.tasks if task.teacher is not None
    }
    return _reinforce(Run(settings, checkpoint, context.folder, context.recipe.seed, teachers), context.console)


def run_request(request: RLRequest, console: Console) -> Summary:
    """Reinforcement learning alone (`glm5 rl`). Raises as `reinforce` does."""
    settings, output = request.rl, request.output
    assert settings.checkpoint is not None, "the request was checked"
    teachers = {task.environment: _model(output, task.teacher) for task in settings.tasks if task.teacher is not None}
    return _reinforce(Run(settings, _model(output, settings.checkpoint), output, request.seed, teachers), console)


def _reinforce(run: Run, console: Console) -> Summary:
    settings = run.settings
    run.folder.mkdir(parents=True, exist_ok=True)
    view = LoopConsole(console, settings.updates, settings.prompts_per_step, settings.staleness_bound)
    monitor = Monitor(run.folder, view)
    try:
        reinforce(run, monitor)
    finally:
        monitor.close()
    return _summary(run.folder)


def begins_with(recipe: Recipe, name: str, settings: RLSection) -> Path:
    """The model folder a stage begins with: what its section says, else the result of the stage before it.

    Raises:
        UsageError: there is none.
    """
    if settings.checkpoint is not None:
        return _model(recipe.output, settings.checkpoint)
    before = models_before(recipe, name)
    if not before:
        raise UsageError(
            f"stage {name} has no model to begin with: put a training stage before it, or name a checkpoint"
        )
    return before[-1]


def _model(run: Path, named: str) -> Path:
    """A stage's result by the stage's name, or a folder."""
    stage = run / named / "model"
    folder = stage if stage.exists() else Path(named)
    if not (folder / "config.json").exists():
        raise UsageError(f"checkpoint '{named}' is neither a stage of this run that has ended nor a model's folder")
    return folder


def _summary(folder: Path) -> Summary:
    records = list(read_metrics(folder / "metrics.jsonl"))
    updates = [record for record in records if isinstance(record, UpdateRecord)]
    scores = [record for record in records if isinstance(record, EvalRecord) and not record.kind]
    last = updates[-1]
    summary: Summary = {"updates": last.step, "rollout tokens": last.tokens_sampled, "seconds": round(last.seconds)}
    for environment in sorted({record.environment for record in scores}):
        mine = [record for record in scores if record.environment == environment]
        for way in ("sampled", "greedy"):
            first, final = getattr(mine[0], way), getattr(mine[-1], way)
            summary[f"{environment}, {way}"] = f"{first:.3f} to {final:.3f}"
    return summary
