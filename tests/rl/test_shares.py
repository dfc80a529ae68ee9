"""Shares of what is accepted reach their targets, however slow or filtered a task is."""

import heapq
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.rl.shares import ShareController

TASKS = st.tuples(st.floats(0.2, 1), st.floats(1, 2), st.floats(0.5, 1))  # target, seconds, share accepted


def run(controller: ShareController, slots: int, tasks: list[tuple[float, float, float]], accepted: int) -> float:
    """A simulated run with random durations and filters. Returns the seconds until so many were accepted."""
    names = [f"task-{number}" for number in range(len(tasks))]
    chance, now = random.Random(0), 0.0
    running = dict.fromkeys(names, 0)
    ends: list[tuple[float, int, str]] = []
    for number in range(10**6):
        if number >= slots:
            now, _, name = heapq.heappop(ends)
            running[name] -= 1
            if chance.random() < tasks[names.index(name)][2]:
                controller.accepted(name)
        if sum(controller.counts.values()) == accepted:
            return now
        name = controller.choose(running)
        running[name] += 1
        heapq.heappush(ends, (now + chance.expovariate(1 / tasks[names.index(name)][1]), number, name))
    raise AssertionError("the run never ends")


def controller(tasks: list[tuple[float, float, float]], boost: float = 8.0) -> ShareController:
    return ShareController({f"task-{number}": task[0] for number, task in enumerate(tasks)}, boost)


@settings(deadline=None, max_examples=40)
@given(tasks=st.lists(TASKS, min_size=1, max_size=4), slots=st.integers(1, 16))
def test_shares_reach_their_targets(tasks: list[tuple[float, float, float]], slots: int) -> None:
    """Tasks differ up to fourfold in what they need for an accepted rollout; debts stay within what runs at once."""
    shares = controller(tasks)
    run(shares, slots, tasks, accepted=1500)
    for name, target in shares.targets.items():
        assert shares.shares()[name] == pytest.approx(target, abs=(4 * slots + 10) / 1500)


def test_equal_starts_would_not() -> None:
    """The same run with equal slots: the slow and filtered task ends far below its half."""
    tasks = [(1.0, 1.0, 1.0), (1.0, 3.0, 0.5)]
    uncontrolled, controlled = controller(tasks, boost=1.0), controller(tasks)
    run(uncontrolled, 16, tasks, 2000)
    run(controlled, 16, tasks, 2000)
    assert uncontrolled.shares()["task-1"] < 0.2
    assert controlled.shares()["task-1"] == pytest.approx(0.5, abs=0.02)


def test_a_task_that_delivers_nothing_does_not_starve_the_others() -> None:
    """It holds at most boost times its part: here 8 of 9 parts, so the others go on at a ninth of their speed."""
    alive = run(controller([(1.0, 1.0, 1.0)]), 18, [(1.0, 1.0, 1.0)], 1000)
    beside = run(controller([(1.0, 1.0, 1.0), (1.0, 1.0, 0.0)]), 18, [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0)], 1000)
    assert beside < 12 * alive


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 1000), min_size=3, max_size=3), running=st.lists(st.integers(0, 50), min_size=3))
def test_it_goes_on_from_its_state_as_if_it_had_never_stopped(counts: list[int], running: list[int]) -> None:
    targets = {"a": 3.0, "b": 1.0, "c": 0.5}
    first = ShareController(targets)
    for name, count in zip(targets, counts, strict=True):
        first.accepted(name, count)
    second = ShareController(dict(reversed(targets.items())))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    busy = dict(zip(targets, running, strict=False))
    for _ in range(30):
        name = first.choose(busy)
        assert second.choose(busy) == name
        busy[name] += 1
        for each in (first, second):
            each.accepted(name)


def test_debts_and_shares_add_up() -> None:
    shares = ShareController({"a": 3, "b": 1})
    assert shares.shares() == {"a": 0.0, "b": 0.0}
    shares.accepted("a", 4)
    assert (shares.debt("a"), shares.debt("b")) == (-1, 1)
    assert shares.shares() == {"a": 1.0, "b": 0.0}
    assert shares.choose({"a": 0, "b": 0}) == "b"
    assert ShareController({"a": 3, "b": 1}).choose({}) == "a"


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="there is no task"):
        ShareController({})
    with pytest.raises(UsageError, match="check: b"):
        ShareController({"a": 1.0, "b": 0.0})
    with pytest.raises(UsageError, match="boost"):
        ShareController({"a": 1.0}, boost=0.5)
    with pytest.raises(UsageError, match="no task is called b"):
        ShareController({"a": 1.0}).accepted("b")
    with pytest.raises(UsageError, match="has the tasks b, this run a"):
        ShareController({"a": 1.0}).load_state_dict({"counts": {"b": 1}})
