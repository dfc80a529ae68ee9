"""One sandbox and one pool for all attacks: that they still serve after each of them is part of what is shown."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from glm5.sandbox import ExecResult, PythonPool, Sandbox, SandboxSpec, open_sandbox

LIMITS = SandboxSpec(
    memory_bytes=192 << 20, max_processes=24, max_output_bytes=20_000, disk_bytes=16 << 20, timeout=20.0
)


@dataclass
class Place:
    """Somewhere Python source can be run."""

    name: str
    run: Callable[..., ExecResult]


@dataclass
class Running:
    """A sandbox and a pool, with the loop that drives them."""

    runner: asyncio.Runner
    box: Sandbox
    pool: PythonPool

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def exec(self, *argv: str, **options: Any) -> ExecResult:
        return self.wait(self.box.exec(argv, **options))

    def python(self, code: str, **options: Any) -> ExecResult:
        return self.wait(self.box.exec(["python3", "-c", code], **options))

    def pooled(self, code: Any, **options: Any) -> ExecResult:
        return self.wait(self.pool.run(code, **options))


@pytest.fixture(scope="package")
def running() -> Iterator[Running]:
    with asyncio.Runner() as runner:
        opening = open_sandbox(LIMITS)
        box = runner.run(opening.__aenter__())
        pool = runner.run(PythonPool(1, LIMITS).__aenter__())
        yield Running(runner, box, pool)
        runner.run(pool.close())
        runner.run(opening.__aexit__(None, None, None))


@pytest.fixture(params=["sandbox", "pool"])
def place(request: pytest.FixtureRequest, running: Running) -> Iterator[Place]:
    """Both places one after the other; each must still answer when the attack is over."""
    run = running.python if request.param == "sandbox" else running.pooled
    yield Place(request.param, run)
    assert run("print('still here')").stdout == "still here\n"
