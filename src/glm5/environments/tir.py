"""Tool-integrated reasoning: problems that are easier to compute than to think through, and Python to do it with.

    question ──> model ── python(code) ──> sandbox ── output ──> model ── … ──> \\boxed{answer}

Every call is a program of its own in an empty sandbox; nothing is kept between calls. The answer is graded as
mathematics (`maths.BoxGrader`).
"""

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.maths import BoxGrader, Problem, as_task, problem_source
from glm5.environments.programs import Programs
from glm5.environments.replies import format_error, format_fault
from glm5.sandbox import ExecResult
from glm5.text.messages import Message, Tool, ToolCall

PYTHON = Tool(
    "python",
    "Run a Python program and see what it prints. Nothing is kept between calls.",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)


class TirOptions(Options):
    """What can be set."""

    path: Path | None = None  # JSON lines with "problem" and "answer"; generated problems without it
    max_turns: int = Field(6, ge=1)  # turns of the model, the one with the answer included
    timeout: float = Field(10.0, ge=1)  # seconds of one program, and of the grading
    output_characters: int = Field(2000, ge=40)  # that the model sees of what a program prints
    workers: int = Field(1, ge=1)  # programs that run at once


class ToolIntegratedReasoning:
    """The environment "tir"."""

    name: ClassVar[str] = "tir"

    def __init__(self, **options: Any) -> None:
        """Options: see `TirOptions`. Raises UsageError for wrong ones or a broken file."""
        self._options = TirOptions.read(self.name, options)
        self._problems = problem_source(self._options.path, GENERATORS)
        self._programs = Programs(self._options.workers, self._options.timeout)
        self._grader = BoxGrader(self._options.timeout)

    def task(self, split: Split, index: int) -> Task:
        """Task `index`."""
        return as_task(self.name, split, index, self._problems(split, index), tools=(PYTHON,))

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """Turns until there is an answer, a fault in the form, or no turn left."""
        messages = list(task.messages)
        for _ in range(self._options.max_turns):
            reply = await endpoint.chat(messages, task.tools)
            if fault := format_error(reply, task.tools):
                return format_fault(fault)
            if not reply.message.tool_calls:
                return await self._grader.grade(reply.message.content, task.hidden["answer"])
            messages += [reply.message, *await self._results(reply.message.tool_calls)]
        return format_fault(f"no answer after {self._options.max_turns} turns")

    async def close(self) -> None:
        """End the sandboxes and the grader."""
        await self._programs.close()
        self._grader.close()

    async def _results(self, calls: Sequence[ToolCall]) -> list[Message]:
        results = []
        for call in calls:
            result = await self._programs.run(str(call.arguments["code"]))
            text = _shown(result, self._options.output_characters)
            results.append(Message("tool", text, tool_call_id=call.id or None))
        return results


def _shown(result: ExecResult, limit: int) -> str:
    """What the model is shown: the output, then the error, then why the program was ended; the middle is left out."""
    ended = f"[ended: {result.killed_for}]" if result.killed_for else ""
    text = "\n".join(filter(None, (result.stdout.rstrip(), result.stderr.rstrip(), ended))) or "[no output]"
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


# -- generated problems ----------------------------------------------------------------------------------------------


def _multiples(rng: Random) -> Problem:
    limit, a, b = rng.randint(500, 5000), rng.randint(3, 20), rng.randint(21, 40)
    total = sum(x for x in range(1, limit) if x % a == 0 or x % b == 0)
    return Problem(
        "multiples", f"What is the sum of all positive integers below {limit} divisible by {a} or {b}?", f"{total}"
    )


def _power(rng: Random) -> Problem:
    base, exponent, modulus = rng.randint(3, 99), rng.randint(100, 999), rng.randint(100, 9999)
    answer = pow(base, exponent, modulus)
    return Problem("power", f"What is the remainder of {base}^{{{exponent}}} divided by {modulus}?", f"{answer}")


def _coprime(rng: Random) -> Problem:
    limit, number = rng.randint(200, 2000), rng.randint(30, 400)
    count = sum(gcd(x, number) == 1 for x in range(1, limit + 1))
    return Problem("coprime", f"How many integers from 1 to {limit} are coprime to {number}?", f"{count}")


GENERATORS = (_multiples, _power, _coprime)
