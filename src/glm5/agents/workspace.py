"""The tree an agent works on, and the place where its commands run: confined by a sandbox, or on this machine itself.

The tree stands under its own path in both, so that paths in logs, tracebacks and scripts mean the same everywhere. In
the sandbox there is nothing else of the machine but /usr, no network, and `.git` cannot be written: history is safe
from every command, however it is spelled.
"""

import os
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from glm5.errors import UsageError
from glm5.sandbox import ExecResult, Mount, Process, Sandbox, SandboxSpec, open_sandbox

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to work.

    Attributes:
        confined: in the sandbox; otherwise on this machine with the rights of whoever runs this.
        writable: whether the tree may change; only a sandbox can hold to that.
        show: further folders that commands may read, such as a virtual environment; its `bin` goes to the PATH.
    """

    root: Path
    confined: bool = True
    writable: bool = True
    show: tuple[Path, ...] = ()
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        """Raises UsageError for a root that is no folder, or too much to be a project."""
        if not self.root.is_dir():
            raise UsageError(f"{self.root} is not a folder; name the folder of the project to work on")
        if self.root.resolve() in (Path("/"), Path.home().resolve(), Path("/tmp"), Path("/usr"), Path("/etc")):
            raise UsageError(f"{self.root} is too much to hand over; name the folder of one project")
        if not self.writable and not self.confined:
            raise UsageError("only the sandbox can keep a tree unchanged; reading only needs it")


@asynccontextmanager
async def open_workspace(place: Place) -> "AsyncIterator[Workspace]":
    """Open the tree for work.

    Raises:
        SandboxError: the sandbox cannot start; nothing else is tried in its place.
    """
    root = place.root.resolve()
    if not place.confined:
        spec = SandboxSpec("local", allow_unconfined=True, memory_bytes=place.memory_bytes, disk_bytes=1 << 40)
    else:
        mounts = [Mount(root, str(root), writable=place.writable)]
        if (root / ".git").exists():
            mounts.append(Mount(root / ".git", str(root / ".git")))
        mounts += [Mount(folder.resolve(), str(folder.absolute())) for folder in place.show]
        spec = SandboxSpec(mounts=tuple(mounts), memory_bytes=place.memory_bytes)
    async with open_sandbox(spec) as box:
        yield Workspace(root, box, place)


class Workspace:
    """See `open_workspace`, which makes it.

    Attributes:
        root: the tree, absolute and without symbolic links.
        confined: whether commands run in the sandbox.
    """

    def __init__(self, root: Path, box: Sandbox, place: Place) -> None:
        self.root = root
        self.confined = place.confined
        self._box = box
        environments = [root / ".venv", *place.show]
        folders = [str(folder / "bin") for folder in environments if (folder / "bin").is_dir()]
        self._environment = {"PATH": ":".join([*folders, PATH]), "PYTHONDONTWRITEBYTECODE": "1"}
        self._shell = shutil.which("bash") or "/bin/sh"

    async def run(self, command: str, timeout: float) -> ExecResult:
        """Run a shell command in a fresh process at the root of the tree; what it starts ends with it.

        A pipe fails when any part of it fails, because `pytest | tail` would hide what `pytest` said.
        """
        return await self._box.exec(self._argv(command), timeout, cwd=str(self.root), env=self._environment)

    async def start(self, command: str) -> Process:
        """Start a shell command in the background."""
        return await self._box.start(self._argv(command), cwd=str(self.root), env=self._environment)

    async def read(self, path: str) -> bytes:
        """A file, read as the commands would. Raises SandboxError if that is impossible."""
        return await self._box.read(str(self.resolve(path)))

    async def write(self, path: str, content: bytes) -> None:
        """Make or replace a file of the tree. Raises UsageError for a path outside it, SandboxError if impossible."""
        target = self.resolve(path)
        if not target.is_relative_to(self.root) or target == self.root:
            raise UsageError(f"{path} is outside {self.root}; only files of this folder can be written")
        await self._box.write(str(target), content)

    def resolve(self, path: str) -> Path:
        """An absolute path, with symbolic links followed, so that no link leads out of the tree unseen."""
        if "\0" in path:
            raise UsageError("a path cannot contain a NUL character")
        return Path(os.path.realpath(self.root / path))

    def shown(self, paths: Iterable[str]) -> list[str]:
        """Paths as people read them: relative to the root where they are in it."""
        return [os.path.relpath(path, self.root) if path.startswith(f"{self.root}/") else path for path in paths]

    def _argv(self, command: str) -> list[str]:
        options = ["-o", "pipefail"] if self._shell.endswith("bash") else []
        return [self._shell, *options, "-c", command]
