"""Who descends from whom, and how much memory they hold: one reading of /proc.

Memory is the anonymous and shared memory that is in use. A page that several processes share counts for each in equal
parts (the kernel's proportional set size), so that the sum over a tree of forks is what the tree holds.
"""

import contextlib
import os
import signal
from dataclasses import dataclass


@dataclass
class Usage:
    """What a tree of processes uses now."""

    processes: list[int]
    memory: int  # bytes


def parents() -> dict[int, int]:
    """The parent of every process that this namespace shows."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _read(f"/proc/{name}/stat")
            if stat:  # the command's name may hold blanks and brackets: read on after its last bracket
                found[int(name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(root: int, parent_of: dict[int, int]) -> list[int]:
    """All below `root`, nearest first, without itself."""
    children: dict[int, list[int]] = {}
    for process, parent in parent_of.items():
        children.setdefault(parent, []).append(process)
    found = list(children.get(root, []))
    for process in found:
        found += children.get(process, [])
    return found


def usage(root: int, parent_of: dict[int, int]) -> Usage:
    """What the tree below `root` uses, without `root`."""
    family = descendants(root, parent_of)
    return Usage(family, sum(_memory(process) for process in family))


def kill(process: int) -> None:
    """SIGKILL, to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_tree(root: int) -> None:
    """Kill everything below `root`, again until nothing is left or 100 rounds have passed, then `root` itself.

    For places without a process namespace. A program that forks faster than this reads /proc can get away; what is
    around it (the end of the container) has to catch it.
    """
    for _ in range(100):
        family = descendants(root, parents())
        if not family:
            break
        for process in family:
            kill(process)
    kill(root)


def _memory(process: int) -> int:
    kilobytes = 0
    for line in _read(f"/proc/{process}/smaps_rollup").splitlines():
        if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""
