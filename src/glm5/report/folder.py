"""Reading a run's folder into records.

    run.json                 what ran: the stages in order, each with its status, time and summary
    recipe.toml              the resolved recipe
    data/manifest.json       the corpus: what came from where
    <stage>/metrics.jsonl    a training stage's record, beside counts.json, baselines.json and model/config.json
    <stage>/rollouts.jsonl   what an RL stage sampled, read with the tokenizer of its model or of the run

Only run.json or one metrics.jsonl must exist. Whatever else is missing is left out or becomes a note on the page,
never an error: a report is read most eagerly while its run is unfinished.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from glm5.data.manifest import MANIFEST, CorpusManifest, load_manifest
from glm5.errors import GLM5Error
from glm5.rl import metrics as rl_metrics
from glm5.train.metrics import EvalRecord, SampleRecord, StepRecord, read_metrics

T = TypeVar("T")


@dataclass(slots=True)
class Metrics:
    """A training stage's records, sorted by kind."""

    steps: list[StepRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return self.steps[-1].seconds if self.steps else 0.0


@dataclass(slots=True)
class RLMetrics:
    """An RL stage's records, sorted by kind."""

    updates: list[rl_metrics.UpdateRecord] = field(default_factory=list)
    evals: list[rl_metrics.EvalRecord] = field(default_factory=list)
    spans: list[rl_metrics.SpanRecord] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return self.updates[-1].seconds if self.updates else 0.0


@dataclass(slots=True)
class Parameters:
    """How many weights a model has: `total` in the network, `stored` with the MTP layers, `active` for one token."""

    total: int
    stored: int
    active: int
    parts: dict[str, int]


@dataclass(slots=True)
class Stage:
    """One stage of a run; `metrics` is None where nothing was trained (yet), `rl` where nothing was reinforced."""

    name: str
    status: str
    seconds: float
    summary: dict[str, Any]
    outputs: list[str]
    metrics: Metrics | None
    rl: RLMetrics | None
    rollouts: Path | None  # rollouts.jsonl, if any rollout has ended
    tokenizer: Path | None  # to read them with
    parameters: Parameters | None
    config: dict[str, Any]  # of the model, in the names of its config.json
    baselines: dict[str, dict[str, float]]  # quantity → what it is compared with → value


@dataclass(slots=True)
class Run:
    """Everything a run's folder says."""

    name: str
    recipe: str
    stages: list[Stage]
    corpus: CorpusManifest | None
    recipe_toml: str
    as_of: datetime  # when the newest file read here was written


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        GLM5Error: the folder holds no run, or one of its files cannot be understood.
    """
    measured = sorted(folder.glob("*/metrics.jsonl"))
    index = folder / "run.json"
    if not index.exists() and not measured:
        raise GLM5Error(f"{folder} holds no run: neither run.json nor <stage>/metrics.jsonl; give the folder of a run")
    described = _read(index, dict) or {}
    stages = _read(index, lambda run: [_stage(folder, stage) for stage in run["stages"]]) or []
    # A stage may have begun to measure before run.json was brought up to date: it is shown all the same.
    known = {stage.name for stage in stages}
    stages += [_stage(folder, {"name": path.parent.name}) for path in measured if path.parent.name not in known]
    recipe = folder / "recipe.toml"
    manifest = folder / "data" / MANIFEST
    newest = max(path.stat().st_mtime for path in (index, recipe, manifest, *measured) if path.exists())
    return Run(
        name=described.get("name", folder.resolve().name),
        recipe=described.get("recipe", ""),
        stages=stages,
        corpus=load_manifest(manifest.parent) if manifest.exists() else None,
        recipe_toml=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        as_of=datetime.fromtimestamp(newest),
    )


def _stage(folder: Path, described: dict[str, Any]) -> Stage:
    name = described["name"]
    home = folder / name
    record = home / "metrics.jsonl"
    reinforced = record.exists() and rl_metrics.is_rl_metrics(record)
    metrics = None if reinforced else _metrics(record)
    rl = _rl_metrics(record) if reinforced else None
    rollouts = home / "rollouts.jsonl"
    tokenizers = [
        path for path in (home / "model/tokenizer.json", folder / "tokenizer/tokenizer.json") if path.exists()
    ]
    return Stage(
        name=name,
        status=described.get("status", "running"),
        # While a stage runs, its own record is newer than run.json.
        seconds=max(described.get("seconds", 0.0), *(each.seconds for each in (metrics, rl) if each), 0.0),
        summary=described.get("summary", {}),
        outputs=described.get("outputs", []),
        metrics=metrics,
        rl=rl,
        rollouts=rollouts if rollouts.exists() and rollouts.stat().st_size else None,
        tokenizer=tokenizers[0].parent if tokenizers else None,
        parameters=_read(home / "counts.json", lambda c: Parameters(**c["parameters"], parts=c["parts"])),
        config=_read(home / "model/config.json", dict) or {},
        baselines=_read(home / "baselines.json", _baselines) or {},
    )


def _baselines(quantities: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {quantity: {name: float(v) for name, v in values.items()} for quantity, values in quantities.items()}


def _metrics(path: Path) -> Metrics | None:
    if not path.exists():
        return None
    metrics = Metrics()
    for record in read_metrics(path):
        match record:
            case StepRecord():
                metrics.steps.append(record)
            case EvalRecord():
                metrics.evals.append(record)
            case SampleRecord():
                metrics.samples.append(record)
    return metrics


def _rl_metrics(path: Path) -> RLMetrics:
    metrics = RLMetrics()
    for record in rl_metrics.read_metrics(path):
        match record:
            case rl_metrics.UpdateRecord():
                metrics.updates.append(record)
            case rl_metrics.EvalRecord():
                metrics.evals.append(record)
            case rl_metrics.SpanRecord():
                metrics.spans.append(record)
    return metrics


def _read(path: Path, understand: Callable[[dict[str, Any]], T]) -> T | None:
    """What `understand` makes of a JSON file; None where there is no such file."""
    if not path.exists():
        return None
    try:
        return understand(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GLM5Error(f"{path} is not as the report expects it ({error!r}); mend it or move it away") from error
