"""Environments of the RL benchmarks, in a file of their own because the processes of a run import it too."""

import asyncio
import random
from collections import Counter
from typing import Any

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Reward, Task, load_environment
from glm5.environments.letters import Letters


class SlowLetters(Letters):
    """The letters tasks, each answer judged by a tool that takes its time; held-out ones at once.

    Args:
        luck: the k-th rollout of a task waits equally long wherever this is the same.
        median, sigma, most: of the tool's seconds: a lognormal that is cut off.
    """

    def __init__(self, luck: int, median: float, sigma: float, most: float, **options: Any) -> None:
        super().__init__(**options)
        self._luck, self._median, self._sigma, self._most = luck, median, sigma, most
        self._begun: Counter[str] = Counter()

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """As `Letters.run`, and then the tool."""
        self._begun[task.id] += 1
        luck = random.Random(f"{self._luck} {task.id} {self._begun[task.id]}")
        reward = await super().run(task, endpoint)
        if "/held_out/" not in task.id:
            await asyncio.sleep(min(self._most, self._median * luck.lognormvariate(0, self._sigma)))
        return reward


class Shuffled:
    """An environment whose training rewards go to another rollout of the same group; all that exists is what it wraps.

    Args:
        wrapped: its name, see `load_environment`. samples: rollouts of a group.
    """

    def __init__(self, wrapped: str, samples: int, options: dict[str, Any]) -> None:
        self._inner = load_environment(wrapped, options)
        self.name = self._inner.name
        self.task = self._inner.task
        self.close = self._inner.close
        self._samples = samples
        self._graded: dict[str, list[tuple[Reward, asyncio.Future[Reward]]]] = {}

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """Wait for the group's last reward, then take one by lot."""
        reward = await self._inner.run(task, endpoint)
        if "/held_out/" in task.id:
            return reward
        mine: asyncio.Future[Reward] = asyncio.get_running_loop().create_future()
        group = self._graded.setdefault(task.id, [])
        group.append((reward, mine))
        if len(group) == self._samples:
            del self._graded[task.id]
            rewards = [graded for graded, _ in group]
            random.Random(task.id).shuffle(rewards)
            for (_, future), dealt in zip(group, rewards):
                if not future.done():  # its rollout may have ended at the deadline
                    future.set_result(dealt)
        return await mine
