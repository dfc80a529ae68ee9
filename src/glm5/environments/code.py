"""Write a function: the model's code runs in the sandbox, its results are compared outside of it.

    model's code + arguments of every test ──> sandbox ──> one JSON result a line ──> compared with what is expected

What is expected never enters the sandbox. So there is nothing to forge: leaving with exit code 0, printing "passed" or
patching the harness does not produce the right values, and what does produce them is a solution.

Problems are generated, or come from a file of JSON lines:

    {"prompt": …, "function": name, "tests": [{"arguments": […], "expected": …}, …]}
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.problems import ProblemFile
from glm5.environments.programs import Programs
from glm5.environments.replies import format_error, format_fault, verdict
from glm5.environments.splits import draw
from glm5.errors import UsageError
from glm5.text.messages import Message

INSTRUCTION = "Answer with the function in one ```python block."

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)

# What the model's code prints goes to standard error, and standard output is left to the results.
_HARNESS = """\
import json, os, sys
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
request = json.load(sys.stdin)
names = {"__name__": "answer"}
exec(compile(request["code"], "answer.py", "exec"), names)
for arguments in request["arguments"]:
    print(json.dumps(names[request["function"]](*arguments)), file=results, flush=True)
"""


class CodeOptions(Options):
    """What can be set."""

    path: Path | None = None  # JSON lines with "prompt", "function" and "tests"; generated problems without it
    timeout: float = Field(5.0, gt=0)  # seconds for all tests of one answer
    workers: int = Field(1, ge=1)  # programs that run at once


@dataclass(frozen=True, slots=True)
class Problem:
    """What to write, and the tests of it; `solution` is known for generated problems only."""

    prompt: str
    function: str
    tests: Sequence[Any]
    kind: str = ""
    solution: str = ""


class Code:
    """The environment "code"."""

    name: ClassVar[str] = "code"

    def __init__(self, **options: Any) -> None:
        """Options: see `CodeOptions`. Raises UsageError for wrong ones or a broken file."""
        self._options = CodeOptions.read(self.name, options)
        path = self._options.path
        self._file = None if path is None else _read_file(path)
        self._programs = Programs(self._options.workers, self._options.timeout)

    def task(self, split: Split, index: int) -> Task:
        """Task `index`."""
        problem = self._problem(split, index)
        hidden = {"function": problem.function, "tests": list(problem.tests), "solution": problem.solution}
        question = Message("user", f"{problem.prompt}\n{INSTRUCTION}")
        return Task(f"{self.name}/{split}/{index}", self.name, (question,), hidden=hidden, kind=problem.kind)

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """One turn; 1 if every test gives what is expected."""
        reply = await endpoint.chat(task.messages)
        if fault := format_error(reply):
            return format_fault(fault)
        blocks = _BLOCK.findall(reply.message.content)
        if not blocks:
            return format_fault(f"no ```python block in the answer {reply.message.content[:200]!r}")
        return await self._grade(blocks[-1], task.hidden["function"], task.hidden["tests"])

    async def close(self) -> None:
        """End the sandboxes."""
        await self._programs.close()

    async def _grade(self, code: str, function: str, tests: Sequence[Any]) -> Reward:
        request = {"code": code, "function": function, "arguments": [test["arguments"] for test in tests]}
        result = await self._programs.run(_HARNESS, json.dumps(request))
        lines = result.stdout.splitlines()
        passed = 0
        for test, line in zip(tests, lines):
            call = f"{function}({', '.join(map(repr, test['arguments']))})"
            if not _same(line, test["expected"]):
                return verdict(False, f"{call} gave {line[:200]}, right is {json.dumps(test['expected'])}")
            passed += 1
        if passed == len(tests):
            return verdict(True, f"all {passed} tests passed")
        why = f"was ended ({result.killed_for})" if result.killed_for else _last_line(result.stderr)
        return verdict(False, f"passed {passed} of {len(tests)} tests, then: {why}")

    def _problem(self, split: Split, index: int) -> Problem:
        if self._file is not None:
            row = self._file.row(split, index)
            return Problem(row["prompt"], row["function"], row["tests"], str(row.get("kind", "")))
        make = _GENERATORS[index % len(_GENERATORS)]
        return draw(split, index, make, lambda problem: problem.solution)


def _read_file(path: Path) -> ProblemFile:
    file = ProblemFile(path, {"prompt": str, "function": str, "tests": list}, text="prompt")
    for row in file:
        for test in row["tests"]:
            if not isinstance(test, dict) or "expected" not in test or not isinstance(test.get("arguments"), list):
                form = '{"arguments": [...], "expected": ...}'
                raise UsageError(f"{path}: a test of {row['function']!r} should be {form}, not {test!r}")
    return file


def _same(line: str, expected: Any) -> bool:
    """Whether a line of output is the JSON of the expected value."""
    try:
        return _equal(json.loads(line), expected)
    except ValueError:
        return False


def _equal(value: Any, expected: Any) -> bool:
    """Equality of JSON values, to nine digits for numbers; true is not 1."""
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(_equal(value[key], expected[key]) for key in expected)
        )
    numbers = (int, float)
    if isinstance(expected, numbers) and isinstance(value, numbers) and bool not in (type(value), type(expected)):
        return math.isclose(value, expected, rel_tol=1e-9)
    return type(value) is type(expected) and bool(value == expected)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it ended without a result"])[-1][:200]


# -- generated problems ----------------------------------------------------------------------------------------------

_NAMES = ("numbers", "values", "items", "data", "scores", "readings")


def _generator(kind: str, request: str, solution: str) -> Callable[[Random], Problem]:
    """Problems of one kind: `{f}`, `{xs}` and the constants `{a}` and `{b}` are filled in anew each time."""

    def make(rng: Random) -> Problem:
        names = {"f": rng.choice(("solve", "answer", "compute", "run")), "xs": rng.choice(_NAMES)}
        words: dict[str, Any] = {**names, "a": rng.randint(2, 30), "b": rng.randint(2, 9)}
        code = f"def {words['f']}({words['xs']}):\n    return {solution.format(**words)}\n"
        namespace: dict[str, Any] = {}
        exec(code, namespace)  # our own template
        inputs = [[], *([rng.randint(-40, 40) for _ in range(rng.randint(1, 9))] for _ in range(7))]
        tests = [{"arguments": [xs], "expected": namespace[words["f"]](list(xs))} for xs in inputs]
        prompt = f"Write a Python function {words['f']}({words['xs']}) that takes a list of integers and returns "
        return Problem(prompt + request.format(**words) + ".", words["f"], tests, kind, code)

    return make


_GENERATORS = (
    _generator("sum", "the sum of those greater than {a}", "sum(x for x in {xs} if x > {a})"),
    _generator("count", "how many of them are multiples of {b}", "sum(x % {b} == 0 for x in {xs})"),
    _generator("map", "a list with each multiplied by {b} and then lowered by {a}", "[x * {b} - {a} for x in {xs}]"),
    _generator(
        "clip", "a list with each limited to the range from -{a} to {a}", "[max(-{a}, min({a}, x)) for x in {xs}]"
    ),
    _generator(
        "filter", "a list of those not divisible by {b}, in ascending order", "sorted(x for x in {xs} if x % {b})"
    ),
    _generator(
        "distance",
        "the largest absolute difference between any of them and {a}, or {b} for an empty list",
        "max((abs(x - {a}) for x in {xs}), default={b})",
    ),
)
