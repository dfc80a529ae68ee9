"""The loop inside a sandbox: takes requests from the host, runs them side by side, and reports how they ended.

    host ── frames ──> [ requests ]            one Execution each: pipes, deadline, memory watch
    host <── frames ── [ ended, log ]          written here, never by what is executed

Only this process holds the two ends of the pipe to the host, so no execution can forge a report.
"""

import os
import selectors
import signal
import time
from typing import Any

from . import processes
from .execute import Launcher, Request
from .frames import Decoder, encode

_PIECE = 1 << 16
_WATCH_SECONDS = 0.05


class Capture:
    """The first and the last half of `limit` bytes of an output; what lies between is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self._seen = 0

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._seen += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:][-self._half :]
        if len(self._tail) > 2 * self._half + _PIECE:
            del self._tail[: -self._half]

    @property
    def dropped(self) -> int:
        """Bytes left out."""
        return max(self._seen - 2 * self._half, 0)

    def value(self) -> bytes:
        """What was kept, with a line that says what was not."""
        if not self.dropped:
            return bytes(self._head + self._tail)
        return (
            bytes(self._head)
            + f"\n[... {self.dropped} bytes left out ...]\n".encode()
            + bytes(self._tail[-self._half :])
        )


class Execution:
    """A request on its way: its process, its pipes, its limits."""

    def __init__(self, request: Request, stdin: bytes, launcher: Launcher) -> None:
        self.request = request
        self._end = processes.kill if launcher.namespaces else processes.kill_tree
        self.began = time.monotonic()
        self.deadline = None if request.timeout is None else self.began + request.timeout
        self.killed_for = ""
        self.to_write = memoryview(stdin)
        self.captures = [Capture(request.output), Capture(request.output), Capture(_PIECE)]
        theirs_in, self.stdin = os.pipe()
        pairs = [os.pipe() for _ in range(3)]
        self.outputs = [ours for ours, _ in pairs]
        for descriptor in (self.stdin, *self.outputs):
            os.set_blocking(descriptor, False)
        try:
            self.process = launcher.start(request, theirs_in, *(theirs for _, theirs in pairs))
        finally:
            for descriptor in (theirs_in, *(theirs for _, theirs in pairs)):
                os.close(descriptor)

    def kill(self, reason: str) -> None:
        """End it and all it started; the first reason stays."""
        self.killed_for = self.killed_for or reason
        self._end(self.process)

    def outcome(self, code: int) -> bytes:
        """The report to the host."""
        stdout, stderr, trouble = (capture.value() for capture in self.captures)
        header = {
            "id": self.request.id,
            "exit_code": None if self.killed_for else code,
            "killed_for": self.killed_for,
            "truncated": any(capture.dropped for capture in self.captures),
            "seconds": time.monotonic() - self.began,
            "stdout": len(stdout),
            "trouble": trouble.decode(errors="replace"),
        }
        return encode(header, stdout + stderr)


class Server:
    """Serves one host until it closes its end of the pipe."""

    def __init__(self, requests: int, replies: int, namespaces: bool) -> None:
        self._requests = requests
        self._replies = replies
        self._launcher = Launcher(namespaces)
        self._decoder = Decoder()
        self._running: dict[int, Execution] = {}
        self._selector = selectors.DefaultSelector()
        self._open = True

    def run(self) -> None:
        """Loop until the host is gone; then end what still runs."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ, lambda: os.read(woken, _PIECE))
        self._selector.register(self._requests, selectors.EVENT_READ, self._receive)
        self._reply({"ready": True})
        while self._open:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._watch()
            self._bury()
        for execution in self._running.values():
            execution.kill("close")

    def _patience(self) -> float | None:
        return _WATCH_SECONDS if self._running else None

    def _reply(self, header: dict[str, Any], body: bytes = b"") -> None:
        self._send(encode(header, body))

    def _send(self, frame: bytes) -> None:
        view = memoryview(frame)
        while view:
            view = view[os.write(self._replies, view) :]

    def _receive(self) -> None:
        data = os.read(self._requests, _PIECE)
        if not data:
            self._open = False
        for header, body in self._decoder.feed(data):
            operation = header.pop("operation")
            if operation == "run":
                self._start(Request(**header), body)
                continue
            execution = self._running.get(header["id"])
            if execution is not None and operation == "kill":
                execution.kill("stop")
            elif operation == "log":
                parts = [c.value() for c in execution.captures[:2]] if execution else [b"", b""]
                self._reply({"log": header["ticket"], "stdout": len(parts[0])}, b"".join(parts))

    def _start(self, request: Request, stdin: bytes) -> None:
        try:
            execution = Execution(request, stdin, self._launcher)
        except OSError as error:
            self._reply({"id": request.id, "trouble": str(error)})
            return
        self._running[request.id] = execution
        for descriptor, capture in zip(execution.outputs, execution.captures):
            self._selector.register(descriptor, selectors.EVENT_READ, _reader(descriptor, capture, self._selector))
        self._selector.register(execution.stdin, selectors.EVENT_WRITE, lambda: self._feed(execution))

    def _feed(self, execution: Execution) -> None:
        """Write what fits into the program's standard input; close it at the end, or when nobody reads."""
        try:
            if execution.to_write:
                execution.to_write = execution.to_write[os.write(execution.stdin, execution.to_write[:_PIECE]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            execution.to_write = memoryview(b"")
        if not execution.to_write:
            self._selector.unregister(execution.stdin)
            os.close(execution.stdin)
            execution.stdin = -1

    def _watch(self) -> None:
        """Kill what is over its time, its memory or its number of processes."""
        now = time.monotonic()
        old = [e for e in self._running.values() if not e.killed_for and now - e.began > _WATCH_SECONDS]
        if not old:
            return
        parent_of = processes.parents()
        for execution in old:
            used = processes.usage(execution.process, parent_of)
            if execution.deadline is not None and now >= execution.deadline:
                execution.kill("time")
            elif used.memory > execution.request.memory:
                execution.kill("memory")
            elif len(used.processes) > execution.request.processes:
                execution.kill("processes")

    def _bury(self) -> None:
        """Report the executions that have ended, and kill what they left to this process."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if process == 0:
                break
            ended = next((e for e in self._running.values() if e.process == process), None)
            if ended is not None:
                self._finish(ended, os.waitstatus_to_exitcode(status))
        if not self._launcher.namespaces:
            known = {e.process for e in self._running.values()}
            for process, parent in processes.parents().items():
                if parent == os.getpid() and process not in known:
                    processes.kill_tree(process)

    def _finish(self, execution: Execution, code: int) -> None:
        del self._running[execution.request.id]
        for descriptor, capture in zip(execution.outputs, execution.captures):
            reader = _reader(descriptor, capture, self._selector)
            while descriptor in self._selector.get_map() and reader():
                pass
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
                os.close(descriptor)
        if execution.stdin >= 0:
            self._selector.unregister(execution.stdin)
            os.close(execution.stdin)
        self._send(execution.outcome(code))


def _reader(descriptor: int, capture: Capture, selector: selectors.BaseSelector) -> Any:
    """A function that moves what is there into the capture; true if there was something. Closes at the end."""

    def read() -> bool:
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return False
        if data:
            capture.add(data)
            return True
        selector.unregister(descriptor)
        os.close(descriptor)
        return False

    return read
