"""What an RL stage's records say: key figures, curves, staleness, who waited, and rollouts to read.

The records come from `glm5.rl.metrics`; the page shows this view and computes nothing itself.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glm5.report import words
from glm5.report.curves import MAX_POINTS, Chart, Curve, curve, raw_and_smoothed, smooth, thin
from glm5.report.folder import RLMetrics, Stage
from glm5.report.rollouts import Rollouts, read_rollouts
from glm5.report.timeline import Timeline, timeline
from glm5.report.training import Figure
from glm5.rl.metrics import EvalRecord, UpdateRecord
from glm5.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Tally:
    """A quantity's part of a whole: a row of a bar list."""

    name: str
    value: str
    share: float  # of the largest, for the length of the bar
    of_all: str


@dataclass(slots=True)
class RLView:
    """All of an RL stage that the page shows."""

    figures: list[Figure]
    charts: list[Chart]
    axes: dict[str, list[float]]  # updates, and the tokens sampled and seconds that belong to them
    staleness: list[Tally]
    dropped: list[Tally]
    waits: list[Tally]
    timeline: Timeline | None
    rollouts: Rollouts | None
    notes: list[str]


def rl_view(stage: Stage, metrics: RLMetrics) -> RLView:
    """The view of a stage that reinforced; it may have begun a moment ago.

    Raises:
        GLM5Error: its rollouts or its tokenizer cannot be read.
    """
    rollouts = None
    if stage.rollouts is not None and stage.tokenizer is not None:
        rollouts = read_rollouts(stage.rollouts, Tokenizer.load(stage.tokenizer))
    lags: Counter[int] = Counter()
    dropped: Counter[str] = Counter()
    waits: dict[str, float] = defaultdict(float)
    for update in metrics.updates:
        lags.update(dict(enumerate(update.staleness_histogram)))
        dropped.update(update.dropped)
        for reason, seconds in update.wait_seconds.items():
            waits[reason] += seconds
    return RLView(
        figures=key_figures(metrics),
        charts=charts(metrics),
        axes=_axes(metrics.updates),
        staleness=_tallies({f"{lag} version{'' if lag == 1 else 's'}": lags[lag] for lag in sorted(lags)}, words.count),
        dropped=_tallies(dict(dropped.most_common()), words.count),
        waits=_tallies(dict(sorted(waits.items(), key=lambda wait: -wait[1])), words.duration),
        timeline=timeline(metrics.spans),
        rollouts=rollouts,
        notes=_notes(stage, metrics),
    )


def key_figures(metrics: RLMetrics) -> list[Figure]:
    """How good, how far, how fresh, how long."""
    figures = []
    whole = [e for e in metrics.evals if not e.kind]
    for name in dict.fromkeys(e.environment for e in whole):
        own = [e for e in whole if e.environment == name]
        first, last = own[0], own[-1]
        aside = f"was {first.sampled:.3f} · greedy {last.greedy:.3f}" if len(own) > 1 else f"greedy {last.greedy:.3f}"
        figures.append(Figure(f"held-out {name}", f"{last.sampled:.3f}", f"± {last.interval:.3f}", aside))
    if metrics.updates:
        last_update = metrics.updates[-1]
        n, filtered = len(metrics.updates), sum(u.groups_filtered for u in metrics.updates)
        used = sum(u.groups_used for u in metrics.updates)
        waited = sum(seconds for u in metrics.updates for seconds in u.wait_seconds.values())
        trained = f"{words.count(last_update.tokens_trained)} trained on"
        figures += [
            Figure("reward", words.figure(last_update.reward_mean), "", f"after update {last_update.step:,}"),
            Figure("sampled", words.count(last_update.tokens_sampled), "tokens", trained),
            Figure("groups", words.count(used), "trained on", f"{filtered:,} without a difference to learn from"),
            Figure("time", words.duration(last_update.seconds), "", f"in {n:,} update{'s' if n > 1 else ''}"),
            Figure("trainer waited", words.share(waited, last_update.seconds), "", words.duration(waited)),
        ]  # fmt: skip
    return figures


def charts(metrics: RLMetrics) -> list[Chart]:
    """The curves there is something to draw for."""
    updates = metrics.updates
    steps = [u.step for u in updates]

    def tracked(attribute: str, name: str, color: int) -> list[Curve]:
        return raw_and_smoothed(name, steps, [getattr(u, attribute) for u in updates], color)

    def line(attribute: str, name: str, color: int) -> Curve:
        return curve(name, steps, [getattr(u, attribute) for u in updates], color)

    gap = "KL of the trainer's from the engines' log-probabilities of the same tokens; 0 if both compute alike"
    reuse = "share of the prompt tokens found in an engine's cache"
    drawn = [
        Chart("Reward", "mean of each update", tracked("reward_mean", "reward", 0), wide=True),
        Chart("Held-out tasks", "± 95 % interval", _held_out(metrics.evals), from_zero=True, wide=True),
        Chart("Reward by environment", "smoothed", _by_environment(updates), from_zero=True),
        Chart("Full reward", "share of the samples", tracked("success", "success", 2), from_zero=True),
        Chart("Entropy", "nats per token", tracked("entropy", "entropy", 3), from_zero=True),
        Chart("Mismatch", "nats per token", tracked("mismatch_kl", "KL", 5), from_zero=True, note=gap),
        Chart(
            "Masked by importance sampling",
            "share of the tokens",
            tracked("masked_share", "masked", 4),
            from_zero=True,
        ),
        Chart(
            "Staleness",
            "versions",
            [line("staleness_mean", "mean", 0), line("staleness_max", "oldest", 1)],
            from_zero=True,
        ),
        Chart("Gradient norm", "before clipping", tracked("grad_norm", "norm", 2), log=True),
        Chart("Tokens a decoding step yields", "1 without drafts", tracked("acceptance_length", "tokens", 7)),
        Chart("Prefix reuse", "", tracked("prefix_reuse", "reuse", 6), from_zero=True, note=reuse),
        Chart("Learning rate", "", [line("lr_muon", "Muon", 0), line("lr_adamw", "AdamW", 1)], from_zero=True),
    ]
    return [chart for chart in drawn if any(v for c in chart.curves for v in c.values)]  # neither None nor 0


def _held_out(evals: list[EvalRecord]) -> list[Curve]:
    """Of each environment as a whole: sampled with its interval, and greedy."""
    curves = []
    whole = [e for e in evals if not e.kind]
    for color, name in enumerate(dict.fromkeys(e.environment for e in whole)):
        own = [e for e in whole if e.environment == name]
        steps = [e.step for e in own]
        sampled = curve(f"{name}, sampled", steps, [e.sampled for e in own], color)
        at = {e.step: e for e in own}
        sampled.margins = [at[step].interval for step in sampled.steps]
        curves += [sampled, curve(f"{name}, greedy", steps, [e.greedy for e in own], color, faint=True)]
    return curves


def _by_environment(updates: list[UpdateRecord]) -> list[Curve]:
    names = list(dict.fromkeys(name for u in updates for name in u.per_environment))
    curves = []
    for color, name in enumerate(names):
        own = [u for u in updates if name in u.per_environment]
        rewards = smooth([u.per_environment[name].reward for u in own])
        curves.append(curve(name, [u.step for u in own], rewards, color))
    return curves if len(names) > 1 else []


def _axes(updates: list[UpdateRecord]) -> dict[str, list[float]]:
    """Knots to translate an update into tokens and seconds, as for a training stage."""
    knots = [(0, 0, 0.0), *((u.step, u.tokens_sampled, u.seconds) for u in updates)]
    kept = [knots[i] for i in thin([seconds for _, _, seconds in knots], MAX_POINTS)]
    return {
        "steps": [step for step, _, _ in kept],
        "tokens": [tokens for _, tokens, _ in kept],
        "time": [round(seconds, 1) for _, _, seconds in kept],
    }


def _tallies(quantities: Mapping[str, float], spelled: Callable[[float], str]) -> list[Tally]:
    present = {name: value for name, value in quantities.items() if value}
    largest, whole = max(present.values(), default=0), sum(present.values())
    return [Tally(name, spelled(v), v / largest, words.share(v, whole)) for name, v in present.items()]


def _notes(stage: Stage, metrics: RLMetrics) -> list[str]:
    """What a reader must know to trust the rest, and what is missing."""
    notes = []
    broken = [u.step for u in metrics.updates if not (math.isfinite(u.loss) and math.isfinite(u.grad_norm))]
    if broken:
        notes.append(
            f"{len(broken):,} of {len(metrics.updates):,} updates have a loss or gradient norm that is not a finite "
            f"number, the first is update {broken[0]:,}; the curves have gaps there."
        )
    if not metrics.updates:
        notes.append("No update has been recorded yet.")
    if not metrics.evals:
        notes.append("Held-out tasks have not been scored yet.")
    if stage.rollouts is not None and stage.tokenizer is None:
        notes.append("Rollouts cannot be shown: neither the stage nor the run has a tokenizer.json to read them with.")
    return notes
