"""Sets of tasks for a batch: our own rows, SWE-bench rows, Harbor task folders. Each gets a tree of its own.

    ours        JSON lines with id, root (a folder), task, and optionally test
    SWE-bench   JSON lines with instance_id, repo, base_commit, problem_statement; clones lie in one folder
    Harbor      a folder of folders with task.toml and instruction.md; the tree is what `environment/` holds

A tree of SWE-bench is the files of its base commit and nothing else: the future that a history holds has been read by
agents before. Harbor's images are not built; what a Dockerfile would install must be on this machine.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm5.errors import GLM5Error, UsageError

NOBODY = 65534


@dataclass(frozen=True, slots=True)
class BatchTask:
    """One task of a batch.

    Attributes:
        source: the folder, or the clone, that its tree is made from.
        commit: of a clone; "" copies the folder as it is.
    """

    id: str
    task: str
    source: Path
    commit: str = ""
    test_command: str = ""

    def lay_out(self, tree: Path) -> None:
        """Make the tree, where there is none yet. Raises GLM5Error if its source cannot be copied."""
        if tree.exists():
            return
        making = tree.with_name(f"{tree.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        try:
            if self.commit:
                making.mkdir(parents=True)
                archive = ["git", "-C", str(self.source), "archive", "--format=tar", self.commit]
                packed = subprocess.run(archive, capture_output=True, check=True).stdout
                subprocess.run(["tar", "-x", "-C", str(making)], input=packed, capture_output=True, check=True)
            else:
                shutil.copytree(self.source, making, symlinks=True)
        except (OSError, shutil.Error, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", b"") or str(error).encode()
            raise GLM5Error(
                f"{self.id}: its tree cannot be made from {self.source}: {reason.decode()[-300:]}"
            ) from error
        if os.getuid() == 0:  # a sandbox never runs as root, but as the owner of its tree
            for path in (making, *making.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        making.rename(tree)


def load_tasks(path: Path, repositories: Path | None = None) -> list[BatchTask]:
    """Read a set of tasks.

    Args:
        path: a file of JSON lines, or a folder of Harbor tasks.
        repositories: holds the clones of SWE-bench rows, as `owner__name` or `name`.

    Raises:
        UsageError: there are none, one of them is malformed, or two have the same id.
    """
    if path.is_dir():
        tasks = [_harbor(folder) for folder in sorted(path.iterdir()) if (folder / "task.toml").exists()]
    else:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the tasks {path} cannot be read: {error}") from error
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        tasks = [_row(line, f"{path}, line {number}", path.parent, repositories) for number, line in numbered]
    if not tasks:
        raise UsageError(f"{path} holds no tasks: give JSON lines, or a folder of folders with task.toml")
    ids = [task.id for task in tasks]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise UsageError(f"{path}: tasks with the same id: {', '.join(sorted(twice))}")
    return tasks


def _row(line: str, where: str, beside: Path, repositories: Path | None) -> BatchTask:
    try:
        raw = json.loads(line)
        if "instance_id" in raw:
            return _swe_bench(raw, where, repositories)
        root = beside / raw["root"]
        if not root.is_dir():
            raise UsageError(f"{where}: {root} is not a folder")
        return BatchTask(_name(raw["id"], where), raw["task"], root, test_command=raw.get("test", ""))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: this is no task: {line[:100]}") from error
    except KeyError as error:
        raise UsageError(f"{where}: the task has no {error}") from error


def _swe_bench(raw: dict[str, Any], where: str, repositories: Path | None) -> BatchTask:
    if repositories is None:
        raise UsageError(f"{where}: rows of SWE-bench need the folder that holds clones of their repositories")
    names = (raw["repo"].replace("/", "__"), raw["repo"].rpartition("/")[2])
    clone = next((repositories / name for name in names if (repositories / name).is_dir()), None)
    if clone is None:
        raise UsageError(f"{where}: there is no clone of {raw['repo']} in {repositories} (as {' or '.join(names)})")
    return BatchTask(_name(raw["instance_id"], where), raw["problem_statement"], clone, raw["base_commit"])


def _harbor(folder: Path) -> BatchTask:
    instruction = folder / "instruction.md"
    if not instruction.exists() or not (folder / "environment").is_dir():
        raise UsageError(f"{folder} has a task.toml, but no instruction.md or no environment folder")
    return BatchTask(_name(folder.name, str(folder)), instruction.read_text("utf-8"), folder / "environment")


def _name(raw: Any, where: str) -> str:
    """An id names a folder, so it may not lead anywhere else."""
    if not isinstance(raw, str) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", raw):
        raise UsageError(f"{where}: an id is made of letters, digits, and . _ -, not {raw!r}")
    return raw
