"""What a loop costs, measured: the spans of a real run → the `Costs` that `glm5.rl.simulate` runs on.

Decoding is fitted by least squares. Of a turn we know its tokens, its seconds and, from the other spans of its engine,
how many sequences decoded beside it on average; `seconds = tokens · (a + b · sequences)` gives a and b. Turns, lengths
and tool latencies are kept as they were measured, as quantiles: their tails decide who waits, and no formula has them.

The prompt's prefill is not a cost of its own: it is in the seconds of the turns it belongs to.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from glm5.errors import GLM5Error
from glm5.rl.costs import Costs, Distribution
from glm5.rl.metrics import GENERATE, SYNC, UPDATE, SpanRecord, UpdateRecord

FAILURES = ("environment", "endpoint", "reward", "deadline", "error")  # why rollouts are excluded, by kind


def fit(updates: Sequence[UpdateRecord], spans: Sequence[SpanRecord], lifetimes: Mapping[str, float]) -> Costs:
    """The costs that a run's `metrics.jsonl` and `rollouts.jsonl` show.

    Args:
        lifetimes: rollout → seconds from its start to its reward. What of them lies before the first turn and after the
            last one is taken for grading; a rollout that is not named adds nothing to that.

    Raises:
        GLM5Error: the run has no update yet, or its engines did not say which turns they generated.
    """
    turns = [span for span in spans if span.what == GENERATE and span.tokens and span.end > span.start]
    trained = [span.end - span.start for span in spans if span.what == UPDATE]
    if not updates or not trained or not turns:
        raise GLM5Error(
            f"a run of {len(updates)} updates, {len(trained)} update spans and {len(turns)} generated turns with "
            "tokens cannot be fitted: give the metrics of a run that has all three"
        )
    rollouts: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in turns:
        rollouts[span.rollout].append(span)
    for own in rollouts.values():
        own.sort(key=lambda span: span.start)
    gaps = [max(0.0, after.start - before.end) for own in rollouts.values() for before, after in pairwise(own)]
    grading = [
        max(0.0, lifetimes[name] - (own[-1].end - own[0].start)) for name, own in rollouts.items() if name in lifetimes
    ]
    beside = _sequences_beside(turns)
    alone, each = _line(
        [(span.tokens, span.tokens * n) for span, n in zip(turns, beside)], [s.end - s.start for s in turns]
    )
    batches = [after - before for before, after in pairwise([0, *(update.tokens_trained for update in updates)])]
    constant, per_token = _line([(1.0, tokens) for tokens in batches[: len(trained)]], trained[: len(batches)])
    pushes = [span.end - span.start for span in spans if span.what == SYNC and span.who == "trainer"]
    samples = sum(update.samples for update in updates)
    failed = sum(n for update in updates for reason, n in update.dropped.items() if reason in FAILURES)
    used, filtered = (sum(getattr(u, name) for u in updates) for name in ("groups_used", "groups_filtered"))
    return Costs(
        tokens=Distribution.measured([span.tokens for span in turns]),
        token_seconds=alone,
        token_seconds_per_sequence=each,
        update_seconds=constant,
        update_seconds_per_token=per_token,
        push_seconds=statistics.fmean(pushes) if pushes else 0.0,
        turns=Distribution.measured([len(own) for own in rollouts.values()]),
        tool_seconds=Distribution.measured(gaps) if gaps else Distribution.constant(0),
        grading_seconds=Distribution.measured(grading) if grading else Distribution.constant(0),
        failed_share=failed / (failed + samples) if failed else 0.0,
        filtered_share=filtered / (filtered + used) if filtered else 0.0,
    )


def _sequences_beside(turns: Sequence[SpanRecord]) -> list[float]:
    """How many turns of the same engine, itself included, were under way during each turn, on average over its time.

    With the moments at which a turn starts or ends in order, the integral of their number over time is a running sum;
    a turn's average is the difference of two of its values.
    """
    averages = [0.0] * len(turns)
    engines: dict[str, list[int]] = defaultdict(list)
    for index, span in enumerate(turns):
        engines[span.who].append(index)
    for own in engines.values():
        moments = sorted([(turns[i].start, 1) for i in own] + [(turns[i].end, -1) for i in own])
        number = list(accumulate(change for _, change in moments))
        area = [0.0, *accumulate(n * (b[0] - a[0]) for n, (a, b) in zip(number, pairwise(moments)))]
        at = {time: total for (time, _), total in zip(moments, area)}
        for i in own:
            start, end = turns[i].start, turns[i].end
            averages[i] = (at[end] - at[start]) / (end - start)
    return averages


def _line(features: Sequence[tuple[float, float]], targets: Sequence[float]) -> tuple[float, float]:
    """Least squares of `target = a·x + b·y` with neither a nor b below 0: no step is paid for by another."""
    xx = sum(x * x for x, _ in features)
    xy = sum(x * y for x, y in features)
    yy = sum(y * y for _, y in features)
    xt = sum(x * t for (x, _), t in zip(features, targets))
    yt = sum(y * t for (_, y), t in zip(features, targets))
    determinant = xx * yy - xy * xy
    if determinant > 1e-9 * xx * yy:
        a, b = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
        if a >= 0 and b >= 0:
            return a, b
        if a < 0:
            return 0.0, yt / yy
    return xt / xx, 0.0
