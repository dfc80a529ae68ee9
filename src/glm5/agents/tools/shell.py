"""Commands: in a fresh process that ends with everything it started, or explicitly in the background."""

import asyncio
from collections.abc import Mapping
from typing import Any

from glm5.agents.limits import packaged
from glm5.agents.outcomes import Result
from glm5.agents.tools.base import Desk, PackagedTool, TestRun
from glm5.errors import UsageError
from glm5.sandbox import ExecResult, Process

TEST_SECONDS = 600.0
EVIDENCE_CHARACTERS = 2000  # characters of a test run that are kept as evidence


class Shell(PackagedTool):
    """One command, one process."""

    name = "shell"
    writes = True

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Run it to its end or its time limit."""
        timeout = seconds(arguments, "timeout", packaged("tool")["seconds"])
        return as_result(await desk.workspace.run(arguments["command"], timeout), timeout)

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """A command that only sleeps waits for something."""
        return str(arguments.get("command", "")).strip().startswith("sleep ")


class RunTests(PackagedTool):
    """A command whose result is recorded as evidence."""

    name = "run_tests"
    writes = True  # tests write caches, and some write more

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Run the tests, and remember how they ended."""
        timeout = seconds(arguments, "timeout", TEST_SECONDS)
        ended = await desk.workspace.run(arguments["command"], timeout)
        result = as_result(ended, timeout)
        desk.test_runs.append(TestRun(arguments["command"], ended.exit_code, result.text[-EVIDENCE_CHARACTERS:]))
        return result


class Background(PackagedTool):
    """Processes that go on while the agent does other things."""

    name = "process"
    writes = True

    def __init__(self) -> None:
        self.running: dict[str, tuple[str, Process]] = {}  # by name: command, process

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Start, list, log, wait or stop."""
        match arguments["action"]:
            case "start":
                command = arguments.get("command")
                if not command:
                    raise UsageError("process: start needs a command")
                name = f"p{len(self.running) + 1}"
                self.running[name] = (command, await desk.workspace.start(command))
                return Result(f"started as {name}; look at it with process(action='log', name='{name}')")
            case "list":
                return Result("\n".join(self.describe()) or "no background processes")
            case "log":
                process = self._process(arguments)
                return Result(_joined(*await process.log(), _state(process.status())))
            case "wait":
                process = self._process(arguments)
                with_limit = seconds(arguments, "seconds", 30.0)
                try:
                    await asyncio.wait_for(process.wait(), with_limit)
                except TimeoutError:
                    return Result(_joined(*await process.log(), f"[still running after {with_limit:g} seconds]"))
                return Result(_joined(*await process.log(), _state(process.status())))
            case "stop":
                ended = await self._process(arguments).stop()
                return Result(_joined(ended.stdout, ended.stderr, "[stopped]"))
        raise UsageError(f"process: there is no action {arguments['action']!r}; use start, log, wait, stop or list")

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """Waiting for a process and looking at what it prints."""
        return arguments.get("action") in ("wait", "log")

    def describe(self) -> list[str]:
        """One line for each process: name, state, command."""
        return [f"{name} {_state(process.status())} {command}" for name, (command, process) in self.running.items()]

    async def stop_all(self) -> list[str]:
        """End what still runs; the commands that did."""
        left = [(command, process) for command, process in self.running.values() if process.status() is None]
        for _, process in left:
            await process.stop()
        return [command for command, _ in left]

    def _process(self, arguments: Mapping[str, Any]) -> Process:
        name = arguments.get("name", "")
        if name not in self.running:
            raise UsageError(f"process: there is no process {name!r}; known are: {', '.join(self.running) or 'none'}")
        return self.running[name][1]


def seconds(arguments: Mapping[str, Any], name: str, default: float) -> float:
    """A time that the model asked for, within bounds. Raises UsageError for one that is none."""
    wanted = float(arguments.get(name) or default)
    longest = packaged("tool")["longest_seconds"]
    if not 0 < wanted <= longest:
        raise UsageError(f"{name} must be more than 0 and at most {longest} seconds, not {wanted:g}")
    return wanted


def as_result(ended: ExecResult, timeout: float) -> Result:
    """How a command ended, in words for the model; the exit code is always said."""
    if ended.killed_for == "time":
        ending = f"[ended after {timeout:g} seconds, its time limit, with everything it had started]"
    elif ended.killed_for:
        ending = f"[ended: too much {ended.killed_for}]"
    else:
        ending = f"[exit code {ended.exit_code}]"
    ok = ended.exit_code == 0
    return Result(_joined(ended.stdout, ended.stderr, ending), "ok" if ok else "failed", ended.exit_code)


def _joined(stdout: str, stderr: str, ending: str) -> str:
    return "\n".join(part.rstrip("\n") for part in (stdout, stderr, ending) if part.strip("\n"))


def _state(ended: ExecResult | None) -> str:
    return "[running]" if ended is None else f"[ended with {ended.exit_code}]"
