"""Keeps rollouts going and hands finished groups to the trainer.

      capacity = (bound + version + 1) * B - (accepted + running)             rl/staleness.py
          │ > 0
          ▼
    pick environment ─▶ start a group ─▶ agent x task ─▶ reward ─▶ judge the group ─▶ queue ─▶ batch of B groups
       rl/shares.py        G rollouts      the gateway               rl/groups.py       │
                                                                                        └─ too old: dropped, counted

A *version* here is that of the newest weights the engines have; B is the number of groups trained for each version. The
orchestrator is an asyncio program: thousands of rollouts are thousands of coroutines. It knows no model, no trainer and
no processes; whatever it decides it has first written to the journal.
"""

import asyncio
import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from glm5.agents.endpoint import EndpointError
from glm5.environments.base import Environment, EnvironmentFailure, Task
from glm5.errors import GLM5Error
from glm5.recipe.rl import RLSection
from glm5.rl.gateway import Gateway, GatewayEndpoint
from glm5.rl.groups import NO_SPREAD, GroupResult, finish_group
from glm5.rl.journal import BatchTaken, GroupJudged, GroupStarted, Journal, Standing
from glm5.rl.linearise import training_samples
from glm5.rl.records import TrainingSample, Trajectory
from glm5.rl.replay import RolloutLog
from glm5.rl.shares import ShareController
from glm5.rl.staleness import Ledger, capacity, is_stale

STALE = "older than max_version_lag"


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt."""

    name: str
    environment: str
    task: Task
    trajectories: list[Trajectory] = field(default_factory=list)
    samples: list[TrainingSample] = field(default_factory=list)

    @property
    def oldest_version(self) -> int:
        """Of the weights that sampled any of its tokens."""
        return min(min(version for version in sample.versions if version >= 0) for sample in self.samples)


@dataclass(slots=True)
class Batch:
    """What one update is made of."""

    update: int
    groups: list[Group]
    filtered: int  # groups left out for want of a signal since the batch before
    dropped: dict[str, int]  # why rollouts or groups were left out since the batch before, and how many
    waited: float  # seconds it took to fill

    @property
    def samples(self) -> list[TrainingSample]:
        """Everything to train on, in an order that does not depend on time."""
        return [sample for group in self.groups for sample in group.samples]


Scorer = Callable[[list[int]], Awaitable[list[float]]]  # ids → a teacher's log-probability of each, 0.0 for the first


class Orchestrator:
    """See the module. Start `produce()` as a task; everything else may be awaited beside it."""

    def __init__(
        self,
        settings: RLSection,
        environments: Mapping[str, Environment],
        gateway: Gateway,
        journal: Journal,
        log: RolloutLog,
        seed: int = 0,
        teachers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.settings, self.environments, self.gateway = settings, dict(environments), gateway
        self.journal, self.log, self.seed = journal, log, seed
        self.teachers = dict(teachers or {})  # by environment
        self.shares = ShareController({task.environment: task.share for task in settings.tasks})
        self.ledger = Ledger()
        self.version = 0
        self.queue: deque[Group] = deque()
        self._replayed: deque[Batch] = deque()  # batches that were trained on weights that a crash has lost
        self.sampled_tokens = 0
        self.running: dict[str, Group] = {}
        self.active_rollouts = 0
        self._accepted = 0  # groups ever accepted, less those dropped again as stale
        self._filtered = 0
        self._failed_in_a_row = 0
        self._last_failure = ""
        self._groups = 0
        self._updates = 0  # batches handed out
        self._cursors = dict.fromkeys(self.environments, 0)
        self._changed = asyncio.Condition()
        self._unfinished: deque[tuple[GroupStarted, list[Trajectory]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fatal: GLM5Error | None = None
        self._paused = False

    # -- going on after a stop -----------------------------------------------------------------------------------

    async def restore(self, standing: Standing, trajectories: Sequence[Trajectory], update: int, version: int) -> None:
        """Take up where a journal ends, with a trainer that has done `update` updates.

        Raises:
            GLM5Error: the journal names an environment this run does not have, or rollouts that are not there.
        """
        unknown = {started.environment for started in standing.started.values()} - self.environments.keys()
        if unknown:
            raise GLM5Error(f"{self.journal.path} is of a run with other environments: {', '.join(sorted(unknown))}")
        self._groups = len(standing.started)
        self._cursors = {name: standing.cursor(name) for name in self.environments}
        self._updates, self.version = max(standing.batches, default=0), version
        self._replayed.extend(await self.rebuild(standing, trajectories, update, self._updates + 1))
        by_group = _by_group(trajectories)
        self.queue.extend([await self._rebuilt(standing, by_group, name) for name in standing.queued])
        for started in standing.unfinished:
            self._unfinished.append((started, by_group.get(started.group, [])))
        accepted = [judged.group for judged in standing.judged.values() if judged.verdict == "accepted"]
        self._accepted = len([name for name in accepted if name not in standing.stale])
        for name in accepted:
            self.shares.accepted(standing.started[name].environment)

    async def rebuild(
        self, standing: Standing, trajectories: Sequence[Trajectory], after: int, before: int
    ) -> list[Batch]:
        """The batches of updates between `after` and `before`, neither included, as they were."""
        by_group = _by_group(trajectories)
        return [
            Batch(number, [await self._rebuilt(standing, by_group, name) for name in names], 0, {}, 0.0)
            for number, names in sorted(standing.batches.items())
            if after < number < before
        ]

    async def _rebuilt(self, standing: Standing, by_group: Mapping[str, list[Trajectory]], name: str) -> Group:
        group = self._group(standing.started[name])
        group.trajectories = by_group.get(name, [])
        group.samples = self._samples(self._result(group))
        await self._teach(group)
        return group

    # -- making rollouts -----------------------------------------------------------------------------------------

    @property
    def groups_per_version(self) -> int:
        """B of the staleness rule: what is trained between two pushes of weights."""
        return self.settings.prompts_per_step * self.settings.push_every

    @property
    def room(self) -> int:
        """Groups that may be started now."""
        if self._paused or self._replayed:
            return 0
        return capacity(
            self.version, self._accepted, len(self.running), self.groups_per_version, self.settings.staleness_bound
        )

    def waiting_for(self) -> str:
        """Why no group is started now; "" if that is not so."""
        if self._paused:
            return "an evaluation"
        if self._replayed:
            return "the trainer to catch up after a crash"
        return "" if self.room > 0 else f"version {self.version + 1}: {len(self.queue)} groups are ready"

    async def produce(self) -> None:
        """Start groups whenever the staleness rule has room, for ever."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.room > 0)
            group, finished = self._next_group()
            self.running[group.name] = group
            task = asyncio.create_task(self._run_group(group, finished), name=group.name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)

    def _next_group(self) -> tuple[Group, list[Trajectory]]:
        if self._unfinished:  # before the run was stopped these were in flight
            started, finished = self._unfinished.popleft()
            return self._group(started), finished
        running = Counter(group.environment for group in self.running.values())
        environment = self.shares.choose(running)
        started = GroupStarted(f"g{self._groups:06d}", environment, self._cursors[environment])
        self._groups += 1
        self._cursors[environment] += 1
        self.journal.write(started)
        return self._group(started), []

    def _group(self, started: GroupStarted) -> Group:
        task = self.environments[started.environment].task("train", started.index)
        return Group(started.group, started.environment, task)

    async def _run_group(self, group: Group, finished: list[Trajectory]) -> None:
        try:
            names = [f"{group.name}-{index}" for index in range(self.settings.samples_per_prompt)]
            done = {trajectory.rollout_id: trajectory for trajectory in finished}
            missing = [self._rollout(name, group) for name in names if name not in done]
            group.trajectories = [*done.values(), *await asyncio.gather(*missing)]
            await self._judge(group)
        except GLM5Error as error:
            self._fatal = error
        finally:
            del self.running[group.name]
            async with self._changed:
                self._changed.notify_all()

    async def _rollout(self, name: str, group: Group) -> Trajectory:
        """One rollout, from the first prompt to the reward; never raises for what the model or its world did."""
        trajectory = Trajectory(
            rollout_id=name, task_id=group.task.id, environment=group.environment, group_id=group.name,
            kind=group.task.kind, started=time.time(),
        )  # fmt: skip
        trajectory = await self._play(group.environment, group.task, trajectory, greedy=False, seed=self.seed)
        self.log.append(trajectory)
        if trajectory.failure:
            self._failed_in_a_row += 1
            self._last_failure = trajectory.failure
            if self._failed_in_a_row >= self.settings.max_failures_in_a_row:
                raise GLM5Error(
                    f"{self._failed_in_a_row} rollouts in a row failed, the last one: {self._last_failure}\n"
                    "Everything finished is saved; mend the cause and start the same command again to go on."
                )
        else:
            self._failed_in_a_row = 0
        return trajectory

    async def _play(
        self, environment: str, task: Task, trajectory: Trajectory, *, greedy: bool, seed: int
    ) -> Trajectory:
        self.gateway.open(trajectory, seed=_seed(seed, trajectory.rollout_id), temperature=0.0 if greedy else None)
        endpoint = GatewayEndpoint(self.gateway, trajectory.rollout_id)
        self.active_rollouts += 1
        failure, reward = "", None
        try:
            deadline = self.settings.deadline_seconds
            reward = await asyncio.wait_for(self.environments[environment].run(task, endpoint), deadline)
            if not math.isfinite(reward.value):
                failure = f"reward: {environment} gave {reward.value}, which is not a finite number"
        except TimeoutError:
            failure = f"deadline: not finished after {self.settings.deadline_seconds:g} s"
        except EnvironmentFailure as error:
            failure = f"environment: {error}"
        except EndpointError as error:
            failure = f"endpoint: {error}"
        except Exception as error:  # a user's environment or reward may raise anything; the run goes on without it
            failure = f"error: {environment} raised {type(error).__name__}: {error}"
        finally:
            self.active_rollouts -= 1
            trajectory = self.gateway.close(trajectory.rollout_id)
        self.sampled_tokens += trajectory.sampled_tokens
        trajectory.failure, trajectory.ended = failure, time.time()
        if reward is not None and not failure:
            trajectory.reward, trajectory.evidence = float(reward.value), reward.evidence
            trajectory.reward_parts = dict(reward.parts)
        if not failure and not any(turn.ids for turn in trajectory.turns):
            trajectory.failure = "error: nothing was sampled"
        return trajectory

    # -- judging groups, making batches --------------------------------------------------------------------------

    def _result(self, group: Group) -> GroupResult:
        settings = self.settings
        taught = next(task.teacher for task in settings.tasks if task.environment == group.environment)
        return finish_group(
            group.trajectories, settings.samples_per_prompt, "distilled" if taught else settings.advantage,
            drop_equal=settings.filter_zero_variance,
        )  # fmt: skip

    def _samples(self, result: GroupResult) -> list[TrainingSample]:
        parts = zip(result.kept, result.advantages, result.weights, strict=True)
        return [sample for kept, a, weight in parts for sample in training_samples(kept, a, weight, self.settings.loss)]

    async def _teach(self, group: Group) -> None:
        """Ask the group's teacher, if it has one, for the log-probability of every token."""
        score = self.teachers.get(group.environment)
        if score is not None:
            scores = await asyncio.gather(*(score(sample.ids) for sample in group.samples))
            for sample, logprobs in zip(group.samples, scores, strict=True):
                sample.teacher_logprobs = logprobs

    async def _judge(self, group: Group) -> None:
        result = self._result(group)
        for reason, count in result.dropped.items():
            self.ledger.count(reason.partition(":")[0], count)  # what comes behind differs from case to case
        if result.kept:
            group.samples = self._samples(result)
            await self._teach(group)
            self._accepted += 1
            self.shares.accepted(group.environment)
            self.journal.write(GroupJudged(group.name, "accepted"))
            self.queue.append(group)
        else:
            filtered = NO_SPREAD in result.dropped
            self._filtered += filtered
            reasons = ", ".join(sorted(result.dropped))
            self.journal.write(GroupJudged(group.name, "filtered" if filtered else "dropped", reasons))

    async def next_batch(self) -> Batch:
        """The next B groups, as soon as there are so many; those that have become too old are dropped and counted.

        Raises:
            GLM5Error: too many rollouts failed in a row, or the journal cannot be written.
        """
        began = time.perf_counter()
        size = self.settings.prompts_per_step
        if self._replayed:
            return self._replayed.popleft()
        stale: list[str] = []
        async with self._changed:
            while True:
                if self._fatal is not None:
                    raise self._fatal
                fresh: deque[Group] = deque()
                for group in self.queue:
                    if is_stale([group.oldest_version], self.version, self.settings.max_version_lag):
                        stale.append(group.name)
                        self._accepted -= 1
                        self.ledger.count(STALE, len({sample.rollout_id for sample in group.samples}))
                        self._changed.notify_all()  # there is room for another
                    else:
                        fresh.append(group)
                self.queue = fresh
                if len(self.queue) >= size:
                    break
                await self._changed.wait()
            # By name when nothing was asynchronous: the same batch whatever finished first.
            if self.settings.staleness_bound == 0:
                self.queue = deque(sorted(self.queue, key=lambda group: group.name))
            groups = [self.queue.popleft() for _ in range(size)]
        self._updates += 1
        self.journal.write(BatchTaken(self._updates, [group.name for group in groups], stale))
        filtered, self._filtered = self._filtered, 0
        return Batch(self._updates, groups, filtered, self.ledger.take(), time.perf_counter() - began)

    async def advance(self, version: int) -> None:
        """The engines have new weights."""
        async with self._changed:
            self.version = version
            self._changed.notify_all()

    # -- evaluating ----------------------------------------------------------------------------------------------

    async def evaluate(self, environment: str, tasks: int, *, greedy: bool, seed: int) -> list[Trajectory]:
        """Held-out tasks 0 ... tasks - 1, one rollout each, nothing of it trained on or counted."""

        async def one(index: int) -> Trajectory:
            task = self.environments[environment].task("held_out", index)
            name = f"eval-{environment}-{'greedy' if greedy else 'sampled'}-{index}"
            trajectory = Trajectory(
                rollout_id=name, task_id=task.id, environment=environment, group_id="", kind=task.kind,
                started=time.time(),
            )  # fmt: skip
            return await self._play(environment, task, trajectory, greedy=greedy, seed=seed)

        return list(await asyncio.gather(*(one(index) for index in range(tasks))))

    async def pause(self, paused: bool) -> None:
        """Start nothing new for a while; what runs goes on."""
        async with self._changed:
            self._paused = paused
            self._changed.notify_all()

    async def close(self) -> None:
        """Stop every rollout. Those in flight are started again when the run goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for environment in self.environments.values():
            await environment.close()
        self.journal.close()


def _seed(seed: int, rollout_id: str) -> int:
    """Of a rollout's first turn: its own, and the same in every run; turns count up from it."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {rollout_id}".encode(), digest_size=4).digest(), "big")


def _by_group(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group_id, []).append(trajectory)
    return groups
