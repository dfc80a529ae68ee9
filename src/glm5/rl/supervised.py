"""An engine pool that is watched: who does not answer is removed, who died is replaced, all have the same weights.

A dead engine's place is taken by a new one, which serves nothing before it has the current weights. After every push
each engine's hash is compared with the trainer's: an engine that kept old weights would look like staleness and cost
months (verl#7495).
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from glm5.engine.records import SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation, RolloutEngine
from glm5.rl.engines.pool import EnginePool
from glm5.rl.metrics import GENERATE, SpanRecord
from glm5.rl.weights import WeightUpdate, require_equal_hashes

_HEARTBEAT_SECONDS = 1.0
_ANSWER_SECONDS = 30.0  # an engine that is busy with a long step is not dead
_REPLACEMENT_SECONDS = 120.0  # how long a turn waits for an engine when none is left


class SupervisedPool(EnginePool):
    """Run `watch()` beside everything else.

    Attributes:
        lost: engines that died, ever. in_flight: turns that wait for an answer.
    """

    def __init__(
        self,
        engines: Iterable[RolloutEngine],
        start: Callable[[str], RolloutEngine] | None = None,
        observe: Callable[[SpanRecord], None] | None = None,
    ) -> None:
        """Begin with some engines.

        Args:
            start: makes a new engine under a dead one's name; None where engines are other people's servers.
            observe: told what engines do, for the run's timeline; in seconds since the epoch.
        """
        super().__init__(engines)
        self.lost = 0
        self.in_flight = 0
        self._names = list(self.engines)
        self._gone: dict[str, RolloutEngine] = {}
        self._start, self._observe = start, observe
        self._weights: WeightUpdate | None = None  # the current ones, whole, for engines that join
        self._version, self._hash = 0, ""
        self._joined = asyncio.Condition()

    async def generate(self, rollout_id: str, prompt_ids: list[int], params: SamplingParams) -> tuple[str, Generation]:
        """As `EnginePool.generate`; when no engine is left, waits for one.

        Raises:
            GLM5Error: none came back in time.
        """
        began = time.time()
        self.in_flight += 1
        try:
            while True:
                await self._some_engine()
                try:
                    name, made = await super().generate(rollout_id, prompt_ids, params)
                    break
                except GLM5Error:
                    if self.engines:
                        raise
        finally:
            self.in_flight -= 1
        if self._observe is not None:
            self._observe(SpanRecord(name, GENERATE, began, time.time(), len(made.ids), rollout_id))
        return name, made

    async def push(self, whole: WeightUpdate, delta: WeightUpdate | None, version: int, expected: str) -> None:
        """Give every engine the trainer's weights and compare hashes.

        Args:
            whole: all tensors. delta: what changed since the version before, where that is known.
            expected: the trainer's hash.

        Raises:
            GLM5Error: an engine's weights are not the trainer's, even after a whole update.
        """
        self._weights, self._version, self._hash = whole, version, expected
        await asyncio.gather(*(self._update(name, delta) for name in list(self.engines)))

    async def watch(self) -> None:
        """Heartbeats, for ever."""
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            for name in list(self.engines):
                if not await self._answers(self.engines[name]):
                    await self._drop(name, GLM5Error("it does not answer"))
            for name in self._names:
                if name not in self.engines:
                    await self._bring_back(name)

    async def _some_engine(self) -> None:
        if self.engines:
            return
        try:
            async with asyncio.timeout(_REPLACEMENT_SECONDS), self._joined:
                await self._joined.wait_for(lambda: bool(self.engines))
        except TimeoutError:
            raise GLM5Error(
                f"no rollout engine is left, and none came back within {_REPLACEMENT_SECONDS:g} s"
            ) from None

    async def _update(self, name: str, delta: WeightUpdate | None) -> None:
        assert self._weights is not None
        engine = self.engines[name]
        try:
            got = ""
            if delta is not None:
                try:
                    got = await engine.update(delta, self._version)
                except UsageError:
                    got = ""  # it has missed a version
            if got != self._hash:
                got = await engine.update(self._weights, self._version)
        except GLM5Error as error:
            if await self._answers(engine):
                raise
            await self._drop(name, error)
            return
        require_equal_hashes(self._hash, {name: got})

    async def _answers(self, engine: RolloutEngine) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await engine.health()
        except (GLM5Error, TimeoutError, OSError):
            return False

    async def _drop(self, name: str, error: GLM5Error) -> None:
        if name in self.engines:
            self.lost += 1
            self._gone[name] = self.engines[name]
        await super()._drop(name, error)

    async def _bring_back(self, name: str) -> None:
        engine = self._gone[name] if self._start is None else self._start(name)
        if not await self._answers(engine):
            return
        while self._weights is not None:  # and again, should they move on meanwhile
            version = self._version
            require_equal_hashes(self._hash, {name: await engine.update(self._weights, version)})
            if version == self._version:
                break
        self.engines[name] = engine
        self.router.add(name)
        async with self._joined:
            self._joined.notify_all()
