import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.report.curves import MAX_POINTS, Chart, curve, raw_and_smoothed, smooth, spread, thin

finite = st.floats(-1e6, 1e6)
gappy = st.lists(st.one_of(finite, st.none()), max_size=400)


@given(gappy, st.integers(5, 60))
def test_a_thinned_curve_keeps_its_ends_its_extremes_and_a_sign_of_every_gap(values: list, limit: int) -> None:
    kept = thin(values, limit)
    present = [v for v in values if v is not None]
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    if values:
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
    if present:
        shown = [values[i] for i in kept if values[i] is not None]
        assert (min(shown), max(shown)) == (min(present), max(present))
    if None in values:
        assert any(values[i] is None for i in kept)


def test_a_spike_of_one_step_survives_in_a_long_curve() -> None:
    values = [1.0] * 50_000
    values[31_415] = 99.0
    values[27_182] = math.nan
    thinned = curve("loss", range(50_000), values)
    assert len(thinned.steps) <= MAX_POINTS
    assert thinned.values[thinned.steps.index(31_415)] == 99.0
    assert thinned.values[thinned.steps.index(27_182)] is None


@given(st.lists(finite, min_size=1, max_size=300))
def test_a_running_mean_stays_within_its_values(values: list[float]) -> None:
    slack = 1e-6
    assert all(min(values) - slack <= mean <= max(values) + slack for mean in smooth(values))


def test_a_running_mean_does_not_lag_behind_a_straight_fall() -> None:
    line = [1000.0 - i for i in range(800)]
    means = smooth(line)
    assert means[:700] == pytest.approx(line[:700])


def test_a_running_mean_steps_over_what_is_not_a_number() -> None:
    means = smooth([2.0] * 100 + [math.nan, math.inf] + [2.0] * 100)
    assert math.isnan(means[100])
    assert math.isinf(means[101])
    assert means[99] == means[102] == 2.0


@given(st.integers(1, 500), st.integers(1, 40))
def test_spread_keeps_the_newest_and_the_oldest(n: int, at_most: int) -> None:
    chosen = spread(n, at_most)
    assert len(chosen) == min(n, at_most)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == n - 1
    assert at_most == 1 or chosen[0] == 0


def test_an_outline_fills_its_box_and_breaks_at_gaps() -> None:
    chart = Chart("loss", "", [curve("loss", [0, 1, 2, 3, 4], [4.0, 2.0, math.nan, 1.0, 0.0])])
    ((_, strokes),) = chart.outline(100, 50)
    assert strokes == ["0,0 25,25", "75,38 100,50"]


def test_a_chart_of_one_point_and_a_chart_of_none_have_outlines() -> None:
    assert Chart("loss", "", raw_and_smoothed("loss", [7], [3.0], 0)).outline(100, 50)[0][1] == ["0,50"]
    assert Chart("loss", "", raw_and_smoothed("loss", [7], [math.nan], 0)).outline(100, 50) == []
