"""The plan, and the end: a claim of success counts only with a recorded test run that shows it.

False success is the field's largest trust gap, and the shape of a command does not tell whether it verifies anything.
So what counts is what really ran: through `run_tests`, with exit code 0, on the files as they are now, with the tests
that were there before.
"""

import re
from collections.abc import Mapping
from typing import Any

from glm5.agents.guard.argv import Unparseable, parse
from glm5.agents.outcomes import Ending, Result, Status
from glm5.agents.tools.base import Desk, PackagedTool, TestRun

# Programs that succeed whatever the state of the project is.
_TRIVIAL = {"true", ":", "echo", "printf", "exit", "cd", "ls", "pwd", "cat", "sleep", "test", "[", "set", "export"}
_TEST_FILE = re.compile(r"(^|/)(tests?|spec|__tests__)/|(^|/)test_[^/]*$|_test\.[^/]+$|\.(test|spec)\.[^/]+$")


class Plan(PackagedTool):
    """The plan, kept in sight."""

    name = "plan"

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Keep it."""
        desk.plan = arguments["steps"]
        return Result("noted")


class Finish(PackagedTool):
    """The last call of a run."""

    name = "finish"

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """End the run, with a verdict on the claim."""
        changed = desk.changed()
        summary = arguments["summary"]
        if not arguments["done"]:
            return Result("noted", ending=Ending(Status.GAVE_UP, summary, changed=changed))
        command = arguments.get("test_command") or desk.test_command
        run = next((run for run in reversed(desk.test_runs) if run.command.strip() == command.strip()), None)
        doubt = _doubt(command, run, desk, changed)
        ending = Ending(
            Status.UNVERIFIED if doubt else Status.VERIFIED,
            summary,
            evidence=doubt or (run.tail if run else ""),
            test_command=command,
            exit_code=run.exit_code if run else None,
            changed=changed,
        )
        return Result(f"recorded as {ending.status}" + (f": {doubt}" if doubt else ""), ending=ending)


def _doubt(command: str, run: TestRun | None, desk: Desk, changed: list[str]) -> str:
    """Why the claim is not shown to be true; "" if it is."""
    if not command:
        return "no test command was named"
    if desk.test_command and command.strip() != desk.test_command.strip():
        return f"the command that shows success is {desk.test_command!r}, not {command!r}"
    if run is None:
        return f"{command!r} was never run with run_tests"
    if run.exit_code != 0:
        return f"{command!r} ended with exit code {run.exit_code}"
    if run.snapshot != desk.snapshot():
        return f"files changed after {command!r} ran"
    if not desk.test_command and tests_nothing(command):
        return f"{command!r} succeeds whatever the state of the project is"
    touched = [line[2:] for line in changed if line[0] in "MD" and is_test_file(line[2:])]
    if touched:
        return f"tests that were there before were changed: {', '.join(touched[:5])}"
    return ""


def is_test_file(path: str) -> bool:
    """Whether a file belongs to tests, by the names that projects give them."""
    return _TEST_FILE.search(path) is not None


def tests_nothing(command: str) -> bool:
    """Whether a command cannot fail: only trivial programs, or a failure that is swallowed."""
    if re.search(r"\|\|\s*(true|:|exit 0|echo\b)|;\s*(true|:|exit 0|echo\b[^;&|]*)\s*$", command):
        return True
    try:
        programs = {part.argv[0].rsplit("/", 1)[-1] for part in parse(command) if part.argv}
    except Unparseable:
        return False
    return programs <= _TRIVIAL
