"""Our own engine as a rollout engine, in this process.

An update is written between two steps: requests that are running go on with the new weights, and each of their tokens
carries the version that made it. What the prefix cache held is forgotten, because it belongs to the old weights.
"""

import asyncio
from dataclasses import replace

from glm5.engine.engine import Engine
from glm5.engine.records import SamplingParams
from glm5.errors import GLM5Error
from glm5.rl.engines.base import Generation, gathered
from glm5.rl.weights import WeightUpdate


class LocalEngine:
    """Wraps an `Engine`, which it closes in the end.

    Attributes:
        version: of the weights that are served, as the trainer counts.
    """

    def __init__(self, name: str, engine: Engine, version: int = 0) -> None:
        """Serve `engine`, whose weights are the trainer's `version`."""
        self.name = name
        self.version = version
        self._engine = engine
        self._versions = {engine.version: version}  # the engine counts updates, also those that failed

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """See `RolloutEngine`."""
        made = await gathered(self._engine.stream(prompt_ids, params.replace(logprobs=params.logprobs or 0)))
        return replace(made, versions=[self._versions[version] for version in made.versions])

    async def update(self, source: WeightUpdate, version: int) -> str:
        """See `RolloutEngine`."""
        source.check_base(self.version)
        # Known before the first token of the new weights can arrive. An update that fails half way has changed some
        # tensors, and its number too: whatever is sampled then must not pass for the old version.
        self._versions[self._engine.version + 1] = version
        await asyncio.to_thread(self._engine.update_weights, source.tensors)
        self.version = version
        return await self.weight_hash()

    async def weight_hash(self) -> str:
        """See `RolloutEngine`."""
        return await asyncio.to_thread(self._engine.weight_hash)

    async def health(self) -> bool:
        """See `RolloutEngine`."""
        try:
            await asyncio.to_thread(self._engine.stats)
        except GLM5Error:
            return False
        return True

    async def close(self) -> None:
        """Requests under way fail with GLM5Error."""
        await asyncio.to_thread(self._engine.close)
