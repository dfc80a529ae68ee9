"""Thousands of short Python programs: a few sandboxes kept warm, and a fork of the interpreter for each program.

    host ──> worker sandbox ── fork ──> program 1, in namespaces and folders of its own, gone when it ends
                            ── fork ──> program 2 …

Starting an interpreter in a new sandbox takes some 50 milliseconds; forking one that waits in a sandbox takes a few.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType

from glm5.errors import UsageError
from glm5.sandbox.box import Sandbox, open_sandbox
from glm5.sandbox.spec import ExecResult, SandboxError, SandboxSpec

SPEC = SandboxSpec(
    memory_bytes=256 << 20, max_processes=16, max_output_bytes=1 << 16, disk_bytes=16 << 20, timeout=10.0
)


class PythonPool:
    """Workers that run one program each at a time; programs wait for a free one.

    async with PythonPool(workers=2) as pool:
        result = await pool.run("print(6 * 7)")
    """

    def __init__(self, workers: int = 1, spec: SandboxSpec = SPEC) -> None:
        """`spec` holds the limits of one program. Raises UsageError for a backend without folders for each program."""
        if workers < 1:
            raise UsageError(f"PythonPool: workers is {workers}; it must be at least 1")
        if spec.backend != "bubblewrap":
            raise UsageError(
                f"PythonPool: the backend {spec.backend!r} cannot give every program folders and processes of its own; "
                "use bubblewrap"
            )
        self._spec = spec
        self._workers = workers
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()

    async def __aenter__(self) -> "PythonPool":
        """Start every worker. Raises SandboxError when one cannot start."""
        try:
            for _ in range(self._workers):
                worker = _Worker(self._spec)
                await worker.start()
                self._free.put_nowait(worker)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every worker that is not busy; call it when no `run` is under way."""
        while not self._free.empty():
            await self._free.get_nowait().stop()

    async def run(
        self,
        code_or_files: str | Mapping[str, str],
        timeout: float | None = None,
        memory: int | None = None,
        stdin: bytes = b"",
    ) -> ExecResult:
        """Run a program in an empty folder.

        Args:
            code_or_files: the source, or files by relative path of which `main.py` is run and may import the others.
            timeout: seconds; the limit of the pool's spec when None.
            memory: bytes; likewise.
            stdin: its standard input.

        Raises:
            UsageError: files without `main.py`.
            SandboxError: the sandbox broke, which is never the program's fault; its worker is started anew.
        """
        files = {"main.py": code_or_files} if isinstance(code_or_files, str) else code_or_files
        if "main.py" not in files:
            raise UsageError(f"PythonPool: main.py is missing among the files: {', '.join(files) or 'none'}")
        worker = await self._free.get()
        try:
            return await worker.box.run_python(files["main.py"], files, timeout, memory, stdin)
        except SandboxError:
            await worker.stop()
            await worker.start()
            raise
        finally:
            self._free.put_nowait(worker)


class _Worker:
    """A sandbox that can be opened and closed apart from a `with`."""

    box: Sandbox

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        self.box = await self._stack.enter_async_context(open_sandbox(self._spec))

    async def stop(self) -> None:
        await self._stack.aclose()
