import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.calibrate import fit
from glm5.rl.costs import Costs, Distribution, Loop
from glm5.rl.metrics import UPDATE as UPDATING
from glm5.rl.simulate import Outcome, simulate
from tests.rl.test_metrics import UPDATE

COSTS = Costs(
    Distribution.lognormal(300, 0.9, 8000), 0.02, 0.0006, update_seconds=4, update_seconds_per_token=0.0004,
    push_seconds=1.5, turns=Distribution.lognormal(2, 0.5, 8), tool_seconds=Distribution.lognormal(2, 1, 60),
    grading_seconds=Distribution.lognormal(5, 1, 90),
)  # fmt: skip
LOOP = Loop(engines=3, slots=16, prompts_per_step=8, samples_per_prompt=4, staleness_bound=1)


def fitted(outcome: Outcome) -> Costs:
    """From the spans of a run and what its updates say they trained on: here, the tokens of each update's span."""
    ends = [span for span in outcome.spans if span.what == UPDATING]
    tokens = 0.0
    updates = []
    for step, span in enumerate(ends, start=1):
        tokens += (span.end - span.start - COSTS.update_seconds) / COSTS.update_seconds_per_token
        updates.append(
            replace(UPDATE, step=step, tokens_trained=round(tokens), samples=32, groups_filtered=0, dropped={})
        )
    return fit(updates, outcome.spans, outcome.lifetimes)


def test_what_a_run_cost_can_be_read_from_its_spans() -> None:
    costs = fitted(simulate(LOOP, COSTS, 30, record_spans=True))
    assert costs.token_seconds == pytest.approx(COSTS.token_seconds, rel=0.05)
    assert costs.token_seconds_per_sequence == pytest.approx(COSTS.token_seconds_per_sequence, rel=0.15)
    assert costs.update_seconds == pytest.approx(4, rel=0.05)
    assert costs.update_seconds_per_token == pytest.approx(0.0004, rel=0.05)
    assert costs.push_seconds == pytest.approx(1.5)
    luck = random.Random(0)
    assert statistics.median(costs.grading_seconds.draw(luck) for _ in range(2001)) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_a_fitted_simulation_foretells_other_settings(bound: int) -> None:
    """Measured with one bound and other luck, another bound's wall clock is within 15 per cent."""
    costs = fitted(simulate(LOOP, COSTS, 30, seed=1, record_spans=True))
    loop = replace(LOOP, staleness_bound=bound)
    truth, foretold = (simulate(loop, c, 20, seed).seconds for c, seed in ((COSTS, 2), (costs, 3)))
    assert foretold == pytest.approx(truth, rel=0.15)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(0, 9))
def test_draws_stay_within_what_was_measured(values: list[float], seed: int) -> None:
    luck = random.Random(seed)
    measured = Distribution.measured(values)
    assert all(min(values) <= measured.draw(luck) <= max(values) for _ in range(20))


def test_a_lognormal_has_its_median_and_its_tail() -> None:
    luck = random.Random(0)
    tail = Distribution.lognormal(100, 1, 5000)
    drawn = sorted(tail.draw(luck) for _ in range(4001))
    assert drawn[2000] == pytest.approx(100, rel=0.1)
    assert drawn[3800] / drawn[2000] == pytest.approx(5.18, rel=0.15)  # e^1.645
    assert drawn[-1] <= 5000


def test_shares_of_failed_and_filtered_come_from_the_updates() -> None:
    outcome = simulate(LOOP, COSTS, 2, record_spans=True)
    updates = [replace(UPDATE, step=n, tokens_trained=4000 * n, samples=30, groups_used=6, groups_filtered=2,
                       dropped={"environment": 10, "stale": 7}) for n in (1, 2)]  # fmt: skip
    costs = fit(updates, outcome.spans, outcome.lifetimes)
    assert costs.failed_share == 0.25
    assert costs.filtered_share == 0.25


def test_a_run_without_turns_cannot_be_fitted() -> None:
    with pytest.raises(GLM5Error, match="1 updates, 0 update spans and 0 generated turns"):
        fit([UPDATE], [], {})
    with pytest.raises(GLM5Error, match="no values"):
        Distribution.measured([])
