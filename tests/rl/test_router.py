"""Routing: stable, sticky, balanced within its bound, and only what must move moves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error, UsageError
from glm5.rl.router import Router

NAMES = st.lists(st.sampled_from([f"engine-{n}" for n in range(8)]), min_size=2, max_size=8, unique=True)
ROLLOUTS = [f"g{group:06d}-{index}" for group in range(50) for index in range(8)]


def homes(engines: list[str]) -> dict[str, str]:
    """Where each rollout goes when there is no load to balance."""
    router = Router(engines, 16, load_bound=len(ROLLOUTS))
    return {rollout: router.route(rollout) for rollout in ROLLOUTS}


@settings(deadline=None)
@given(engines=NAMES)
def test_the_order_of_engines_changes_nothing(engines: list[str]) -> None:
    assert homes(engines) == homes(engines[::-1])


def test_homes_are_the_same_in_every_process() -> None:
    router = Router(["a", "b", "c", "d"])
    assert "".join(router.route(rollout) for rollout in ROLLOUTS[:8]) == "dcaadbab"


@settings(deadline=None)
@given(engines=NAMES)
def test_a_lost_engine_moves_its_own_rollouts_only(engines: list[str]) -> None:
    before, after = homes(engines), homes(engines[1:])
    assert all(after[rollout] == home for rollout, home in before.items() if home != engines[0])


def test_a_new_engine_takes_about_its_part_and_the_rest_stays() -> None:
    router = Router(["a", "b", "c"])
    before = {rollout: router.route(rollout) for rollout in ROLLOUTS}
    bigger = Router(["a", "b", "c", "d"], load_bound=len(ROLLOUTS))
    unbounded = Router(["a", "b", "c"], load_bound=len(ROLLOUTS))
    moved = [rollout for rollout in ROLLOUTS if bigger.route(rollout) != unbounded.route(rollout)]
    assert {bigger.route(rollout) for rollout in moved} == {"d"}
    assert 0.1 < len(moved) / len(ROLLOUTS) < 0.4
    router.add("d")
    assert {rollout: router.route(rollout) for rollout in ROLLOUTS} == before


@settings(deadline=None)
@given(engines=NAMES, bound=st.floats(1, 2), events=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=80))
def test_rollouts_stay_and_no_engine_takes_beyond_the_bound(
    engines: list[str], bound: float, events: list[tuple[bool, int]]
) -> None:
    router, alive = Router(engines, 8, bound), dict[str, str]()
    for opens, number in events:
        rollout = f"r{number}"
        if opens:
            is_new = rollout not in alive
            name = router.route(rollout)
            assert alive.setdefault(rollout, name) == name
            if is_new:
                assert router.loads[name] <= math.ceil(bound * len(alive) / len(engines))
        else:
            router.release(rollout)
            alive.pop(rollout, None)
        assert router.loads == {name: list(alive.values()).count(name) for name in engines}


def test_load_is_spread() -> None:
    router = Router(["a", "b", "c", "d"])
    for rollout in ROLLOUTS:
        router.route(rollout)
    assert max(router.loads.values()) <= math.ceil(1.25 * len(ROLLOUTS) / 4)
    assert min(router.loads.values()) > 0.5 * len(ROLLOUTS) / 4


def test_the_rollouts_of_a_dead_engine_go_elsewhere_and_the_others_stay() -> None:
    router = Router(["a", "b", "c"])
    before = {rollout: router.route(rollout) for rollout in ROLLOUTS}
    homeless = router.remove("a")
    assert sorted(homeless) == sorted(rollout for rollout, home in before.items() if home == "a")
    after = {rollout: router.route(rollout) for rollout in ROLLOUTS}
    assert all(after[rollout] == home for rollout, home in before.items() if home != "a")
    assert sum(router.loads.values()) == len(ROLLOUTS)
    router.remove("b")
    router.remove("c")
    router.release(ROLLOUTS[0])
    with pytest.raises(GLM5Error, match="no engine is left"):
        router.route(ROLLOUTS[0])


def test_prefix_reuse_is_measured_and_outlives_the_engine() -> None:
    router = Router(["a", "b"])
    assert router.total_reuse.share == 0
    router.served("a", prompt_tokens=100, cached_tokens=0)
    router.served("a", prompt_tokens=100, cached_tokens=90)
    router.remove("b")
    router.served("b", prompt_tokens=200, cached_tokens=110)
    assert router.reuse["a"].share == 0.45
    assert router.reuse["b"].share == 0.55
    assert router.total_reuse.share == 0.5


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="engine a is in the router already"):
        Router(["a", "a"])
    with pytest.raises(UsageError, match="there are: a"):
        Router(["a"]).remove("b")
    with pytest.raises(UsageError, match="at least 1"):
        Router(["a"], load_bound=0.9)
    with pytest.raises(UsageError, match="at least 1"):
        Router(["a"], virtual_nodes=0)
