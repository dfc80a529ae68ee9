"""Mathematics: problems whose answer is one expression in a box, compared as mathematics and not as text.

Problems come from a file of JSON lines, `{"problem": …, "answer": LaTeX}`, or are generated: equations, fractions,
roots, sequences. Only the last `\\boxed{…}` counts, so listing several answers earns nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.problems import ProblemFile
from glm5.environments.replies import format_error, format_fault, verdict
from glm5.environments.splits import draw
from glm5.environments.worker import Worker, WorkerTimeout
from glm5.text.messages import Message

BOX = "\\boxed{"
INSTRUCTION = "Put the final answer, and nothing else, in \\boxed{}."


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its answer in LaTeX."""

    kind: str
    question: str
    answer: str


class MathsOptions(Options):
    """What can be set."""

    path: Path | None = None  # JSON lines with "problem" and "answer"; generated problems without it
    timeout: float = Field(10.0, ge=1)  # seconds of one grading


class Maths:
    """The environment "math"."""

    name: ClassVar[str] = "math"

    def __init__(self, **options: Any) -> None:
        """Options: `path` and `timeout` (see `MathsOptions`). Raises UsageError for wrong ones or a broken file."""
        self._options = MathsOptions.read(self.name, options)
        self._problems = problem_source(self._options.path, GENERATORS)
        self._grader = BoxGrader(self._options.timeout)

    def task(self, split: Split, index: int) -> Task:
        """Task `index`."""
        return as_task(self.name, split, index, self._problems(split, index))

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """One turn, and the box of its answer graded."""
        reply = await endpoint.chat(task.messages)
        if fault := format_error(reply):
            return format_fault(fault)
        return await self._grader.grade(reply.message.content, task.hidden["answer"])

    async def close(self) -> None:
        """End the grader."""
        self._grader.close()


class BoxGrader:
    """Grades the box in a text by `math-verify`, in a process of its own."""

    def __init__(self, timeout: float) -> None:
        """`timeout` in seconds; the library's own timers, of whole seconds, strike first wherever they can."""
        self._worker = Worker("glm5.environments.maths_grader", timeout)
        self._seconds = max(1, int(timeout / 4))

    async def grade(self, text: str, gold: str) -> Reward:
        """1 if the last box holds what equals `gold`. An answer that cannot be compared in time is not a right one.

        Raises:
            EnvironmentFailure: the grader broke.
        """
        answer = last_box(text)
        if answer is None:
            return format_fault(f"no {BOX}…}} in the answer {text[-200:]!r}")
        try:
            same = await asyncio.to_thread(self._worker.call, "equal", gold, answer, self._seconds)
        except WorkerTimeout as error:
            return verdict(False, f"answered {answer!r}: {error}")
        return verdict(same, f"answered {answer!r}, right is {gold!r}")

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{…}`, whose braces may be nested; None without one that is closed."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth = 1
    for position in range(start + len(BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len(BOX) : position].strip() or None
    return None


def problem_source(path: Path | None, generators: tuple[Callable[[Random], Problem], ...]) -> "ProblemSource":
    """Problem `index` of a split, from the file at `path` or, without one, from the generators in turn.

    Raises:
        UsageError: see `ProblemFile`.
    """
    if path is None:
        return lambda split, index: draw(split, index, generators[index % len(generators)], lambda p: p.question)
    file = ProblemFile(path, {"problem": str, "answer": str}, text="problem")

    def from_file(split: Split, index: int) -> Problem:
        row = file.row(split, index)
        return Problem(str(row.get("kind", "")), row["problem"], row["answer"])

    return from_file


ProblemSource = Callable[[Split, int], Problem]


def as_task(environment: str, split: Split, index: int, problem: Problem, **more: Any) -> Task:
    """The task that asks a problem; `more` goes into the `Task`."""
    question = Message("user", f"{problem.question}\n{INSTRUCTION}")
    hidden = {"answer": problem.answer}
    return Task(f"{environment}/{split}/{index}", environment, (question,), hidden=hidden, kind=problem.kind, **more)


# -- generated problems ----------------------------------------------------------------------------------------------


def _linear(rng: Random) -> Problem:
    a, b, c, x = rng.randint(2, 12), rng.randint(-20, 20), rng.choice([-3, -2, 2, 3]), rng.randint(-12, 12)
    if a == c:
        a += 1
    return Problem("linear", f"Solve for x: {a}x {b:+d} = {c}x {(a - c) * x + b:+d}.", str(x))


def _fractions(rng: Random) -> Problem:
    a, b = (Fraction(rng.randint(1, 20), rng.randint(2, 20)) for _ in range(2))
    x = b / a
    return Problem("fractions", f"Solve for x: {a} x = {b}.", f"\\frac{{{x.numerator}}}{{{x.denominator}}}")


def _roots(rng: Random) -> Problem:
    p, q = rng.sample(range(-12, 13), 2)
    question = f"Which real numbers x satisfy x^2 {-(p + q):+d}x {p * q:+d} = 0? Answer with a set."
    return Problem("roots", question, f"\\{{{min(p, q)}, {max(p, q)}\\}}")


def _sequence(rng: Random) -> Problem:
    first, step, place = rng.randint(-50, 50), rng.choice([-1, 1]) * rng.randint(2, 15), rng.randint(12, 60)
    terms = ", ".join(str(first + n * step) for n in range(4))
    return Problem("sequence", f"What is term number {place} of {terms}, …?", str(first + (place - 1) * step))


# An expression that equals the answer is an answer, so no question may state one: copying it would earn the reward.
GENERATORS = (_linear, _fractions, _roots, _sequence)
