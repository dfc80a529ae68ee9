"""A run's folder as one self-contained HTML page.

Python reads the run, decides what there is to show and renders every word, table and heat map; a short script in the
page draws the charts from embedded JSON. Without the script the charts are plain outlines and nothing else is missing.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from glm5.report import words
from glm5.report.experts import LOAD_LEVELS
from glm5.report.folder import Run, Stage, read_run
from glm5.report.reinforcement import RLView, rl_view
from glm5.report.training import HELD_OUT, Figure, TrainingView, training_view

# What describes a model's shape, in the order a reader asks: name in config.json → words.
_SHAPE = {
    "num_hidden_layers": "layers",
    "first_k_dense_replace": "of them dense",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "q_lora_rank": "query rank",
    "kv_lora_rank": "key-value rank",
    "n_routed_experts": "routed experts",
    "num_experts_per_tok": "experts per token",
    "n_shared_experts": "shared experts",
    "moe_intermediate_size": "expert width",
    "index_topk": "sparse attention top-k",
    "num_nextn_predict_layers": "MTP layers",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context length",
}


@dataclass(slots=True)
class StageView:
    """A stage as the page shows it: `training` and `rl` are None where it did not train, or not by reinforcement."""

    stage: Stage
    training: TrainingView | None
    rl: RLView | None
    shape: dict[str, Any]


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder and return its path. An older report is replaced in one move.

    Raises:
        GLM5Error: the folder holds no run, or one of its files cannot be understood.
    """
    page = render(read_run(run))
    path = run / "report.html"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def render(run: Run) -> str:
    """The whole page, as text."""
    views = [_view(stage) for stage in run.stages]
    environment = Environment(
        loader=PackageLoader("glm5.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=words.count,
        size=words.size,
        duration=words.duration,
        figure=words.figure,
        plain=words.plain,
        heading=words.title,
        toml=words.highlight_toml,
    )
    return environment.get_template("page.html.jinja").render(
        run=run,
        views=views,
        headline=headline(run, views),
        seconds=sum(stage.seconds for stage in run.stages),
        levels=[f"{level:g}" for level in LOAD_LEVELS if math.isfinite(level)],
        share=words.share,
        style=_verbatim("page.css") + _verbatim("rl.css"),
        script=_verbatim("chart.js") + _verbatim("page.js") + _verbatim("rl.js"),
        data=_script_json({v.stage.name: _chart_data(v.training or v.rl) for v in views if v.training or v.rl}),
    )


def headline(run: Run, views: list[StageView]) -> list[Figure]:
    """The run in a few figures: how good, how large, on how much, how long."""
    trained = [view for view in views if view.training]
    figures = []
    for view in reversed(trained):
        quality = next((f for f in view.training.figures if f.label == "held-out"), None) if view.training else None
        if quality:
            rivals = view.stage.baselines.get(HELD_OUT, {})
            nearest = min(rivals, key=lambda name: rivals[name], default=None)
            aside = f"{nearest}: {rivals[nearest]:.3f}" if nearest else quality.aside
            figures.append(Figure("held-out text", quality.value, quality.unit, aside))
            break
    models = [view.stage.parameters for view in trained if view.stage.parameters]
    if models:
        active = f"{words.count(models[-1].active)} active per token"
        figures.append(Figure("model", words.count(models[-1].total), "parameters", active))
    metrics = [view.stage.metrics for view in trained if view.stage.metrics]
    tokens = sum(m.steps[-1].tokens for m in metrics if m.steps)
    if tokens:
        stages = f"in {len(trained)} training stage{'s' if len(trained) > 1 else ''}"
        figures.append(Figure("trained on", words.count(tokens), "tokens", stages))
    figures.append(Figure("wall clock", words.duration(sum(stage.seconds for stage in run.stages)), "", "all stages"))
    done = sum(stage.status == "done" for stage in run.stages)
    others = [f"{words.title(s.name)} {s.status}" for s in run.stages if s.status not in ("done", "pending")]
    figures.append(Figure("stages", f"{done} of {len(run.stages)}", "done", ", ".join(others)))
    return figures


def _view(stage: Stage) -> StageView:
    training = training_view(stage, stage.metrics) if stage.metrics else None
    shape = {label: stage.config[name] for name, label in _SHAPE.items() if stage.config.get(name) is not None}
    return StageView(stage, training, rl_view(stage, stage.rl) if stage.rl else None, shape)


def _chart_data(view: TrainingView | RLView | None) -> dict[str, Any]:
    if view is None:
        return {}
    return {
        "axes": view.axes,
        "phases": [asdict(phase) for phase in view.phases] if isinstance(view, TrainingView) else [],
        "charts": [asdict(chart) for chart in view.charts],
        "rollouts": [asdict(r) for r in view.rollouts.shown] if isinstance(view, RLView) and view.rollouts else [],
    }


def _script_json(value: Any) -> Markup:
    """JSON that may stand inside a `<script>`: no `<` that could close it, no NaN that JavaScript cannot read."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _verbatim(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))
