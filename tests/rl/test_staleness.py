"""The capacity rule keeps its promise in every schedule, and nothing is dropped uncounted."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.staleness import Ledger, capacity, is_stale


@dataclass
class Loop:
    """An asynchronous loop reduced to what the rule knows: rollouts begin, end in any order, and are trained."""

    batch_size: int
    bound: int
    version: int = 0
    trained: int = 0
    running: list[int] = field(default_factory=list)  # the version each began with, oldest first
    waiting: list[tuple[int, int, int]] = field(default_factory=list)  # number, version begun with, version ended at
    begun: int = 0
    numbers: list[int] = field(default_factory=list)  # of the running ones

    @property
    def room(self) -> int:
        accepted = self.trained + len(self.waiting)
        return capacity(self.version, accepted, len(self.running), self.batch_size, self.bound)

    def begin(self) -> None:
        self.running.append(self.version)
        self.numbers.append(self.begun)
        self.begun += 1

    def end(self, place: int, accepted: bool) -> None:
        begun_at, number = self.running.pop(place), self.numbers.pop(place)
        if accepted:
            self.waiting.append((number, begun_at, self.version))

    def train(self, batch: list[tuple[int, int, int]]) -> None:
        self.waiting = [each for each in self.waiting if each not in batch]
        self.trained += len(batch)
        self.version += 1


EVENTS = st.lists(st.tuples(st.sampled_from("bbbeeet"), st.integers(0, 10**6), st.integers(0, 3)), max_size=150)
LOOPS = st.builds(Loop, batch_size=st.integers(1, 4), bound=st.integers(0, 3))


@settings(deadline=None)
@given(loop=LOOPS, events=EVENTS)
def test_trained_as_they_end_waiting_costs_no_more_than_the_bound(
    loop: Loop, events: list[tuple[str, int, int]]
) -> None:
    for event, place, luck in events:
        if event == "b" and loop.room > 0:
            loop.begin()
        elif event == "e" and loop.running:
            loop.end(place % len(loop.running), accepted=luck > 0)
        elif event == "t" and len(loop.waiting) >= loop.batch_size:
            batch = loop.waiting[: loop.batch_size]
            assert all(loop.version - ended_at <= loop.bound for _, _, ended_at in batch)
            loop.train(batch)
        assert len(loop.running) + len(loop.waiting) <= (loop.bound + 1) * loop.batch_size


@settings(deadline=None)
@given(loop=LOOPS, events=EVENTS)
def test_trained_as_they_began_no_rollout_is_older_than_the_bound(
    loop: Loop, events: list[tuple[str, int, int]]
) -> None:
    for event, place, luck in events:
        if event == "b" and loop.room > 0:
            loop.begin()
        elif event == "e" and loop.running:
            loop.end(place % len(loop.running), accepted=luck > 0)
        elif event == "t":
            first = sorted(loop.waiting)[: loop.batch_size]
            overtaken = loop.numbers and first and loop.numbers[0] < first[-1][0]  # an older one is still running
            if len(first) == loop.batch_size and not overtaken:
                assert all(loop.version - begun_at <= loop.bound for _, begun_at, _ in first)
                loop.train(first)


def test_the_bound_is_reached_so_the_property_is_not_empty() -> None:
    loop = Loop(batch_size=2, bound=1)
    while loop.room > 0:
        loop.begin()
    assert loop.begun == 4
    for _ in range(4):
        loop.end(0, accepted=True)
    loop.train(loop.waiting[:2])
    assert loop.version - loop.waiting[-1][1] == 1
    assert loop.room == 2


def test_synchronous_is_bound_zero() -> None:
    assert capacity(version=5, accepted=5 * 8, running=0, batch_size=8, bound=0) == 8
    assert capacity(version=5, accepted=5 * 8, running=8, batch_size=8, bound=0) == 0
    assert capacity(version=5, accepted=6 * 8, running=0, batch_size=8, bound=0) == 0


@settings(deadline=None)
@given(versions=st.lists(st.integers(0, 20), min_size=1), ahead=st.integers(0, 20), tau=st.integers(0, 20))
def test_the_oldest_sampled_token_decides(versions: list[int], ahead: int, tau: int) -> None:
    current = max(versions) + ahead
    assert is_stale([-1, *versions, -1], current, tau) == (current - min(versions) > tau)


def test_a_token_from_the_future_and_no_token_are_errors() -> None:
    with pytest.raises(GLM5Error, match="weights 7, but the trainer is at 5"):
        is_stale([7, 3], current=5, tau=4)
    with pytest.raises(GLM5Error, match="nothing was sampled"):
        is_stale([-1, -1], current=5, tau=4)


@settings(deadline=None)
@given(entries=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans())))
def test_the_ledger_loses_nothing(entries: list[tuple[str, int, bool]]) -> None:
    ledger, taken = Ledger(), 0
    for reason, number, take in entries:
        ledger.count(reason, number)
        if take:
            taken += sum(ledger.take().values())
            again = Ledger()
            again.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
            ledger = again
    assert sum(ledger.dropped.values()) == sum(number for _, number, _ in entries)
    assert taken + sum(ledger.recent.values()) == sum(ledger.dropped.values())


def test_a_drop_needs_a_reason() -> None:
    for reason, number in (("", 1), ("stale", -1)):
        with pytest.raises(GLM5Error, match="name one"):
            Ledger().count(reason, number)
