"""What a person watches while a model is reinforced: how good, how fast, and why whoever waits is waiting.

A few lines updated in place on a terminal, one line now and then anywhere else. Everything shown comes from one
`Snapshot`, taken at one coherent moment: counters read at different moments contradict each other, and a contradiction
looks like a bug in the loop.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from glm5.rl.metrics import EvalRecord, UpdateRecord
from glm5.rl.snapshot import Counters

_QUIET_SECONDS = 20.0  # between lines when stderr is a file or a pipe
_STALL_SECONDS = 60.0  # a wait longer than this is called one, unless updates themselves take long
_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 24


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who cannot go on."""

    who: str
    reason: str
    seconds: float  # so far


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The loop at one moment.

    Attributes:
        seconds: since the run began. step, steps: updates done, and to be done. version: of the newest weights.
        running, generating: rollouts in flight, and those of them that an engine works on.
        ready, batch: groups that wait for the trainer, and how many make a batch.
        room, bound: groups that may begin now, and the versions that rollouts may run ahead.
        lag: mean staleness of the last batch, in versions.
        phases: seconds of the last update by what was done in them, in order.
        rewards: mean reward of every update so far, the newest last.
        tokens_per_second: sampled, since the update before.
        dropped: rollouts by reason, ever.
        waiters: who waits, why and for how long.
    """

    seconds: float
    step: int
    steps: int
    version: int
    running: int
    generating: int
    ready: int
    batch: int
    room: int
    bound: int
    lag: float
    acceptance_length: float
    prefix_reuse: float
    tokens_per_second: float
    phases: dict[str, float] = field(default_factory=dict)
    rewards: tuple[float, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    waiters: tuple[Waiter, ...] = ()


class LoopConsole:
    """The view of a run: told of counters, updates and evaluations as they come, it shows snapshots."""

    def __init__(self, console: Console, updates: int, prompts_per_step: int, bound: int) -> None:
        self._console, self._updates, self._batch, self._bound = console, updates, prompts_per_step, bound
        self._records: list[UpdateRecord] = []
        self._began = self._told = self._held_since = time.monotonic()
        self._held = ""  # why no rollouts begin
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def show(self, counters: Counters, waiting: str, seconds: float) -> None:
        """The trainer has waited for `waiting` for so many seconds, and this is how everything stands."""
        snapshot = self.snapshot(counters, waiting, seconds)
        if self._live is not None:
            self._live.update(Text("\n").join(lines(snapshot)), refresh=True)
        elif time.monotonic() - self._told > _QUIET_SECONDS:
            self._told = time.monotonic()
            self._console.print(Text("  ") + one_line(snapshot), soft_wrap=True)

    def updated(self, record: UpdateRecord) -> None:
        """Take note of an update."""
        self._records.append(record)

    def evaluated(self, record: EvalRecord) -> None:
        """Tell a held-out score of a whole environment, above the lines that move."""
        if not record.kind:
            self._console.print(
                f"  after update {record.step}: {record.environment} {record.sampled:.3f} ± {record.interval:.3f} "
                f"sampled, {record.greedy:.3f} greedy, on {record.n} held-out tasks",
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """Leave the lines as they are."""
        if self._live is not None:
            self._live.stop()

    def snapshot(self, counters: Counters, waiting: str, seconds: float) -> Snapshot:
        """The counters beside what the updates so far have shown."""
        now = time.monotonic()
        if counters.why_no_rollouts != self._held:
            self._held, self._held_since = counters.why_no_rollouts, now
        waiters = [Waiter("trainer", waiting, seconds)] if waiting else []
        if self._held:
            waiters.append(Waiter("orchestrator", self._held, now - self._held_since))
        last = self._records[-1] if self._records else None
        before = self._records[-2] if len(self._records) > 1 else None
        took = last.seconds - (before.seconds if before else 0.0) if last else 0.0
        sampled = last.tokens_sampled - (before.tokens_sampled if before else 0) if last else 0
        phases = dict(last.wait_seconds) if last else {}
        return Snapshot(
            seconds=now - self._began, step=last.step if last else 0, steps=self._updates, version=counters.version,
            running=counters.rollouts, generating=counters.generating, ready=counters.queued, batch=self._batch,
            room=counters.room, bound=self._bound, lag=last.staleness_mean if last else 0.0,
            acceptance_length=last.acceptance_length if last else 1.0,
            prefix_reuse=counters.cached_tokens / counters.prompt_tokens if counters.prompt_tokens else 0.0,
            tokens_per_second=sampled / took if took else 0.0,
            phases={**{f"waiting for {reason}": s for reason, s in phases.items()}, "work": took - sum(phases.values())}
            if last else {},
            rewards=tuple(record.reward_mean for record in self._records), dropped=counters.dropped,
            waiters=tuple(waiters),
        )  # fmt: skip


def lines(snapshot: Snapshot) -> list[Text]:
    """The display, line by line: the model, the rollouts, the time, then a line for each who waits."""
    s = snapshot
    reward = f"reward {s.rewards[-1]:.3f} {sparkline(s.rewards)}" if s.rewards else "no reward yet"
    phases = " · ".join(f"{name} {_clock(seconds)}" for name, seconds in s.phases.items()) or "no update yet"
    dropped = " · ".join(f"{n:,} {reason}" for reason, n in s.dropped.items() if n)
    rows = [
        ("update", f"{s.step} of {s.steps} · {reward} · version {s.version} · {_clock(s.seconds)}"),
        ("rollouts", f"{s.running} in flight, {s.generating} generating · {_ready(s)} · {_room(s)}"),
        ("engines", f"{s.tokens_per_second:,.0f} tok/s · {s.acceptance_length:.2f} tokens a step · "
                    f"{s.prefix_reuse:.0%} of prompts from cache"),
        ("time", f"{phases} · lag {s.lag:.1f} of {s.bound}"),
    ]  # fmt: skip
    if dropped:
        rows.append(("dropped", dropped))
    shown = [Text.assemble((f"  {name:<9}", "dim"), words) for name, words in rows]
    return shown + [_waiting(waiter, s) for waiter in s.waiters]


def one_line(snapshot: Snapshot) -> Text:
    """The same for a log file: what matters most, and who has waited longest."""
    s = snapshot
    reward = f"reward {s.rewards[-1]:.3f}" if s.rewards else "no reward yet"
    words = Text(
        f"{_clock(s.seconds)} · update {s.step} of {s.steps} · {reward} · {s.running} in flight · "
        f"{_ready(s)} · {s.tokens_per_second:,.0f} tok/s · lag {s.lag:.1f}"
    )
    if s.waiters:
        longest = max(s.waiters, key=lambda waiter: waiter.seconds)
        words.append(f" · {longest.who} waits for {longest.reason}, {_clock(longest.seconds)}{_stall(longest, s)}")
    return words


def sparkline(values: Sequence[float]) -> str:
    """The newest values as a row of bars between their own lowest and highest; a value that is no number is a gap."""
    shown = values[-_SPARKS:]
    finite = [value for value in shown if abs(value) < float("inf")]  # NaN compares false
    if not finite:
        return " " * len(shown)
    low, high = min(finite), max(finite)
    unit = (high - low) or 1.0
    return "".join(
        _BARS[min(len(_BARS) - 1, int((v - low) / unit * len(_BARS)))] if abs(v) < float("inf") else " " for v in shown
    )


def is_stall(waiter: Waiter, snapshot: Snapshot) -> bool:
    """Whether a wait is too long to be part of the loop: over a minute, and over three whole updates."""
    return waiter.seconds > max(_STALL_SECONDS, 3 * sum(snapshot.phases.values()))


def _waiting(waiter: Waiter, snapshot: Snapshot) -> Text:
    style = "bold red" if is_stall(waiter, snapshot) else ""
    words = f"{waiter.who} for {waiter.reason}, {_clock(waiter.seconds)}{_stall(waiter, snapshot)}"
    return Text.assemble(("  waits    ", "dim"), (words, style))


def _stall(waiter: Waiter, snapshot: Snapshot) -> str:
    return " – stalled?" if is_stall(waiter, snapshot) else ""


def _ready(snapshot: Snapshot) -> str:
    return f"{snapshot.ready} of {snapshot.batch} groups ready"


def _room(snapshot: Snapshot) -> str:
    return (
        f"room for {snapshot.room} more" if snapshot.room > 0 else f"no room: {snapshot.bound} versions ahead at most"
    )


def _clock(seconds: float) -> str:
    whole = int(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{whole} s" if whole < 60 else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
