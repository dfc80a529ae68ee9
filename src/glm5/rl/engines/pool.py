"""All engines of a run: requests go where the router says, weights go to all of them.

An engine that fails a request and is not healthy leaves the pool, and its rollouts move to the others: token ids mean
the same everywhere, only the prefix has to be computed anew.
"""

import asyncio
import logging
from collections.abc import Iterable

from glm5.engine.records import SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation, RolloutEngine
from glm5.rl.router import Router
from glm5.rl.weights import WeightUpdate, require_equal_hashes

log = logging.getLogger("glm5.rl")


class EnginePool:
    """Several engines that serve the same weights.

    Attributes:
        engines: by name; those that failed are gone.
        router: whose loads and reuse of prefixes can be read.
    """

    def __init__(self, engines: Iterable[RolloutEngine]) -> None:
        """Begin with some engines. Raises UsageError when two have the same name, or there is none."""
        given = list(engines)
        self.engines: dict[str, RolloutEngine] = {engine.name: engine for engine in given}
        self.router = Router(engine.name for engine in given)
        if not given:
            raise UsageError("reinforcement learning needs an engine to make rollouts; there is none")

    async def generate(self, rollout_id: str, prompt_ids: list[int], params: SamplingParams) -> tuple[str, Generation]:
        """The name of the rollout's engine, and what it made.

        Raises:
            UsageError: the engine cannot do what `params` ask for.
            GLM5Error: the engine failed and is healthy all the same, or no engine is left.
        """
        while True:
            name = self.router.route(rollout_id)
            engine = self.engines[name]
            try:
                made = await engine.generate(prompt_ids, params)
            except UsageError:
                raise
            except GLM5Error as error:
                if name in self.engines:
                    if await self._answers(engine):
                        raise
                    await self._drop(name, error)
                continue
            self.router.served(name, len(prompt_ids), made.cached_tokens)
            return name, made

    def release(self, rollout_id: str) -> None:
        """A rollout has ended."""
        self.router.release(rollout_id)

    async def update(self, source: WeightUpdate, version: int, expected_hash: str) -> None:
        """Have all engines serve new weights, and compare what they say they serve.

        Raises:
            GLM5Error: an engine has other weights than the trainer's, or failed.
        """
        names = list(self.engines)
        hashes = await asyncio.gather(*(self.engines[name].update(source, version) for name in names))
        require_equal_hashes(expected_hash, dict(zip(names, hashes, strict=True)))

    async def close(self) -> None:
        """Close all engines."""
        for engine in self.engines.values():
            await engine.close()

    async def _answers(self, engine: RolloutEngine) -> bool:
        """Whether it can serve; one whose process is gone may fail to say so."""
        try:
            return await engine.health()
        except GLM5Error:
            return False

    async def _drop(self, name: str, error: GLM5Error) -> None:
        """Take an engine out, unless another request that failed with it has done so."""
        engine = self.engines.pop(name, None)
        if engine is None:
            return
        moved = self.router.remove(name)
        log.error("engine %s failed (%s) and left; its %d rollouts go to the others", name, error, len(moved))
        await engine.close()
