"""Running the model's Python in the sandbox: one pool of warm workers, opened when the first program comes.

A program that fails, prints nonsense or never ends is the model's doing and comes back as a result. A sandbox that
cannot start or breaks is an `EnvironmentFailure`.
"""

import asyncio

from glm5.environments.base import EnvironmentFailure
from glm5.sandbox import ExecResult, PythonPool, SandboxError


class Programs:
    """A `PythonPool` that opens itself."""

    def __init__(self, workers: int, timeout: float) -> None:
        """`workers` programs run at once, each for `timeout` seconds at most."""
        self._workers = workers
        self._timeout = timeout
        self._pool: PythonPool | None = None
        self._opening = asyncio.Lock()

    async def run(self, source: str, stdin: str = "") -> ExecResult:
        """Run a program in an empty folder without network. Raises EnvironmentFailure when the sandbox breaks."""
        try:
            async with self._opening:
                if self._pool is None:
                    pool = PythonPool(self._workers)
                    await pool.__aenter__()
                    self._pool = pool
            return await self._pool.run(source, timeout=self._timeout, stdin=stdin.encode())
        except SandboxError as error:
            raise EnvironmentFailure(f"the sandbox broke: {error}") from error

    async def close(self) -> None:
        """End the workers."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
