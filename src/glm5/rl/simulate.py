"""The asynchronous loop in simulated time: what a setting costs before a cluster is rented for it.

    capacity ──▶ groups of rollouts ──▶ engines (slots, decoding together) ⇄ tools
       ▲                                      │ group complete
       │                                      ▼
    version + 1 ◀── push (engines pause) ◀── trainer takes a batch of groups, drops what is too old

A discrete-event simulation. Time jumps from one event to the next (a turn ends, a tool answers, the trainer finishes),
so 100,000 rollouts on a thousand engines take seconds. The engines are the only subtle part: `n` sequences that decode
together all advance at 1 / (a + b·n) tokens a second, so each engine keeps a clock that counts *tokens*, on which the
end of every sequence is known when it starts; only the next end is ever translated into seconds.

What bounds staleness is the capacity rule of AReaL (Fu et al. 2025, §5.1), as in `glm5.rl.staleness`. A bound of 0 is
the synchronous loop: nothing new may start until the weights that it should start from are there.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from glm5.errors import GLM5Error, UsageError
from glm5.rl.costs import Costs, Loop
from glm5.rl.groups import NO_SPREAD, TOO_FEW
from glm5.rl.metrics import GENERATE, IDLE, SYNC, UPDATE, SpanRecord
from glm5.rl.staleness import capacity

STALE = "older than max_version_lag"
_PATIENCE = 100  # times the rollouts that are needed if none is dropped


@dataclass(slots=True)
class Outcome:
    """What came of it. Every rollout started is trained, dropped, waiting to be trained or still in an open group."""

    seconds: float
    updates: int
    started: int
    trained: int
    waiting: int
    open: int
    dropped: dict[str, int]  # reason → rollouts
    tokens_trained: int
    engine_idle: float  # share of the engines' time with nothing to decode, pauses apart
    engine_paused: float  # share of the engines' time in which weights were pushed
    slot_use: float  # share of the slots that decode, on average
    trainer_idle: float  # share of the trainer's time neither updating nor pushing
    staleness: list[int]  # [lag in versions] → trained rollouts
    spans: list[SpanRecord]
    lifetimes: dict[str, float]  # rollout → seconds from its start to its reward, of all that ended


def simulate(loop: Loop, costs: Costs, updates: int, seed: int = 0, record_spans: bool = False) -> Outcome:
    """Run the loop until `updates` updates are done and pushed.

    The n-th rollout started has the same turns, lengths and latencies in every simulation with the same costs and
    seed, whatever the loop: settings are compared on the same luck.

    Raises:
        UsageError: `updates` is not positive.
        GLM5Error: nearly everything is dropped, so that the updates would never be done.
    """
    if updates < 1:
        raise UsageError(f"updates is {updates}; a simulation needs at least 1")
    return _Simulation(loop, costs, updates, seed, record_spans).run()


@dataclass(slots=True, eq=False)
class _Rollout:
    number: int
    group: "_Group"
    engine: "_Engine"
    tokens: list[int]  # of each turn
    tools: list[float]  # seconds after each turn; after the last it is graded
    fails: bool
    started: float
    turn: int = 0
    began: float = 0.0  # when the present turn got its slot
    oldest_version: int = -1  # of its tokens; -1 before the first


@dataclass(slots=True, eq=False)
class _Group:
    filtered: bool
    unfinished: int
    valid: list[_Rollout] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Engine:
    """Sequences that share a step. `clock` counts the tokens that a sequence decoding all the time would have made."""

    number: int
    clock: float = 0.0
    now: float = 0.0  # the second at which `clock` was right
    assigned: int = 0
    plan: int = 0  # which planned event is the valid one
    decoding: list[tuple[float, int, _Rollout]] = field(default_factory=list)  # heap by the clock at which they end
    line: deque[_Rollout] = field(default_factory=deque)
    busy: float = 0.0  # seconds with anything to decode
    slot_seconds: float = 0.0


class _Simulation:
    def __init__(self, loop: Loop, costs: Costs, updates: int, seed: int, record_spans: bool) -> None:
        self.loop, self.costs, self.updates, self.record_spans = loop, costs, updates, record_spans
        self.luck = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.n_events = 0
        self.engines = [_Engine(number) for number in range(loop.engines)]
        self.loads = [(0, engine.number) for engine in self.engines]  # heap; stale entries are passed over
        self.ready: deque[_Group] = deque()
        self.batch_size = loop.prompts_per_step * loop.samples_per_prompt
        self.version = self.serving = 0  # of the trainer, and of the engines
        self.accepted = self.running = 0  # rollouts, by whole groups
        self.started = self.trained = self.open = self.tokens_trained = 0
        self.training = self.paused = False
        self.update_time = self.push_time = 0.0
        self.trainer_free = 0.0
        self.dropped: Counter[str] = Counter()
        self.staleness: Counter[int] = Counter()
        self.spans: list[SpanRecord] = []
        self.lifetimes: dict[str, float] = {}

    def run(self) -> Outcome:
        self._start_groups()
        while self.version < self.updates:
            self.now, _, happen = heapq.heappop(self.events)
            happen()
        return self._outcome()

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        self.n_events += 1  # events at the same time happen in the order in which they were planned
        heapq.heappush(self.events, (self.now + seconds, self.n_events, happen))

    # Rollouts

    def _start_groups(self) -> None:
        size = self.loop.samples_per_prompt
        room = capacity(self.version, self.accepted, self.running, self.batch_size, self.loop.staleness_bound)
        most = _PATIENCE * self.updates * self.batch_size
        for _ in range(room // size):
            if self.started > most:
                raise GLM5Error(
                    f"{self.started:,} rollouts were started for {self.version} of {self.updates} updates and nearly "
                    f"all were dropped {dict(self.dropped)}: this loop does not train; raise max_version_lag or lower "
                    "failed_share and filtered_share"
                )
            self.running += size
            self.open += size
            group = _Group(self.luck.random() < self.costs.filtered_share, size)
            for _ in range(size):
                self._start(group)

    def _start(self, group: _Group) -> None:
        luck, costs = self.luck, self.costs
        turns = max(1, round(costs.turns.draw(luck)))
        tokens = [max(1, round(costs.tokens.draw(luck))) for _ in range(turns)]
        tools = [costs.tool_seconds.draw(luck) for _ in range(turns - 1)] + [costs.grading_seconds.draw(luck)]
        fails = luck.random() < costs.failed_share
        rollout = _Rollout(self.started, group, self._least_loaded(), tokens, tools, fails, self.now)
        self.started += 1
        self._arrive(rollout)

    def _least_loaded(self) -> _Engine:
        while True:
            load, number = heapq.heappop(self.loads)
            engine = self.engines[number]
            if engine.assigned == load:
                engine.assigned += 1
                heapq.heappush(self.loads, (engine.assigned, number))
                return engine

    def _arrive(self, rollout: _Rollout) -> None:
        """A turn is to be generated: at once where a slot is free."""
        engine = rollout.engine
        if len(engine.decoding) < self.loop.slots:
            self._advance(engine)
            self._admit(rollout)
            self._plan(engine)
        else:
            engine.line.append(rollout)

    def _admit(self, rollout: _Rollout) -> None:
        engine = rollout.engine
        rollout.began = self.now
        if rollout.oldest_version < 0:
            rollout.oldest_version = self.serving
        heapq.heappush(engine.decoding, (engine.clock + rollout.tokens[rollout.turn], rollout.number, rollout))

    def _turn_ends(self, rollout: _Rollout) -> None:
        if self.record_spans:
            who, tokens = f"engine {rollout.engine.number}", rollout.tokens[rollout.turn]
            self.spans.append(SpanRecord(who, GENERATE, rollout.began, self.now, tokens, str(rollout.number)))
        seconds = rollout.tools[rollout.turn]
        rollout.turn += 1
        happens = self._arrive if rollout.turn < len(rollout.tokens) else self._finish
        self._after(seconds, lambda: happens(rollout))

    def _finish(self, rollout: _Rollout) -> None:
        if self.record_spans:
            self.lifetimes[str(rollout.number)] = self.now - rollout.started
        rollout.engine.assigned -= 1
        heapq.heappush(self.loads, (rollout.engine.assigned, rollout.engine.number))
        group = rollout.group
        group.unfinished -= 1
        if rollout.fails:
            self.dropped["failed"] += 1
            self.open -= 1
        else:
            group.valid.append(rollout)
        if not group.unfinished:
            self._close(group)

    def _close(self, group: _Group) -> None:
        size = self.loop.samples_per_prompt
        self.running -= size
        self.open -= len(group.valid)
        if 2 * len(group.valid) <= size:
            self.dropped[TOO_FEW] += len(group.valid)
        elif group.filtered:
            self.dropped[NO_SPREAD] += len(group.valid)
        else:
            self.accepted += size
            self.ready.append(group)
            self._train()
        self._start_groups()

    # Engines

    def _advance(self, engine: _Engine) -> None:
        """Bring an engine's token clock and its counters up to now."""
        n, elapsed = len(engine.decoding), self.now - engine.now
        engine.now = self.now
        if n and not self.paused:
            engine.clock += elapsed / self._token_seconds(n)
            engine.busy += elapsed
            engine.slot_seconds += elapsed * n

    def _plan(self, engine: _Engine) -> None:
        """Foresee when the next sequence ends, as long as no other joins; what was foreseen before no longer holds."""
        engine.plan += 1
        if engine.decoding and not self.paused:
            left = max(0.0, engine.decoding[0][0] - engine.clock)
            plan = engine.plan
            self._after(left * self._token_seconds(len(engine.decoding)), lambda: self._ends(engine, plan))

    def _ends(self, engine: _Engine, plan: int) -> None:
        if plan != engine.plan:
            return
        self._advance(engine)
        engine.clock = max(engine.clock, engine.decoding[0][0])  # rounding must not leave it a hair short of the end
        ended = []
        while engine.decoding and engine.decoding[0][0] <= engine.clock:
            ended.append(heapq.heappop(engine.decoding)[2])
            if engine.line:
                self._admit(engine.line.popleft())
        for rollout in ended:
            self._turn_ends(rollout)
        self._advance(engine)
        self._plan(engine)

    def _token_seconds(self, n: int) -> float:
        return self.costs.token_seconds + n * self.costs.token_seconds_per_sequence

    # Trainer

    def _train(self) -> None:
        """Take a batch, if there is one and the trainer is free."""
        if self.training or len(self.ready) < self.loop.prompts_per_step:
            return
        self._drop_stale()
        if len(self.ready) < self.loop.prompts_per_step:
            return
        batch = [rollout for _ in range(self.loop.prompts_per_step) for rollout in self.ready.popleft().valid]
        tokens = sum(sum(rollout.tokens) for rollout in batch)
        self.staleness.update(self.version - rollout.oldest_version for rollout in batch)
        self.trained += len(batch)
        self.tokens_trained += tokens
        seconds = self.costs.update_seconds + tokens * self.costs.update_seconds_per_token
        self._span(IDLE + "waiting for rollouts", self.trainer_free, self.now)
        self.training = True
        self.update_time += seconds
        self._span(UPDATE, self.now, self.now + seconds)
        self._after(seconds, self._updated)

    def _drop_stale(self) -> None:
        """Drop the samples that have become too old while they waited, and the groups that have too few left."""
        limit, size = self.loop.max_version_lag, self.loop.samples_per_prompt
        if limit is None:
            return
        kept: deque[_Group] = deque()
        for group in self.ready:
            fresh = [rollout for rollout in group.valid if self.version - rollout.oldest_version <= limit]
            self.dropped[STALE] += len(group.valid) - len(fresh)
            group.valid = fresh
            if 2 * len(fresh) > size:
                kept.append(group)
            else:
                self.dropped[TOO_FEW] += len(fresh)
                self.accepted -= size
        self.ready = kept

    def _updated(self) -> None:
        if (self.version + 1) % self.loop.push_every:
            self._next_version()
            return
        for engine in self.engines:
            self._advance(engine)
            engine.plan += 1
        self.paused = True
        self.serving = self.version + 1  # no token is made before the new weights are there
        self.push_time += self.costs.push_seconds
        self._span(SYNC, self.now, self.now + self.costs.push_seconds)
        self._after(self.costs.push_seconds, self._pushed)

    def _pushed(self) -> None:
        for engine in self.engines:
            self._advance(engine)
        self.paused = False
        for engine in self.engines:
            self._plan(engine)
        self._next_version()

    def _next_version(self) -> None:
        self.version += 1
        self.training = False
        self.trainer_free = self.now
        if self.version < self.updates:
            self._train()
            self._start_groups()

    def _span(self, what: str, start: float, end: float) -> None:
        if self.record_spans and end > start:
            self.spans.append(SpanRecord("trainer", what, start, end))

    def _outcome(self) -> Outcome:
        for engine in self.engines:
            self._advance(engine)
        engine_time = self.now * len(self.engines)
        busy = sum(engine.busy for engine in self.engines)
        paused = self.push_time / self.now
        lags = range(max(self.staleness, default=-1) + 1)
        return Outcome(
            seconds=self.now,
            updates=self.version,
            started=self.started,
            trained=self.trained,
            waiting=sum(len(group.valid) for group in self.ready),
            open=self.open,
            dropped=dict(self.dropped),
            tokens_trained=self.tokens_trained,
            engine_idle=1 - busy / engine_time - paused,
            engine_paused=paused,
            slot_use=sum(engine.slot_seconds for engine in self.engines) / (engine_time * self.loop.slots),
            trainer_idle=1 - (self.update_time + self.push_time) / self.now,
            staleness=[self.staleness[lag] for lag in lags],
            spans=self.spans,
            lifetimes=self.lifetimes,
        )
