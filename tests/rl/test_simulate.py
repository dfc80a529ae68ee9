import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error, UsageError
from glm5.rl.costs import Costs, Distribution, Loop
from glm5.rl.simulate import STALE, Outcome, simulate

constant = Distribution.constant
TAIL = Costs(
    Distribution.lognormal(800, 1.2, 32_000), 0.01, 0.0004, update_seconds=20, push_seconds=2,
    turns=Distribution.lognormal(3, 0.6, 12), tool_seconds=Distribution.lognormal(2, 1.3, 120),
    failed_share=0.05, filtered_share=0.2,
)  # fmt: skip

loops = st.builds(
    Loop,
    engines=st.integers(1, 4),
    slots=st.integers(1, 6),
    prompts_per_step=st.integers(1, 4),
    samples_per_prompt=st.integers(1, 4),
    staleness_bound=st.integers(0, 3),
    max_version_lag=st.sampled_from([None, 1, 3]),
    push_every=st.integers(1, 2),
)


def varied(least: float, most: float) -> st.SearchStrategy[Distribution]:
    return st.builds(Distribution.measured, st.lists(st.floats(least, most), min_size=1, max_size=4))


costs = st.builds(
    Costs,
    tokens=varied(1, 1000),
    token_seconds=st.floats(0.001, 0.1),
    token_seconds_per_sequence=st.floats(0, 0.05),
    update_seconds=st.floats(0, 20),
    update_seconds_per_token=st.floats(0, 0.01),
    push_seconds=st.floats(0, 5),
    turns=varied(1, 4),
    tool_seconds=varied(0, 10),
    grading_seconds=varied(0, 10),
    failed_share=st.floats(0, 0.2),
    filtered_share=st.floats(0, 0.4),
)


def ended(outcome: Outcome) -> int:
    return outcome.trained + outcome.waiting + outcome.open + sum(outcome.dropped.values())


@settings(max_examples=40, deadline=None)
@given(loops, costs, st.integers(0, 9))
def test_every_rollout_is_accounted_for(loop: Loop, costs: Costs, seed: int) -> None:
    outcome = simulate(loop, costs, 5, seed, record_spans=True)
    assert outcome.updates == 5
    assert outcome.started == ended(outcome)
    assert sum(outcome.staleness) == outcome.trained
    for share in (outcome.engine_idle, outcome.engine_paused, outcome.slot_use, outcome.trainer_idle):
        assert -1e-9 <= share <= 1 + 1e-9
    assert loop.max_version_lag is None or len(outcome.staleness) <= loop.max_version_lag + 1
    assert loop.staleness_bound or loop.push_every > 1 or len(outcome.staleness) == 1
    trainer = sum(span.end - span.start for span in outcome.spans if span.who == "trainer")
    assert trainer == pytest.approx(outcome.seconds)  # it is always doing, or waiting for, one thing


@settings(max_examples=20, deadline=None)
@given(loops, costs)
def test_the_same_seed_is_the_same_simulation(loop: Loop, costs: Costs) -> None:
    assert simulate(loop, costs, 3, seed=4) == simulate(loop, costs, 3, seed=4)


@given(
    st.integers(1, 6), st.integers(1, 30), st.integers(1, 4), st.floats(0.001, 1), st.floats(0, 1), st.integers(1, 4)
)
def test_equal_rollouts_in_turn_take_what_the_formula_says(
    updates: int, tokens: int, turns: int, alone: float, each: float, size: int
) -> None:
    """Bound 0: rounds of generation, tools, update and push, one after the other."""
    costs = Costs(constant(tokens), alone, each, 3.0, 0.01, 0.5, constant(turns), constant(2.0))
    outcome = simulate(Loop(1, 3 * size, 3, size, staleness_bound=0), costs, updates)
    generating = turns * tokens * (alone + each * 3 * size)
    training = 3.0 + 0.01 * 3 * size * turns * tokens
    assert outcome.seconds == pytest.approx(updates * (generating + 2.0 * (turns - 1) + training + 0.5))
    assert outcome.trainer_idle == pytest.approx(1 - updates * (training + 0.5) / outcome.seconds)
    assert outcome.engine_paused == pytest.approx(updates * 0.5 / outcome.seconds)
    assert 1 - outcome.engine_idle - outcome.engine_paused == pytest.approx(updates * generating / outcome.seconds)


@given(st.integers(2, 8), st.floats(0.1, 9), st.floats(0.1, 9))
def test_equal_rollouts_ahead_of_the_trainer_hide_the_shorter_of_the_two(
    updates: int, generate: float, update: float
) -> None:
    costs = Costs(constant(1), generate, 0.0, update)
    outcome = simulate(Loop(1, 8, 8, 1, staleness_bound=1), costs, updates)
    assert outcome.seconds == pytest.approx(generate + (updates - 1) * max(generate, update) + update)


def synchronous(lengths: list[int], loop: Loop, costs: Costs, updates: int) -> float:
    """The textbook loop, told differently: each round generates a whole batch, token by token, then trains on it."""
    seconds = 0.0
    size = loop.prompts_per_step * loop.samples_per_prompt
    for begin in range(0, updates * size, size):
        batch = lengths[begin : begin + size]
        ends = []
        for engine in range(loop.engines):
            line = batch[engine :: loop.engines]
            decoding: list[int] = []
            now = 0.0
            while line or decoding:
                while line and len(decoding) < loop.slots:
                    decoding.append(line.pop(0))
                step = min(decoding)
                now += step * (costs.token_seconds + len(decoding) * costs.token_seconds_per_sequence)
                decoding = [left - step for left in decoding if left > step]
            ends.append(now)
        seconds += max(ends) + costs.update_seconds + costs.update_seconds_per_token * sum(batch) + costs.push_seconds
    return seconds


@settings(deadline=None)
@given(loops, st.integers(0, 99))
def test_a_bound_of_zero_is_the_synchronous_loop(loop: Loop, seed: int) -> None:
    loop = replace(loop, staleness_bound=0, push_every=1)
    costs = Costs(Distribution.lognormal(40, 1, 900), 0.02, 0.003, 1.0, 0.001, 0.5)
    # The lengths as the simulation draws them: once for the group, then turns, length, grading and failure of each.
    luck = random.Random(seed)
    lengths = []
    for _ in range(4 * loop.prompts_per_step):
        luck.random()
        for _ in range(loop.samples_per_prompt):
            luck.random()
            lengths.append(max(1, round(costs.tokens.draw(luck))))
            luck.random()
            luck.random()
    assert simulate(loop, costs, 4, seed).seconds == pytest.approx(synchronous(lengths, loop, costs, 4))


def test_running_ahead_hides_long_tails_and_costs_staleness() -> None:
    runs = [simulate(Loop(4, 16, 8, 4, bound), TAIL, 12) for bound in (0, 1, 2, 4)]
    seconds = [outcome.seconds for outcome in runs]
    assert all(later <= earlier for earlier, later in pairwise(seconds))
    assert seconds[-1] < 0.6 * seconds[0]
    lags = [statistics.fmean(lag for lag, n in enumerate(r.staleness) for _ in range(n)) for r in runs]
    assert lags == sorted(lags)
    assert lags[0] == 0
    assert runs[0].trainer_idle > runs[-1].trainer_idle


def test_what_is_too_old_is_dropped_and_counted() -> None:
    outcome = simulate(Loop(4, 16, 8, 4, staleness_bound=8, max_version_lag=1), TAIL, 12)
    assert outcome.dropped[STALE] > 0
    assert len(outcome.staleness) <= 2
    assert outcome.started == ended(outcome)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: Loop(0, 1, 1, 1, 0), "engines is 0"),
        (lambda: Loop(1, 1, 1, 1, -1), "staleness_bound is -1"),
        (lambda: Loop(1, 1, 1, 1, 0, max_version_lag=1, push_every=3), "must be at least 2"),
        (lambda: replace(TAIL, failed_share=1.0), "failed_share is 1.0"),
        (lambda: replace(TAIL, push_seconds=-1.0), "nothing may take less than 0"),
        (lambda: replace(TAIL, token_seconds=0.0, token_seconds_per_sequence=0.0), "more than 0 seconds"),
        (lambda: simulate(Loop(1, 1, 1, 1, 0), TAIL, 0), "updates is 0"),
    ],
)
def test_impossible_settings_are_named(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask()


def test_a_loop_that_drops_everything_says_so() -> None:
    with pytest.raises(GLM5Error, match="nearly all were dropped"):
        simulate(Loop(2, 8, 2, 8, 1), replace(TAIL, failed_share=0.95), 2)


def test_a_cluster_in_seconds() -> None:
    costs = Costs(Distribution.lognormal(2000, 1, 32_000), 0.01, 0.0002, update_seconds=60, push_seconds=5)
    outcome = simulate(Loop(1000, 16, 256, 8, 4, max_version_lag=6), costs, 12)
    assert outcome.started > 30_000
    assert outcome.trained == 12 * 256 * 8
