import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from glm5.rl.console import LoopConsole, Snapshot, Waiter, is_stall, lines, sparkline
from glm5.rl.metrics import EvalRecord
from glm5.rl.snapshot import Counters
from tests.rl.test_metrics import UPDATE

SNAPSHOT = Snapshot(
    seconds=754.2, step=12, steps=200, version=12, running=96, generating=61, ready=3, batch=8, room=0, bound=2,
    lag=0.8, acceptance_length=1.92, prefix_reuse=0.71, tokens_per_second=18_400.0,
    phases={"rollouts": 20.0, "update": 11.5}, rewards=(0.1, 0.2, 0.15, 0.4), dropped={"stale": 3, "endpoint": 0},
    waiters=(Waiter("trainer", "rollouts", 7.4),),
)  # fmt: skip


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_number_and_every_waiter_is_named() -> None:
    words = "\n".join(line.plain for line in lines(SNAPSHOT))
    for expected in (
        "12 of 200", "reward 0.400 ▁▃▂█", "version 12", "0:12:34", "96 in flight, 61 generating", "3 of 8 groups ready",
        "no room: 2 versions ahead at most", "18,400 tok/s", "1.92 tokens a step", "71% of prompts from cache",
        "rollouts 20 s · update 11 s", "lag 0.8 of 2", "3 stale", "trainer for rollouts, 7.4 s",
    ):  # fmt: skip
        assert expected in words
    assert "endpoint" not in words
    assert "stalled" not in words
    assert "room for 4 more" in "\n".join(line.plain for line in lines(replace(SNAPSHOT, room=4)))


@pytest.mark.parametrize(("seconds", "update", "stalled"), [(59, 1, False), (61, 1, True), (61, 30, False)])
def test_a_stall_is_a_wait_far_longer_than_an_update(seconds: float, update: float, stalled: bool) -> None:
    snapshot = replace(SNAPSHOT, phases={"update": update}, waiters=(Waiter("engine 1", "weights", seconds),))
    assert is_stall(snapshot.waiters[0], snapshot) == stalled
    assert ("stalled?" in lines(snapshot)[-1].plain) == stalled


COUNTERS = Counters(
    version=1, queued=3, running=12, room=0, rollouts=96, generating=61, engines=2, engines_lost=0,
    prompt_tokens=1000, cached_tokens=710, sampled_tokens=40_000, dropped={"stale": 3}, why_no_rollouts="capacity",
)  # fmt: skip


def view(console: Console) -> LoopConsole:
    return LoopConsole(console, updates=200, prompts_per_step=8, bound=2)


def test_a_snapshot_joins_counters_and_updates() -> None:
    loop = view(Console(file=io.StringIO()))
    first = loop.snapshot(COUNTERS, "rollouts", 3.0)
    assert (first.step, first.rewards, first.phases) == (0, (), {})
    loop.updated(UPDATE)
    loop.updated(replace(UPDATE, step=2, seconds=30.0, reward_mean=0.5, tokens_sampled=25_000))
    snapshot = loop.snapshot(COUNTERS, "rollouts", 7.4)
    assert snapshot.step == 2
    assert snapshot.rewards == (0.25, 0.5)
    assert snapshot.tokens_per_second == 1000
    assert snapshot.phases == {"waiting for rollouts": 3.5, "work": 16.5}
    assert snapshot.prefix_reuse == 0.71
    trainer, orchestrator = snapshot.waiters
    assert trainer == Waiter("trainer", "rollouts", 7.4)
    assert (orchestrator.who, orchestrator.reason) == ("orchestrator", "capacity")
    assert orchestrator.seconds >= 0


def test_a_terminal_shows_lines_in_place() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    loop = view(console)
    loop.show(COUNTERS, "rollouts", 1.0)
    loop.updated(UPDATE)
    loop.show(COUNTERS, "rollouts", 2.0)
    loop.close()
    assert "\x1b[1A" in shown(console)  # the cursor went up to write over what was there
    assert "1 of 200" in shown(console)


def test_a_file_gets_one_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    loop = view(console)
    loop.show(COUNTERS, "rollouts", 1.0)  # too early for a line
    assert shown(console) == ""
    monkeypatch.setattr("glm5.rl.console._QUIET_SECONDS", -1.0)
    loop.show(COUNTERS, "rollouts", 7.4)
    loop.evaluated(EvalRecord(0, "sort", "", 64, 0.25, 0.5, 0.1))
    progress, score = shown(console).splitlines()
    assert "update 0 of 200" in progress
    assert progress.endswith("trainer waits for rollouts, 7.4 s")
    assert "sort 0.250 ± 0.100 sampled, 0.500 greedy, on 64 held-out tasks" in score


@given(st.lists(st.floats(), max_size=50))
def test_a_sparkline_has_a_bar_for_each_of_the_newest_values(values: list[float]) -> None:
    row = sparkline(values)
    newest = values[-24:]
    assert len(row) == len(newest)
    for bar, value in zip(row, newest):
        assert (bar == " ") == (not math.isfinite(value))
    finite = [(value, bar) for value, bar in zip(newest, row) if math.isfinite(value)]
    assert [bar for _, bar in sorted(finite)] == sorted(bar for _, bar in finite)
