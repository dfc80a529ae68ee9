"""What a training stage's records say: key figures, charts, expert balance, samples over time.

The records come from `glm5.train.metrics`; the page shows these views and computes nothing itself.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from glm5.report import words
from glm5.report.curves import MAX_POINTS, Chart, Curve, Rule, curve, raw_and_smoothed, spread, thin
from glm5.report.experts import HeatMap, heat_maps
from glm5.report.folder import Metrics, Stage
from glm5.train.metrics import StepRecord

HELD_OUT = "held_out bits per byte"  # the quantity of baselines.json that is drawn
_MAX_MOMENTS = 24  # of the sample slider


@dataclass(slots=True)
class Figure:
    """A number to be seen from across the room."""

    label: str
    value: str
    unit: str = ""
    aside: str = ""  # a line below, smaller


@dataclass(slots=True)
class Phase:
    """The steps trained on one data mixture, first and last included."""

    name: str
    first: int
    last: int


@dataclass(slots=True)
class Moment:
    """The continuations of one step, in the order of the view's prompts; None where that prompt was not asked."""

    step: int
    tokens: int
    texts: list[str | None]


@dataclass(slots=True)
class SampleView:
    """The same prompts, continued again and again through the training."""

    prompts: list[str]
    moments: list[Moment]


@dataclass(slots=True)
class TrainingView:
    """All of a training stage that the page shows."""

    figures: list[Figure]
    charts: list[Chart]
    phases: list[Phase]
    axes: dict[str, list[float]]  # steps, and the tokens and seconds that belong to them
    heat_maps: list[HeatMap]
    samples: SampleView
    notes: list[str]


def training_view(stage: Stage, metrics: Metrics) -> TrainingView:
    """The view of a stage that trained; it may have begun a moment ago, or have gone wrong."""
    return TrainingView(
        figures=key_figures(stage, metrics),
        charts=charts(stage, metrics),
        phases=phases(metrics.steps),
        axes=_axes(metrics),
        heat_maps=heat_maps(metrics.evals),
        samples=_samples(metrics),
        notes=_notes(stage, metrics),
    )


def key_figures(stage: Stage, metrics: Metrics) -> list[Figure]:
    """Quality first, then what it cost."""
    figures = []
    scored = [(e.bits_per_byte["all"], e) for e in metrics.evals if math.isfinite(e.bits_per_byte.get("all", math.nan))]
    if scored:
        best, at = min(scored, key=lambda pair: pair[0])
        final = scored[-1][0]
        aside = "its best" if best == final else f"best {best:.3f} at step {at.step:,}"
        figures.append(Figure("held-out", f"{final:.3f}", "bits per byte", aside))
    if metrics.steps:
        last = metrics.steps[-1]
        speeds = [r.tokens_per_second for r in metrics.steps if math.isfinite(r.tokens_per_second)]
        figures.append(Figure("loss", words.figure(last.loss), "nats/token", f"after step {last.step:,}"))
        n = len(metrics.steps)
        figures.append(Figure("trained on", words.count(last.tokens), "tokens", f"in {n:,} step{'s' if n > 1 else ''}"))
        figures.append(Figure("time", words.duration(stage.seconds)))
        if speeds:
            figures.append(Figure("speed", words.count(round(statistics.median(speeds))), "tokens/s", "median step"))
    if stage.parameters:
        active = f"{words.count(stage.parameters.active)} active per token"
        figures.append(Figure("model", words.count(stage.parameters.total), "parameters", active))
    return figures


def charts(stage: Stage, metrics: Metrics) -> list[Chart]:
    """The curves there is something to draw for."""
    records = metrics.steps
    steps = [r.step for r in records]

    def tracked(attribute: str, name: str, color: int) -> list[Curve]:
        return raw_and_smoothed(name, steps, [getattr(r, attribute) for r in records], color)

    rates = [
        curve("Muon", steps, [r.lr_muon for r in records], 0),
        curve("AdamW", steps, [r.lr_adamw for r in records], 1),
    ]
    ahead = "depth d predicts the token d + 1 places ahead"
    busiest = "mean over the MoE layers; 0 is perfect balance"
    drawn = [
        Chart("Training loss", "nats per token", tracked("loss", "loss", 0), wide=True),
        _held_out(stage, metrics),
        Chart("Multi-token prediction loss", "nats per token", _mtp(records), note=ahead),
        Chart("Learning rate", "", rates, from_zero=True),
        Chart("Gradient norm", "before clipping", tracked("grad_norm", "norm", 2), log=True),
        Chart("Throughput", "tokens per second", tracked("tokens_per_second", "tokens/s", 3), from_zero=True),
        Chart(
            "Load violation",
            "busiest ÷ mean − 1",
            tracked("load_violation", "violation", 4),
            from_zero=True,
            note=busiest,
        ),
        Chart("Balance loss", "", tracked("balance_loss", "balance loss", 5)),
    ]
    return [chart for chart in drawn if any(v for c in chart.curves for v in c.values)]  # neither None nor 0


def phases(records: Sequence[StepRecord]) -> list[Phase]:
    """Runs of steps on the same data mixture."""
    found: list[Phase] = []
    for record in records:
        if found and found[-1].name == record.phase:
            found[-1].last = record.step
        else:
            found.append(Phase(record.phase, record.step, record.step))
    return found


def _mtp(records: Sequence[StepRecord]) -> list[Curve]:
    depths = max((len(r.mtp_loss) for r in records), default=0)
    lines = []
    for depth in range(depths):
        computed = [r for r in records if len(r.mtp_loss) > depth]
        smoothed, raw = raw_and_smoothed(
            f"depth {depth + 1}", [r.step for r in computed], [r.mtp_loss[depth] for r in computed], depth
        )
        lines += [smoothed] if depths > 1 else [smoothed, raw]
    return lines


def _held_out(stage: Stage, metrics: Metrics) -> Chart:
    names = list(dict.fromkeys(name for e in metrics.evals for name in e.bits_per_byte))
    names.sort(key=lambda name: name != "all")  # `all` first: it takes the strongest colour
    lines = []
    for color, name in enumerate(names):
        scored = [e for e in metrics.evals if name in e.bits_per_byte]
        lines.append(curve(name, [e.step for e in scored], [e.bits_per_byte[name] for e in scored], color))
    rules = [Rule(name, value) for name, value in stage.baselines.get(HELD_OUT, {}).items() if math.isfinite(value)]
    return Chart("Held-out text", "bits per byte", lines, rules, wide=True)


def _axes(metrics: Metrics) -> dict[str, list[float]]:
    """Knots to translate a step into tokens and seconds by straight lines; they span everything that was recorded."""
    knots = [(r.step, r.tokens, r.seconds) for r in metrics.steps]
    if not knots or knots[0][0] > 0:
        knots.insert(0, (0, 0, 0.0))
    last_step, _, seconds = knots[-1]
    if metrics.evals and metrics.evals[-1].step > last_step:
        knots.append((metrics.evals[-1].step, metrics.evals[-1].tokens, seconds))
    kept = [knots[i] for i in thin([seconds for _, _, seconds in knots], MAX_POINTS)]
    return {
        "steps": [step for step, _, _ in kept],
        "tokens": [tokens for _, tokens, _ in kept],
        "time": [round(seconds, 1) for _, _, seconds in kept],
    }


def _samples(metrics: Metrics) -> SampleView:
    prompts = list(dict.fromkeys(sample.prompt for sample in metrics.samples))
    texts: dict[int, dict[str, str]] = {}
    tokens = {}
    for sample in metrics.samples:
        texts.setdefault(sample.step, {})[sample.prompt] = sample.text
        tokens[sample.step] = sample.tokens
    steps = sorted(texts)
    shown = [steps[i] for i in spread(len(steps), _MAX_MOMENTS)]
    return SampleView(prompts, [Moment(step, tokens[step], [texts[step].get(p) for p in prompts]) for step in shown])


def _notes(stage: Stage, metrics: Metrics) -> list[str]:
    """What a reader must know to trust the rest, and what is missing."""
    notes = []
    broken = [r.step for r in metrics.steps if not (math.isfinite(r.loss) and math.isfinite(r.grad_norm))]
    if broken:
        notes.append(
            f"{len(broken):,} of {len(metrics.steps):,} steps have a loss or gradient norm that is not a finite "
            f"number, the first at step {broken[0]:,}; the curves have gaps there."
        )
    if not metrics.steps:
        notes.append("No optimiser step has been recorded yet.")
    if not metrics.evals:
        notes.append("Held-out text has not been scored yet.")
    moments = len({sample.step for sample in metrics.samples})
    if moments > _MAX_MOMENTS:
        notes.append(f"Samples are shown at {_MAX_MOMENTS} of the {moments} steps that have them.")
    undrawn = [quantity for quantity in stage.baselines if quantity != HELD_OUT]
    if undrawn:
        notes.append(f"baselines.json compares {', '.join(undrawn)}; this page draws “{HELD_OUT}” only.")
    return notes
