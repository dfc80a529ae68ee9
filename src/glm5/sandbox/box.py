"""A running sandbox: programs, files and background processes in one confined place.

    async with open_sandbox(SandboxSpec()) as box:
        await box.write("main.py", "print(6 * 7)")
        result = await box.exec(["python3", "main.py"], timeout=5.0)

One process on the host side of a pipe, one program on the inside (`inside/server.py`). Leaving the `with`, being
cancelled, or the death of this process ends everything in the sandbox.
"""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from glm5.errors import UsageError
from glm5.sandbox.backends import Launch, prepare
from glm5.sandbox.inside.frames import Decoder, encode
from glm5.sandbox.remedies import remedy
from glm5.sandbox.spec import ExecResult, SandboxError, SandboxSpec, Snapshot

START_SECONDS = 60.0  # a container may have to be unpacked first
CLOSE_SECONDS = 5.0
GRACE_SECONDS = 30.0  # beyond its timeout, after which an execution counts as lost and the sandbox as broken
MAX_FILE_BYTES = 64 << 20  # read in one piece


@asynccontextmanager
async def open_sandbox(spec: SandboxSpec) -> "AsyncIterator[Sandbox]":
    """Start a sandbox, prove that it can run something, and end it with the `with`.

    Raises:
        SandboxError: it cannot start; the message names the remedy. Nothing else is tried in its place.
    """
    with prepare(spec) as launch:
        box = Sandbox(spec, launch)
        try:
            await box._start()
            yield box
        finally:
            await box._close()


class Process:
    """A program in the background of a sandbox."""

    def __init__(self, box: "Sandbox", number: int, ended: "asyncio.Future[ExecResult]") -> None:
        self._box = box
        self._number = number
        self._ended = ended

    def status(self) -> ExecResult | None:
        """How it ended, None while it runs. Raises SandboxError if the sandbox broke."""
        return self._ended.result() if self._ended.done() else None

    async def log(self) -> tuple[str, str]:
        """Standard output and standard error so far."""
        if self._ended.done():
            return self._ended.result().stdout, self._ended.result().stderr
        return await self._box._log(self._number)

    async def wait(self) -> ExecResult:
        """Wait until it ends by itself."""
        return await asyncio.shield(self._ended)

    async def stop(self) -> ExecResult:
        """End it and everything it started."""
        await self._box._send({"operation": "kill", "id": self._number})
        return await self.wait()


class Sandbox:
    """See `open_sandbox`, which makes it.

    Attributes:
        spec: what was asked for.
        work: the working folder as programs inside name it; relative paths start there.
    """

    def __init__(self, spec: SandboxSpec, launch: Launch) -> None:
        self.spec = spec
        self.work = launch.work
        self._launch = launch
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._decoder = Decoder()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._logs: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._count = 0
        self._broken = ""

    async def exec(
        self,
        argv: Sequence[str],
        timeout: float | None = None,
        stdin: bytes = b"",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """Run a program to its end, or to its limit. When it ends, so does everything it started.

        Args:
            argv: program and arguments; no shell reads them. A program that does not exist ends with 127.
            timeout: seconds; the sandbox's own when None.
            stdin: its standard input.
            cwd: its folder, relative to the working folder.
            env: added to the few variables that are set.

        Raises:
            SandboxError: the sandbox broke.
        """
        header = self._request(timeout) | {"argv": _checked(argv), "env": dict(env or {}), "cwd": self._path(cwd)}
        return _result(*await self._run(header, stdin), self.spec)

    async def start(self, argv: Sequence[str], cwd: str = "", env: Mapping[str, str] | None = None) -> Process:
        """Start a program in the background; it runs until it ends, is stopped, or the sandbox closes."""
        header = self._request(None) | {"argv": _checked(argv), "env": dict(env or {}), "cwd": self._path(cwd)}
        number, waiting = await self._launch_request(header | {"timeout": None}, b"")
        return Process(self, number, asyncio.ensure_future(self._background_result(waiting)))

    async def write(self, path: str, content: bytes | str) -> None:
        """Make or replace a file, and the folders above it. Raises SandboxError if that is impossible."""
        await self._file("write", path, content.encode() if isinstance(content, str) else content)

    async def read(self, path: str) -> bytes:
        """A file of at most 64 MB. Raises SandboxError if it cannot be read."""
        return await self._file("read", path, output=MAX_FILE_BYTES)

    async def list(self, path: str = "") -> list[str]:
        """All files and folders below a folder, folders with a slash at the end, sorted."""
        names = await self._file("names", path, output=MAX_FILE_BYTES)
        return names.decode("utf-8", "surrogateescape").split("\0") if names else []

    async def snapshot(self) -> Snapshot:
        """The working folder as it is now."""
        return Snapshot(await self._file("snapshot", "", output=4 * self.spec.disk_bytes))

    async def restore(self, snapshot: Snapshot) -> None:
        """Make the working folder what it was."""
        await self._file("restore", "", snapshot.archive)

    async def run_python(
        self, code: str, files: Mapping[str, str], timeout: float | None, memory: int | None, stdin: bytes
    ) -> ExecResult:
        """What `PythonPool` is made of: source run by a fork of the program inside, with folders of its own."""
        header = self._request(timeout) | {"code": code, "files": dict(files), "cwd": self.work, "fresh": True}
        if memory is not None:
            header["memory"] = memory
        return _result(*await self._run(header, stdin), self.spec)

    async def _start(self) -> None:
        launch = self._launch
        identity: dict[str, Any] = {}
        if launch.user is not None:
            identity = {"user": launch.user, "group": launch.user, "extra_groups": []}
        self._process = await asyncio.create_subprocess_exec(
            *launch.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=launch.environment,
            pass_fds=launch.descriptors,
            cwd=launch.cwd,
            **identity,
        )
        self._reader = asyncio.create_task(self._read_frames())
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), START_SECONDS)
        except TimeoutError:
            raise SandboxError(
                f"the {self.spec.backend} sandbox did not start in {START_SECONDS:.0f} seconds"
            ) from None
        await self.list()  # the probe: namespaces, mounts and limits of an execution

    async def _close(self) -> None:
        """End everything inside, and wait until it has ended."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_SECONDS)
        except TimeoutError:
            self._kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self._kill()
            raise
        finally:
            if self._reader is not None:
                self._reader.cancel()

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _read_frames(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        while data := await self._process.stdout.read(1 << 18):
            for header, body in self._decoder.feed(data):
                if "ready" in header:
                    self._ready.set_result(None)
                    continue
                table, key = (self._logs, header["log"]) if "log" in header else (self._ended, header["id"])
                waiting = table.pop(key)
                if not waiting.done():
                    waiting.set_result((header, body))
        said = (await self._process.stderr.read(1 << 16)).decode(errors="replace").strip()
        self._broken = f"the {self.spec.backend} sandbox ended: {said or 'without a word'}{remedy(said)}"
        waiting_for: list[asyncio.Future[Any]] = [self._ready, *self._ended.values(), *self._logs.values()]
        for future in waiting_for:
            if not future.done():
                future.set_exception(SandboxError(self._broken))
                future.exception()  # whether anybody waits for it or not

    def _request(self, timeout: float | None) -> dict[str, Any]:
        return {
            "timeout": self.spec.timeout if timeout is None else timeout,
            "memory": self.spec.memory_bytes,
            "processes": self.spec.max_processes,
            "disk": self.spec.disk_bytes,
            "output": self.spec.max_output_bytes,
        }

    async def _send(self, header: dict[str, Any], body: bytes = b"") -> None:
        if self._broken:
            raise SandboxError(self._broken)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(header, body))
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise SandboxError(f"the {self.spec.backend} sandbox is closed") from error

    async def _launch_request(
        self, header: dict[str, Any], stdin: bytes
    ) -> "tuple[int, asyncio.Future[tuple[dict[str, Any], bytes]]]":
        self._count += 1
        number = self._count
        waiting = self._ended[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(header | {"operation": "run", "id": number}, stdin)
        except asyncio.CancelledError:
            self._abandon(number)  # the request may be on its way already
            raise
        return number, waiting

    async def _run(self, header: dict[str, Any], stdin: bytes) -> tuple[dict[str, Any], bytes]:
        number, waiting = await self._launch_request(header, stdin)
        try:
            return await asyncio.wait_for(waiting, header["timeout"] + GRACE_SECONDS)
        except asyncio.CancelledError:
            self._abandon(number)
            raise
        except TimeoutError:
            self._broken = f"the {self.spec.backend} sandbox does not answer any more"
            raise SandboxError(self._broken) from None

    def _abandon(self, number: int) -> None:
        """End an execution that nobody waits for any more, from where nothing can be awaited."""
        self._ended[number] = asyncio.get_running_loop().create_future()
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(encode({"operation": "kill", "id": number}))

    async def _background_result(self, waiting: "asyncio.Future[tuple[dict[str, Any], bytes]]") -> ExecResult:
        return _result(*await waiting, self.spec)

    async def _log(self, number: int) -> tuple[str, str]:
        self._count += 1
        waiting = self._logs[self._count] = asyncio.get_running_loop().create_future()
        await self._send({"operation": "log", "id": number, "ticket": self._count})
        header, body = await waiting
        return _text(body[: header["stdout"]]), _text(body[header["stdout"] :])

    async def _file(self, action: str, path: str, content: bytes = b"", output: int = 0) -> bytes:
        header = self._request(None) | {"action": action, "path": self._path(path), "cwd": self.work}
        header, body = await self._run(header | {"output": output or self.spec.max_output_bytes}, content)
        result = _result(header, body, self.spec)
        if result.truncated:
            raise SandboxError(f"sandbox: {action} {path!r}: more than {output >> 20} MB")
        if result.exit_code != 0:
            reason = result.stderr.strip() or f"killed for {result.killed_for}"
            raise SandboxError(f"sandbox: {action} {path!r} failed: {reason}")
        return body[: header["stdout"]]

    def _path(self, path: str) -> str:
        if "\0" in path:
            raise UsageError(f"sandbox: a path cannot contain a NUL character: {path!r}")
        return path if path.startswith("/") else f"{self.work}/{path}".rstrip("/")


def _checked(argv: Sequence[str]) -> list[str]:
    if isinstance(argv, str) or not argv:
        raise UsageError(f"sandbox: argv must be a list of a program and its arguments, not {argv!r}")
    return list(argv)


def _result(header: dict[str, Any], body: bytes, spec: SandboxSpec) -> ExecResult:
    if header["trouble"]:
        trouble = header["trouble"]
        raise SandboxError(f"the {spec.backend} sandbox cannot start a program: {trouble}{remedy(trouble)}")
    return ExecResult(
        exit_code=header["exit_code"],
        stdout=_text(body[: header["stdout"]]),
        stderr=_text(body[header["stdout"] :]),
        timed_out=header["killed_for"] == "time",
        truncated=header["truncated"],
        seconds=header["seconds"],
        killed_for=header["killed_for"],
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
