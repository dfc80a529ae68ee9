"""Snapshots of the tree in a git repository beside it, so that every step can be undone and every change be listed.

The project's own repository is never touched, and need not exist. Files are kept byte for byte: no filters, no line
end conversion, ignored files included (an ignored `.env` is what people miss most), submodules as plain files. A
snapshot is named by its tree, so equal contents have equal names. What has not changed since the last snapshot is not
even opened.
"""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glm5.errors import GLM5Error

# Made by tools from other files, large, and never what a person would miss.
UNSAVED_FOLDERS = frozenset(
    {".git", "node_modules", ".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".tox",
     ".hypothesis"}
)  # fmt: skip
LARGEST_FILE = 64 << 20
_RACY_NANOSECONDS = 20_000_000  # a file this young may change again without its times changing
_AUTHOR = b"glm5 <glm5@localhost> 0 +0000"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tells that a file is still the same."""

    size: int
    modified: int
    changed: int
    inode: int
    mode: int


class Shadow:
    """Snapshots of one tree.

    Attributes:
        current: the last snapshot.
        unsaved: files that are too large or cannot be read; folders that are left out on purpose are not among them.
    """

    def __init__(self, root: Path, repository: Path) -> None:
        """Raises GLM5Error if git is missing or the repository cannot be made."""
        self._root, self._repository = root, repository
        self.unsaved: list[str] = []
        self._seen: dict[bytes, _Seen] = {}
        self._has_commit = False
        if shutil.which("git") is None:
            raise GLM5Error("snapshots of the tree need the program git, which is not installed; install git")
        if not repository.exists():
            self._git("init", "--quiet", "--bare", str(repository), at=None)
            (repository / "description").write_text(f"snapshots of {root}\n")
        self.current = self.save()

    def save(self) -> str:
        """Save the tree as it is; its name, which is the old one if nothing changed."""
        found = dict(self._walk())
        # Deletions first: what was a file or a link may be a folder now.
        lines = [b"D " + _quoted(path) + b"\n" for path in self._seen.keys() - found.keys()]
        young = time.time_ns() - _RACY_NANOSECONDS
        for path, seen in found.items():
            if self._seen.get(path) != seen and (line := self._content(path, seen)):
                lines.append(line)
        self._seen = {path: seen if seen.changed < young else _Seen(-1, 0, 0, 0, 0) for path, seen in found.items()}
        if lines or not self._has_commit:
            beginning = b"" if self._has_commit else b"deleteall\n"
            self.current = self._commit(beginning + b"".join(lines))
            self._has_commit = True
        return self.current

    def changes(self, before: str, after: str) -> list[str]:
        """What differs between two snapshots: "A", "M" or "D", a space, and the name."""
        raw = self._git("diff-tree", "-r", "-z", "--no-renames", "--name-status", before, after)
        parts = raw.split(b"\0")[:-1]
        return [f"{_text(parts[i])} {_text(parts[i + 1])}" for i in range(0, len(parts), 2)]

    def patch(self, before: str, after: str) -> str:
        """The difference as a patch that git can apply."""
        return self._git("diff", "--binary", "--no-color", "--no-ext-diff", before, after).decode("utf-8", "replace")

    def names(self, snapshot: str) -> set[str]:
        """All files of a snapshot."""
        return set(map(_text, self._git("ls-tree", "-r", "-z", "--name-only", snapshot).split(b"\0")[:-1]))

    def restore(self, snapshot: str, only: Iterable[str] | None = None) -> list[str]:
        """Make the tree, or some files of it, what it was; what changed by that.

        What is there now is saved first, so restoring can itself be undone.
        """
        now = self.save()
        wanted = None if only is None else set(only)
        # Seen from the present: "A" is a file that the snapshot has and the tree has not.
        steps = [line for line in self.changes(now, snapshot) if wanted is None or line[2:] in wanted]
        for line in sorted(steps, key=lambda line: line[0] != "D"):
            path = self._root / line[2:]
            if line[0] == "D":
                self._remove(path)
            else:
                self._place(path, snapshot, line[2:])
        self.save()
        return steps

    def _walk(self) -> Iterator[tuple[bytes, _Seen]]:
        self.unsaved = []
        folders = [b""]
        root = os.fsencode(self._root)
        while folders:
            below = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(root, below)))
            except OSError:
                self.unsaved.append(_text(below) + "/")
                continue
            for entry in entries:
                path = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if _text(entry.name) not in UNSAVED_FOLDERS:
                        folders.append(path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if entry.name == b".git" or not (entry.is_symlink() or stat.S_ISREG(status.st_mode)):
                    continue
                if status.st_size > LARGEST_FILE:
                    self.unsaved.append(_text(path))
                    continue
                times = (status.st_mtime_ns, status.st_ctime_ns)
                yield path, _Seen(status.st_size, *times, status.st_ino, status.st_mode)

    def _content(self, path: bytes, seen: _Seen) -> bytes:
        full = os.path.join(os.fsencode(self._root), path)
        try:
            if stat.S_ISLNK(seen.mode):
                mode, data = b"120000", os.readlink(full)
            else:
                mode = b"100755" if seen.mode & 0o100 else b"100644"
                with os.fdopen(os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                    data = file.read()
        except OSError:
            self.unsaved.append(_text(path))
            return b""
        return b"M %s inline %s\ndata %d\n%s\n" % (mode, _quoted(path), len(data), data)

    def _commit(self, changes: bytes) -> str:
        parent = b"from refs/heads/tree^0\n" if self._has_commit else b""
        stream = b'commit refs/heads/tree\nmark :1\ncommitter %s\ndata 0\n%s%s\nls :1 ""\n' % (_AUTHOR, parent, changes)
        said = self._git("fast-import", "--quiet", "--force", "--date-format=raw-permissive", stdin=stream)
        return said.split()[2].decode()

    def _remove(self, path: Path) -> None:
        """Delete a file, and the folders above it that this leaves empty."""
        with suppress(OSError):
            path.unlink()
            for folder in path.parents:
                if folder == self._root:
                    break
                folder.rmdir()

    def _place(self, path: Path, snapshot: str, name: str) -> None:
        """Write a file as it was. No link on the way is followed: a folder may have been replaced by one."""
        folder = self._root
        for part in path.relative_to(self._root).parts[:-1]:
            folder = folder / part
            if folder.is_symlink() or not folder.is_dir():
                folder.unlink(missing_ok=True)
                folder.mkdir()
                self._give(folder)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        mode = self._git("ls-tree", "-z", snapshot, "--", f":(literal){name}").split()[0]
        data = self._git("cat-file", "blob", f"{snapshot}:{name}")
        if mode == b"120000":
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)
            path.chmod(0o755 if mode == b"100755" else 0o644)
        self._give(path)

    def _give(self, path: Path) -> None:
        """What root restores belongs to whom the tree belongs to."""
        if os.getuid() == 0:
            owner = self._root.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _git(self, *words: str, stdin: bytes = b"", at: Path | None = Path()) -> bytes:
        place = [] if at is None else [f"--git-dir={self._repository}"]
        command = [b"git", b"-c", b"core.quotePath=false", *map(os.fsencode, [*place, *words])]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}
        ended = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)
        if ended.returncode != 0:
            reason = ended.stderr.decode(errors="replace").strip()
            raise GLM5Error(f"the snapshots in {self._repository} failed (git {words[0]}): {reason}")
        return ended.stdout


def _quoted(path: bytes) -> bytes:
    return b'"' + path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
