"""The hundred procedural datasets of the package `reasoning-gym`: algebra, logic, graphs, games, code and more.

Problems are made anew for every index and scored by the dataset's own scorer, some of which give partial credit.
"""

import asyncio
import importlib.util
from typing import Any, ClassVar

from pydantic import Field

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.replies import format_error, format_fault
from glm5.environments.worker import Worker, WorkerTimeout
from glm5.errors import GLM5Error, UsageError
from glm5.text.messages import Message

INSTRUCTION = "Answer with the final answer alone, in the form asked for, without explanation."


class GymOptions(Options):
    """What can be set."""

    datasets: tuple[str, ...] = Field(min_length=1)  # they take turns
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)  # by dataset, as reasoning-gym names them
    timeout: float = Field(20.0, gt=0)  # seconds of making or scoring one problem


class ReasoningGym:
    """The environment "reasoning-gym"."""

    name: ClassVar[str] = "reasoning-gym"

    def __init__(self, **options: Any) -> None:
        """Options: `datasets`, `settings` and `timeout` (see `GymOptions`).

        Raises:
            UsageError: wrong options, an unknown dataset, settings that it does not have.
            GLM5Error: reasoning-gym is not installed.
        """
        self._options = GymOptions.read(self.name, options)
        if importlib.util.find_spec("reasoning_gym") is None:
            raise GLM5Error("environment 'reasoning-gym' needs a package: pip install reasoning-gym")
        if unused := self._options.settings.keys() - set(self._options.datasets):
            raise UsageError(
                f"environment {self.name!r} has settings for {sorted(unused)}, which it does not draw from"
            )
        self._worker = Worker("glm5.environments.gym_datasets", self._options.timeout)
        for dataset in self._options.datasets:
            if mistake := self._worker.call("mistake", dataset, self._settings(dataset)):
                self._worker.close()
                raise UsageError(f"environment {self.name!r}: {mistake}")

    def task(self, split: Split, index: int) -> Task:
        """Task `index`; the datasets take turns."""
        dataset = self._options.datasets[index % len(self._options.datasets)]
        hidden = self._worker.call("make", dataset, self._settings(dataset), split, index)
        question = Message("user", f"{hidden.pop('question').strip()}\n\n{INSTRUCTION}")
        return Task(f"{self.name}/{split}/{index}", self.name, (question,), hidden=hidden, kind=dataset)

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """One turn, scored. An answer that cannot be scored in time scores 0."""
        reply = await endpoint.chat(task.messages)
        if fault := format_error(reply):
            return format_fault(fault)
        answer = reply.message.content.strip()
        arguments = (task.kind, self._settings(task.kind), task.hidden["seed"], answer)
        try:
            score = await asyncio.to_thread(self._worker.call, "score", *arguments)
        except WorkerTimeout as error:
            return Reward(0.0, {"format": 1.0, "answer": 0.0}, f"answered {answer!r}: {error}")
        evidence = f"answered {answer!r}, right is {task.hidden['answer']!r}"
        return Reward(score, {"format": 1.0, "answer": score}, evidence)

    async def close(self) -> None:
        """End the process that makes and scores."""
        self._worker.close()

    def _settings(self, dataset: str) -> dict[str, Any]:
        return self._options.settings.get(dataset, {})
