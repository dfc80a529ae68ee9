"""Graders that may hang, in a process that may be killed.

Symbolic mathematics can run for ever on a short answer, and its libraries guard themselves with signals, which work in
a process's main thread only. So such code runs in a process of its own, where it is the main thread, and answers one
JSON line for each JSON line; whoever waits too long ends it, and the next call starts another one.

    call("grade", …) ── {"function": "grade", "arguments": […]} ──> python -m glm5.environments.worker MODULE
                     <── {"result": …} or {"error": "…"} ──────────
"""

import importlib
import json
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from glm5.environments.base import EnvironmentFailure

MEMORY_BYTES = 4 << 30  # of address space; more than that is an answer that explodes


class WorkerTimeout(EnvironmentFailure):
    """The call took longer than it may. Whether its argument or its function is to blame is for the caller to say."""


class Worker:
    """Calls functions of one module in a process that lives from the first call to `close`.

    May be used from any thread and any event loop; calls wait for each other.
    """

    def __init__(self, module: str, timeout: float) -> None:
        """`timeout` is in seconds for each call; starting the process and importing the module do not count."""
        self._module = module
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def call(self, function: str, *arguments: Any) -> Any:
        """The result of `function(*arguments)`, all of it as JSON.

        Raises:
            WorkerTimeout: no result in time; the process is ended.
            EnvironmentFailure: the function raised, or the process ended.
        """
        with self._turn:
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended; reading says so
                print(json.dumps({"function": function, "arguments": arguments}), file=process.stdin, flush=True)
            answer = self._read_line(process, self._timeout, f"{function} of {self._module}")
        if "error" in answer:
            raise EnvironmentFailure(f"{function} of {self._module} raised {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "glm5.environments.worker", self._module]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = process
        self._read_line(process, 300.0, f"the import of {self._module}")
        return process

    def _read_line(self, process: "subprocess.Popen[str]", timeout: float, what: str) -> dict[str, Any]:
        """The next answer. Killing the process is what ends the wait: its output is at its end then."""
        assert process.stdout is not None
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return dict(json.loads(line))
        self._end()
        if timed_out.is_set():
            raise WorkerTimeout(f"{what} took longer than {timeout:g} s")
        raise EnvironmentFailure(f"the process for {what} ended with exit code {process.returncode}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # what was still to be sent has no reader any more
                process.communicate()


def serve(module_name: str) -> None:
    """The other end: answer calls until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not look like an answer
    module = importlib.import_module(module_name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print(json.dumps({"result": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(module, request["function"])(*request["arguments"])}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
