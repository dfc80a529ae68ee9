"""Groups: failures are excluded and never zeros, a majority is repaired, advantages come from unique rollouts."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.groups import NO_SPREAD, TOO_FEW, AdvantageKind, advantages, finish_group
from glm5.rl.records import Trajectory, Turn
from glm5.rl.staleness import Ledger

KINDS: tuple[AdvantageKind, ...] = ("normalised", "centred", "distilled")
REWARDS = st.sampled_from([0.0, 0.25, 0.5, 1.0])
ENDINGS = st.lists(REWARDS | st.sampled_from(["environment: crashed", "deadline"]), min_size=1, max_size=16)


def group(endings: Sequence[float | str]) -> list[Trajectory]:
    """One rollout for each: a reward, or what failed."""
    turn = Turn([1], [2], [-0.5], [0], "stop")
    return [
        Trajectory(f"g-{number:02d}", "t", "e", "g", turns=[turn], failure=ending)
        if isinstance(ending, str)
        else Trajectory(f"g-{number:02d}", "t", "e", "g", turns=[turn], reward=ending)
        for number, ending in enumerate(endings)
    ]


@settings(deadline=None)
@given(endings=ENDINGS, missing=st.integers(0, 4), kind=st.sampled_from(KINDS), drop_equal=st.booleans())
def test_every_rollout_is_kept_or_counted(
    endings: list[float | str], missing: int, kind: AdvantageKind, drop_equal: bool
) -> None:
    size = len(endings) + missing
    result = finish_group(group(endings), size, kind, drop_equal)
    ledger = Ledger()
    for reason, number in result.dropped.items():
        ledger.count(reason, number)
    assert len(result.kept) + sum(ledger.dropped.values()) == len(endings)
    assert all(reason and number for reason, number in result.dropped.items())
    assert ledger.dropped.get("environment", 0) == endings.count("environment: crashed")
    assert len(result.kept) == len(result.advantages) == len(result.weights)
    assert all(each.is_valid for each in result.kept)


@settings(deadline=None)
@given(endings=ENDINGS, missing=st.integers(0, 4), kind=st.sampled_from(KINDS))
def test_a_group_lives_by_strict_majority_and_is_full_again(
    endings: list[float | str], missing: int, kind: AdvantageKind
) -> None:
    size = len(endings) + missing
    valid = sum(isinstance(ending, float) for ending in endings)
    result = finish_group(group(endings), size, kind, drop_equal=False)
    if 2 * valid > size:
        assert len(result.kept) == valid
        assert sum(result.weights) == size
        assert max(result.weights) - min(result.weights) <= 1
        assert min(result.weights) >= 1
    else:
        assert result.kept == []
        assert result.dropped.get(TOO_FEW, 0) == valid


@settings(deadline=None)
@given(endings=ENDINGS, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_the_order_of_arrival_changes_nothing(endings: list[float | str], kind: AdvantageKind, seed: int) -> None:
    rollouts = group(endings)
    shuffled = random.Random(seed).sample(rollouts, len(rollouts))
    assert finish_group(rollouts, len(rollouts), kind) == finish_group(shuffled, len(rollouts), kind)


@settings(deadline=None)
@given(rewards=st.lists(REWARDS, min_size=2, max_size=8), failed=st.integers(0, 7))
def test_failures_do_not_touch_the_advantages(rewards: list[float], failed: int) -> None:
    failed = min(failed, len(rewards) - 1)
    alone = finish_group(group(rewards), len(rewards), "normalised")
    beside = finish_group(group([*rewards, *["environment"] * failed]), len(rewards) + failed, "normalised")
    assert alone.advantages == beside.advantages


@settings(deadline=None)
@given(rewards=st.lists(st.floats(-5, 5), min_size=2, max_size=16), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_normalised_advantages_have_mean_0_and_std_1_whatever_the_scale(
    rewards: list[float], scale: float, shift: float
) -> None:
    values = advantages(rewards, "normalised")
    assert sum(values) == pytest.approx(0, abs=1e-6)
    if max(rewards) - min(rewards) > 0.01:
        assert sum(value**2 for value in values) == pytest.approx(len(values))
        moved = advantages([scale * reward + shift for reward in rewards], "normalised")
        assert moved == pytest.approx(values, abs=1e-6)


def test_advantages_of_a_known_group() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0], "normalised") == [1.0, -1.0, -1.0, 1.0]
    assert advantages([1.0, 0.0, 0.0, 0.0], "centred") == [0.75, -0.25, -0.25, -0.25]
    assert advantages([1.0, 0.0], "distilled") == [0.0, 0.0]
    assert advantages([0.5, 0.5], "normalised") == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["normalised", "centred"])
def test_equal_rewards_are_dropped_only_when_filtering(kind: AdvantageKind) -> None:
    assert finish_group(group([1.0, 1.0, 1.0]), 3, kind).dropped == {NO_SPREAD: 3}
    kept = finish_group(group([1.0, 1.0, 1.0]), 3, kind, drop_equal=False)
    assert kept.advantages == [0.0, 0.0, 0.0]


def test_rounding_is_no_spread() -> None:
    assert finish_group(group([0.1 + 0.2, 0.3]), 2, "normalised").dropped == {NO_SPREAD: 2}


def test_a_distilled_group_of_one_is_kept() -> None:
    result = finish_group(group([0.0]), 1, "distilled")
    assert (result.advantages, result.weights) == ([0.0], [1.0])


def test_eight_of_sixteen_is_not_a_majority() -> None:
    endings: list[float | str] = [0.0, 1.0] * 4 + ["environment"] * 8
    assert finish_group(group(endings), 16, "centred").dropped == {"environment": 8, TOO_FEW: 8}
    endings[-1] = 1.0
    result = finish_group(group(endings), 16, "centred")
    assert result.weights == [2.0] * 7 + [1.0] * 2
    assert result.dropped == {"environment": 7}


def test_mixed_up_groups_are_refused() -> None:
    rollouts = group([0.0, 1.0])
    with pytest.raises(GLM5Error, match="more than its size 1"):
        finish_group(rollouts, 1, "centred")
    with pytest.raises(GLM5Error, match="more than once"):
        finish_group([rollouts[0], rollouts[0]], 2, "centred")
    rollouts[0].group_id = "h"
    with pytest.raises(GLM5Error, match="belong to 2: g, h"):
        finish_group(rollouts, 2, "centred")
    with pytest.raises(GLM5Error, match="belong to 0"):
        finish_group([], 2, "centred")
