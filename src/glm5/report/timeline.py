"""Who worked when: the trainer's and the engines' time as rows of a chart, and how much of it each was idle.

A run has more spans than a screen has pixels, so the chart shows the last few updates; the idle shares are of the
whole run. An engine works on many turns at once: its row is darker where more of them overlap.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from glm5.report import words
from glm5.rl.metrics import GENERATE, IDLE, UPDATE, SpanRecord

_UPDATES = 6  # that the chart shows
_ENGINES = 16  # rows
_CELLS = 300  # of an engine's row
_SHADES = 4
WIDTH = 1000.0  # of the chart, in its own units


@dataclass(slots=True)
class Bar:
    """A piece of a row: from `x`, `width` wide."""

    x: float
    width: float
    kind: str  # update | sync | idle | other, or generate with a shade from 1 to 4 as in `generate-3`
    words: str


@dataclass(slots=True)
class Row:
    """One who worked."""

    who: str
    idle: str  # share of the whole run
    bars: list[Bar]


@dataclass(slots=True)
class Timeline:
    """The chart: its rows, its first and last second in words, and what it leaves out."""

    rows: list[Row]
    start: str
    end: str
    note: str


def timeline(spans: Sequence[SpanRecord]) -> Timeline | None:
    """The chart of a run's spans; None where there are none."""
    if not spans:
        return None
    by_who: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        by_who[span.who].append(span)
    last = max(span.end for span in spans)
    updates = sorted(span.start for span in spans if span.what == UPDATE)
    first = updates[-_UPDATES] if len(updates) > _UPDATES else min(span.start for span in spans)
    names = sorted(by_who, key=_order)
    shown, hidden = names[: _ENGINES + 1], names[_ENGINES + 1 :]
    rows = [_row(who, by_who[who], first, last) for who in shown]
    note = f"The last {min(len(updates), _UPDATES)} of {len(updates):,} updates." if len(updates) > _UPDATES else ""
    if hidden:
        note += f" {len(hidden):,} more engines are left out."
    return Timeline(rows, words.duration(first), words.duration(last), note.strip())


def _order(who: str) -> tuple[bool, list[int], str]:
    """The trainer first, then engines by number."""
    return who != "trainer", [int(digits) for digits in re.findall(r"\d+", who)], who


def _row(who: str, spans: list[SpanRecord], first: float, last: float) -> Row:
    busy = [(span.start, span.end) for span in spans if not span.what.startswith(IDLE)]
    idle = max(0.0, last - _covered(busy))
    inside = [span for span in spans if span.end > first]
    generating = [span for span in inside if span.what == GENERATE]
    scale = WIDTH / ((last - first) or 1.0)
    bars = _shades(generating, first, last)
    for span in inside:
        if span.what != GENERATE:
            x = max(0.0, span.start - first) * scale
            kind = "idle" if span.what.startswith(IDLE) else span.what if span.what in ("update", "sync") else "other"
            label = f"{span.what}, {words.duration(span.end - span.start)}"
            bars.append(Bar(round(x, 1), round((span.end - first) * scale - x, 1), kind, label))
    return Row(who, words.share(idle, last), bars)


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _shades(spans: list[SpanRecord], first: float, last: float) -> list[Bar]:
    """Cells of an engine's row, neighbours of one shade joined; the darkest is its busiest."""
    cell = (last - first) / _CELLS or 1.0
    load = [0.0] * _CELLS
    for span in spans:
        begin, end = (max(span.start, first) - first) / cell, (span.end - first) / cell
        for index in range(int(begin), min(_CELLS, int(end) + 1)):
            load[index] += max(0.0, min(end, index + 1) - max(begin, index))
    busiest = max(load)
    bars: list[Bar] = []
    width = WIDTH / _CELLS
    for index, turns in enumerate(load):
        shade = -int(-_SHADES * turns // busiest) if turns > 0.01 else 0  # rounded up
        kind = f"generate-{shade}"
        if bars and shade and bars[-1].kind == kind and abs(bars[-1].x + bars[-1].width - index * width) < 0.01:
            bars[-1].width += width
        elif shade:
            bars.append(Bar(index * width, width, kind, f"up to {turns:.0f} turns at once"))
    return [Bar(round(bar.x, 1), round(bar.width, 1), bar.kind, bar.words) for bar in bars]
