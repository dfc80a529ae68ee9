"""Short Python programs a second: warm workers (`PythonPool`), a program in an open sandbox, a sandbox for each.

    python benchmarks/sandbox.py [--executions 1000] [--workers 2]

Beside them what an unconfined start of the interpreter costs, which is the floor for everything that starts one. Below
the table, of the pool alone: processor time, and what is left behind at the end.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glm5.sandbox import PythonPool, SandboxSpec, open_sandbox

RESULTS = Path(__file__).parent / "results"
PROGRAM = "print(sum(n * n for n in range(100)))"
EXPECTED = "328350\n"


@dataclass(slots=True)
class Row:
    """One way to run the program."""

    name: str
    executions: int
    per_second: float
    milliseconds: float  # each, one at a time


async def rate(name: str, count: int, side_by_side: int, once: Callable[[], Awaitable[str]]) -> Row:
    """Run it `count` times, `side_by_side` at once; then a tenth of that one at a time."""

    async def many(share: int) -> None:
        for _ in range(share):
            assert await once() == EXPECTED

    began = time.perf_counter()
    await asyncio.gather(*(many(count // side_by_side) for _ in range(side_by_side)))
    seconds = time.perf_counter() - began
    alone = max(count // 10, 5)
    began = time.perf_counter()
    await many(alone)
    each = (time.perf_counter() - began) / alone
    return Row(name, count, count // side_by_side * side_by_side / seconds, 1000 * each)


async def unconfined() -> str:
    """A fresh interpreter without any confinement."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode()


async def one_shot() -> str:
    """A sandbox of its own for one program."""
    async with open_sandbox(SandboxSpec()) as box:
        return (await box.exec(["python3", "-c", PROGRAM])).stdout


async def measure(count: int, workers: int) -> tuple[list[Row], float]:
    """All rows, and processor milliseconds of one execution in the pool."""
    rows = [await rate("interpreter, unconfined", count // 10, workers, unconfined)]
    rows.append(await rate("a sandbox for each", count // 20, workers, one_shot))
    async with open_sandbox(SandboxSpec()) as box:

        async def in_box() -> str:
            return (await box.exec(["python3", "-c", PROGRAM])).stdout

        rows.append(await rate("interpreter in an open sandbox", count // 10, workers, in_box))
    before = processor_seconds()
    async with PythonPool(workers) as pool:

        async def pooled() -> str:
            return (await pool.run(PROGRAM)).stdout

        rows.append(await rate("PythonPool", count, workers, pooled))
    return rows, 1000 * (processor_seconds() - before) / (1.1 * count)


def processor_seconds() -> float:
    """Of this process and of everything it started that has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def held() -> tuple[int, int, int]:
    """Processes of the machine that are a sandbox, descriptors of this process, temporary files of ours."""
    names = [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    return names.count("bwrap\n"), len(os.listdir("/proc/self/fd")), len(list(Path("/tmp").glob("glm5-sandbox-*")))


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executions", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    before = held()
    rows, processor = asyncio.run(measure(arguments.executions, arguments.workers))
    left = [after - earlier for after, earlier in zip(held(), before)]
    table = Table("", "executions", f"a second, {arguments.workers} at once", "ms each, one at a time")
    for row in rows:
        table.add_row(row.name, f"{row.executions:,}", f"{row.per_second:.0f}", f"{row.milliseconds:.1f}")
    Console(width=110).print(table)
    print(
        f"PythonPool: {processor:.1f} ms of processor time each; left behind: {left[0]} processes, {left[1]} ", end=""
    )
    print(f"descriptors, {left[2]} files. Load of the machine before: {os.getloadavg()[0]:.1f}")
    RESULTS.mkdir(exist_ok=True)
    figures = {"rows": [asdict(row) for row in rows], "processor_milliseconds": processor, "left_behind": left}
    (RESULTS / "sandbox.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
