"""Curves small enough to embed and true enough to trust.

A curve of any length becomes at most a thousand points that keep its first and last point, every bucket's lowest and
highest value, and its gaps: a spike or a NaN that lasted one step is still there to be seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

MAX_POINTS = 1000
_OUTLINE_POINTS = 240  # of the drawing that stands in for the chart where no script runs


@dataclass(slots=True)
class Curve:
    """One line of a chart; `None` is a gap, where the value was not a finite number."""

    name: str
    steps: list[int]
    values: list[float | None]
    color: int = 0  # index into the page's palette
    faint: bool = False  # drawn pale
    margins: list[float] = field(default_factory=list)  # half the width of the interval round each value, where known

    @property
    def last(self) -> float | None:
        """The newest value there is."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(slots=True)
class Rule:
    """A horizontal line to compare a chart's curves with."""

    name: str
    value: float


@dataclass(slots=True)
class Chart:
    """A set of curves over training steps, the one that matters most first: it is drawn on top."""

    title: str
    unit: str
    curves: list[Curve]
    rules: list[Rule] = field(default_factory=list)
    from_zero: bool = False  # the vertical axis starts at 0, because the length of the bar matters
    wide: bool = False
    log: bool = False  # opens with a logarithmic axis
    note: str = ""

    def outline(self, width: int, height: int) -> list[tuple[Curve, list[str]]]:
        """Each curve's strokes as SVG point lists in a box of `width` × `height`: the chart without a script."""
        values = [v for curve in self.curves for v in curve.values if v is not None]
        steps = [s for curve in self.curves for s in curve.steps]
        if not values:
            return []
        low, high = min(values), max(values)
        first, last = min(steps), max(steps)

        def strokes(curve: Curve) -> list[str]:
            runs: list[list[str]] = [[]]
            for index in thin(curve.values, _OUTLINE_POINTS):
                value = curve.values[index]
                if value is None:
                    runs.append([])
                    continue
                x = width * (curve.steps[index] - first) / (last - first or 1)
                y = height * (1 - (value - low) / (high - low or 1))
                runs[-1].append(f"{x:.0f},{y:.0f}")
            return [" ".join(run) for run in runs if run]

        return [(curve, strokes(curve)) for curve in self.curves]


def curve(name: str, steps: Sequence[int], values: Sequence[float], color: int = 0, faint: bool = False) -> Curve:
    """A curve of at most `MAX_POINTS` points from one of any length."""
    clean = [value if math.isfinite(value) else None for value in values]
    kept = thin(clean, MAX_POINTS)
    return Curve(name, [steps[i] for i in kept], [_short(clean[i]) for i in kept], color, faint)


def raw_and_smoothed(name: str, steps: Sequence[int], values: Sequence[float], color: int = 0) -> list[Curve]:
    """A running mean and, pale behind it, every step."""
    return [curve(name, steps, smooth(values), color), curve("each step", steps, values, color, faint=True)]


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over 1/40 of the curve's length, centred so that it does not lag behind a fall.

    The window shrinks towards the first point and is cut off at the last one, where a sound final reading matters more.
    A value that is not finite stays as it is and does not enter the mean.
    """
    n = len(values)
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    sums = list(accumulate(finite, initial=0.0))
    counts = list(accumulate((int(math.isfinite(value)) for value in values), initial=0))
    half = n // 80

    def mean(i: int) -> float:
        begin, end = i - min(i, half), min(n, i + min(i, half) + 1)
        return (sums[end] - sums[begin]) / (counts[end] - counts[begin])

    return [mean(i) if math.isfinite(value) else value for i, value in enumerate(values)]


def thin(values: Sequence[float | None], limit: int) -> list[int]:
    """Indices, ascending and at most `limit` (≥ 5), that keep both ends, the extremes and a mark for every gap.

    The curve is cut into equal buckets; of each we keep its lowest, its highest and its first missing value.
    """
    n = len(values)
    if n <= limit:
        return list(range(n))
    n_buckets = (limit - 2) // 3
    kept = {0, n - 1}
    for bucket in range(n_buckets):
        indices = range(bucket * n // n_buckets, (bucket + 1) * n // n_buckets)
        present = [(value, i) for i in indices if (value := values[i]) is not None]
        if present:
            kept |= {min(present)[1], max(present)[1]}
        if len(present) < len(indices):
            kept.add(next(i for i in indices if values[i] is None))
    return sorted(kept)


def spread(n: int, at_most: int) -> list[int]:
    """Indices below `n`, at most `at_most`, evenly apart: the last one always, the first one where two fit."""
    if n <= at_most:
        return list(range(n))
    return [n - 1] if at_most == 1 else [round(i * (n - 1) / (at_most - 1)) for i in range(at_most)]


def _short(value: float | None) -> float | None:
    """Five significant digits: more than a screen can show, half the bytes."""
    return None if value is None else float(f"{value:.5g}")
