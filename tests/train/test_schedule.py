"""Learning rate and batch size over a training, as rules that hold for every setting."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from glm5.train.schedule import BatchSize, LearningRate, ScheduleKind

KINDS: tuple[ScheduleKind, ...] = ("cosine", "linear", "constant", "wsd")


@st.composite
def learning_rates(draw: st.DrawFn) -> LearningRate:
    return LearningRate(
        draw(st.sampled_from(KINDS)),
        draw(st.floats(0, 1)),
        draw(st.integers(0, 50)),
        draw(st.integers(1, 10**12)),
        draw(st.floats(0.01, 1)),
    )


@given(rate=learning_rates())
def test_it_warms_up_linearly_from_above_zero_to_the_peak(rate: LearningRate) -> None:
    factors = [rate.factor(step, tokens=0) for step in range(rate.warmup_steps)]
    assert factors == pytest.approx([(step + 1) / rate.warmup_steps for step in range(rate.warmup_steps)])
    assert all(0 < factor <= 1 for factor in factors)


@given(rate=learning_rates(), places=st.tuples(st.floats(0, 1.5), st.floats(0, 1.5)))
def test_after_the_warm_up_it_never_rises_and_stays_between_peak_and_end(
    rate: LearningRate, places: tuple[float, float]
) -> None:
    earlier, later = (rate.factor(rate.warmup_steps, int(p * rate.total_tokens)) for p in sorted(places))
    lowest = 1.0 if rate.kind == "constant" else rate.final
    assert lowest - 1e-9 <= later <= earlier + 1e-12
    assert earlier <= 1.0


@given(rate=learning_rates())
def test_it_begins_at_the_peak_and_ends_where_it_shall(rate: LearningRate) -> None:
    assert rate.factor(rate.warmup_steps, 0) == pytest.approx(1.0)
    wanted = 1.0 if rate.kind == "constant" else rate.final
    assert rate.factor(rate.warmup_steps, rate.total_tokens) == pytest.approx(wanted)


def test_shapes_at_known_places() -> None:
    def at(kind: ScheduleKind, tokens: int) -> float:
        return LearningRate(kind, 0.2, 0, 1000, wsd_decay_fraction=0.4).factor(10, tokens)

    assert at("linear", 250) == pytest.approx(0.8)
    assert at("cosine", 500) == pytest.approx(0.6)
    assert at("cosine", 250) == pytest.approx(0.2 + 0.8 * (1 + 2**-0.5) / 2)
    assert at("wsd", 599) == 1.0
    assert at("wsd", 800) == pytest.approx(0.6)
    assert at("constant", 1000) == 1.0


@st.composite
def batch_sizes(draw: st.DrawFn) -> BatchSize:
    unit = draw(st.integers(1, 16))
    start = unit * draw(st.integers(1, 20))
    return BatchSize(start, start + unit * draw(st.integers(0, 40)), draw(st.integers(0, 10**9)), unit)


@given(size=batch_sizes(), places=st.tuples(st.integers(0, 2 * 10**9), st.integers(0, 2 * 10**9)))
def test_batches_grow_in_whole_units_from_start_to_full(size: BatchSize, places: tuple[int, int]) -> None:
    earlier, later = (size.rows(tokens) for tokens in sorted(places))
    assert size.start <= earlier <= later <= size.full
    assert earlier % size.unit == later % size.unit == 0


@given(size=batch_sizes())
def test_batches_are_full_from_the_end_of_the_growth_on(size: BatchSize) -> None:
    assume(size.warmup_tokens > 0)
    assert size.rows(0) == size.start
    assert size.rows(size.warmup_tokens) == size.full


def test_without_growth_every_batch_is_full() -> None:
    assert BatchSize(4, 8, 0, 4).rows(0) == 8
