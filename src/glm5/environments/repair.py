"""Repair a function of a few lines: read what it is meant to do, run hidden tests, change a line, finish.

    user       fix, and the function with numbered lines, its first a comment that states the intent
    assistant  run_tests                tool  fail ([3,9]) gave -9 not 9
    assistant  edit line 6 t += x       tool  ok
    assistant  run_tests                tool  pass
    assistant  finish

The smallest task with everything an agent's task has: tools, feedback, several turns, and a reward that only execution
can give. A whole rollout has some 200 tokens of a vocabulary of 1024, so a model of a million parameters can learn it.
The reward is 1 if the hidden tests pass and `finish` was called, else 0.

The code runs in the sandbox, the expected values stay outside (`repair_harness.py`): leaving with exit code 0,
printing "pass" or patching the harness yields no right value.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.programs import Programs
from glm5.environments.repair_demonstrations import choose, demonstrate, replace_line
from glm5.environments.repair_problems import Problem, Test, first_failure, make_problem, report
from glm5.environments.replies import format_error, format_fault
from glm5.environments.splits import draw
from glm5.errors import UsageError
from glm5.text.messages import Message, Tool, ToolCall

_HARNESS = Path(__file__).with_name("repair_harness.py")
_CACHED = 20_000  # results of tests that are kept

_EDIT = {
    "type": "object",
    "properties": {"line": {"type": "integer"}, "text": {"type": "string"}},
    "required": ["line", "text"],
}
TOOLS = (
    Tool("run_tests", "Run the hidden tests; says which fails first."),
    Tool("edit", "Replace the text of one line, by its number; its indentation stays.", _EDIT),
    Tool("read", "Show the function as it is now, with line numbers."),
    Tool("finish", "Say that the function is repaired; ends the task."),
)


class RepairOptions(Options):
    """What can be set."""

    difficulty: int = Field(2, ge=1, le=3)  # 1: short functions, 2: all, 3: all, two lines are wrong
    max_turns: int = Field(8, ge=1)
    announce_tools: bool = False  # a nano model's context has no room for their schemas; others need them
    thinking: bool = False
    mask_errors: bool = False  # wrong steps of demonstrations are not trained on
    timeout: float = Field(2.0, gt=0)  # seconds for all tests of one function
    workers: int = Field(1, ge=1)  # functions tested at once


class Repair:
    """The environment "repair"."""

    name: ClassVar[str] = "repair"

    def __init__(self, **options: Any) -> None:
        """Options: see `RepairOptions`. Raises UsageError for wrong ones."""
        self._options = RepairOptions.read(self.name, options)
        self._programs = Programs(self._options.workers, self._options.timeout)
        self._results: dict[str, list[dict[str, Any]]] = {}

    def task(self, split: Split, index: int) -> Task:
        """Task `index`; the split is decided by the corrected function."""
        problem = self._problem(split, index)
        return Task(
            id=f"{self.name}/{split}/{index}",
            environment=self.name,
            messages=_instruction(problem),
            tools=TOOLS if self._options.announce_tools else (),
            hidden={
                "function": problem.function,
                "broken": list(problem.broken),
                "solution": list(problem.solution),
                "tests": [[test.arguments, test.expected] for test in problem.tests],
            },
            kind=problem.kind,
        )

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """Turns until `finish`, a format error or the limit.

        Raises:
            EnvironmentFailure: the sandbox broke.
            EndpointError: the endpoint broke.
        """
        messages = list(task.messages)
        lines = list(task.hidden["broken"])
        for _ in range(self._options.max_turns):
            reply = await endpoint.chat(messages, task.tools, thinking=self._options.thinking)
            problem = format_error(reply, TOOLS)
            if problem is None and not reply.message.tool_calls:
                problem = f"no tool call: {reply.message.content[:100]!r}"
            if problem is not None:
                return format_fault(problem)
            messages.append(reply.message)
            for call in reply.message.tool_calls:
                if call.name == "finish":
                    return await self._grade(task, lines)
                answer = await self._answer(task, lines, call)
                messages.append(Message("tool", answer, tool_call_id=call.id))
        return Reward(0.0, {"format": 1.0, "finish": 0.0}, f"not finished after {self._options.max_turns} turns")

    async def close(self) -> None:
        """End the sandbox."""
        await self._programs.close()

    def demonstrations(self, split: Split, count: int, seed: int, quality: float) -> Iterator[dict[str, Any]]:
        """Conversations of which a share of `quality` ends with a repaired function (`repair_demonstrations.py`).

        Yields:
            `{"messages": […], "thinking": "off", "kind": …, "strategy": …, "correct": …}`, the same for the same
            arguments.

        Raises:
            UsageError: `quality` is not within 0 and 1.
        """
        if not 0 <= quality <= 1:
            raise UsageError(f"the quality of demonstrations is a share from 0 to 1, not {quality}")
        rng = Random(f"demonstrations/{split}/{seed}")
        for _ in range(count):
            problem = self._problem(split, rng.randrange(2**32))
            strategy = choose(rng, quality)
            messages = [message.to_openai() for message in _instruction(problem)]
            turns, is_fixed = demonstrate(problem, strategy, rng, self._options.mask_errors)
            row = {"messages": messages + turns, "thinking": "off", "kind": problem.kind, "strategy": strategy}
            yield row | {"correct": is_fixed}

    def _problem(self, split: Split, index: int) -> Problem:
        mutations = 2 if self._options.difficulty == 3 else 1
        most_lines = 6 if self._options.difficulty == 1 else 9
        return draw(
            split,
            index,
            lambda rng: make_problem(rng, mutations, most_lines),
            lambda problem: "\n".join(problem.solution),
        )

    async def _answer(self, task: Task, lines: list[str], call: ToolCall) -> str:
        """What a tool says; `edit` changes `lines`."""
        if call.name == "run_tests":
            return report(await self._test(task, lines), _tests(task))
        if call.name == "read":
            return _numbered(lines)
        line, text = str(call.arguments["line"]), call.arguments["text"]
        return replace_line(lines, int(line) if line.isdecimal() else 0, text if isinstance(text, str) else str(text))

    async def _grade(self, task: Task, lines: list[str]) -> Reward:
        results = await self._test(task, lines)
        passed = first_failure(results, _tests(task)) is None
        parts = {"format": 1.0, "finish": 1.0, "tests": float(passed)}
        return Reward(float(passed), parts, report(results, _tests(task)))

    async def _test(self, task: Task, lines: list[str]) -> list[dict[str, Any]]:
        """The results of every test, from memory if this function has been tested before."""
        arguments = [test.arguments for test in _tests(task)]
        request = json.dumps({"code": "\n".join(lines), "function": task.hidden["function"], "arguments": arguments})
        if request not in self._results:
            ended = await self._programs.run(_HARNESS.read_text(encoding="utf-8"), request)
            if len(self._results) >= _CACHED:
                del self._results[next(iter(self._results))]
            self._results[request] = _read_results(ended.stdout)
        return self._results[request]


def _instruction(problem: Problem) -> tuple[Message, ...]:
    return (Message("user", f"fix\n{_numbered(problem.broken)}"),)


def _numbered(lines: list[str] | tuple[str, ...]) -> str:
    return "\n".join(f"{number} {line}" for number, line in enumerate(lines, start=1))


def _tests(task: Task) -> tuple[Test, ...]:
    return tuple(Test(arguments, expected) for arguments, expected in task.hidden["tests"])


def _read_results(output: str) -> list[dict[str, Any]]:
    """The results up to the first line that is none: code under test may have written there too."""
    results = []
    for line in output.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            break
        if not isinstance(result, dict) or not ("value" in result or isinstance(result.get("error"), str)):
            break
        results.append(result)
    return results
