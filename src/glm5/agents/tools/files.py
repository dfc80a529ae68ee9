"""Files: read with line numbers, search, edit exactly, write whole.

Edits work on bytes, so what the edit does not touch stays as it is: line ends, a missing last line break, text that is
not UTF-8.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from glm5.agents.outcomes import Result
from glm5.agents.tools.base import Desk, PackagedTool
from glm5.errors import UsageError
from glm5.sandbox import SandboxError

_LINES = 400
_SEARCH_SECONDS = 60.0


class Read(PackagedTool):
    """A file, a folder, or an earlier output."""

    name = "read"

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Numbered lines."""
        path = arguments["path"]
        if path.startswith("output:"):
            text = desk.outputs.read(path)
        elif desk.workspace.resolve(path).is_dir():
            names = await desk.workspace.run(f"ls -Ap -- {_quoted(str(desk.workspace.resolve(path)))}", 20.0)
            return Result(names.stdout or "[an empty folder]")
        else:
            data = await read_file(path, desk)
            if b"\0" in data[:8192]:
                return Result(f"{path} is a binary file of {len(data)} bytes", "failed")
            text = data.decode("utf-8", "replace")
        first = max(arguments.get("first_line", 1), 1)
        count = max(arguments.get("lines", _LINES), 1)
        lines = text.splitlines()
        chosen = lines[first - 1 : first - 1 + count]
        shown = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(chosen, first))
        if not chosen:
            return Result(f"{path} has {len(lines)} lines; there is nothing from line {first} on", "failed")
        rest = len(lines) - (first - 1 + len(chosen))
        return Result(shown + (f"\n[{rest} more lines; the next is {first + len(chosen)}]" if rest else ""))


class Search(PackagedTool):
    """Lines by regular expression, or names by glob; done by a program in the workspace, not by this process."""

    name = "search"

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Matches, at most 200."""
        kind = "names" if arguments.get("names") else "lines"
        words = (_SEARCHER, kind, arguments["pattern"], arguments.get("path") or ".")
        command = "python3 -S -c " + " ".join(_quoted(word) for word in words)
        ended = await desk.workspace.run(command, _SEARCH_SECONDS)
        if ended.exit_code != 0:
            return Result((ended.stderr.strip().splitlines() or [f"ended: {ended.killed_for}"])[-1], "failed")
        return Result(ended.stdout.rstrip("\n") or "no matches")


class Edit(PackagedTool):
    """One exact replacement."""

    name = "edit"
    writes = True

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Replace, or say why that is not possible and what is near."""
        path, old, new = arguments["path"], arguments["old"], arguments["new"]
        if not old:
            raise UsageError("edit: old is empty; use write to make a file")
        data = await read_file(path, desk)
        if b"\r\n" in data and "\r" not in old:  # the model sees line breaks, not how they are spelled
            old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        wanted, replacement = old.encode("utf-8", "surrogateescape"), new.encode("utf-8", "surrogateescape")
        count = data.count(wanted)
        if count != 1:
            return Result(_why_not(path, data.decode("utf-8", "replace"), old, count), "failed")
        if wanted == replacement:
            return Result("edit: old and new are the same; nothing was changed", "failed")
        await desk.workspace.write(path, data.replace(wanted, replacement))
        line = data[: data.index(wanted)].count(b"\n") + 1
        return Result(f"edited {path} at line {line}")


class Write(PackagedTool):
    """A whole file."""

    name = "write"
    writes = True

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Make or replace it."""
        content = arguments["content"].encode("utf-8", "surrogateescape")
        await desk.workspace.write(arguments["path"], content)
        return Result(f"wrote {arguments['path']}: {len(content)} bytes")


async def read_file(path: str, desk: Desk) -> bytes:
    """The bytes of a file. Raises UsageError, in words for the model, if it cannot be read."""
    try:
        return await desk.workspace.read(path)
    except SandboxError as error:
        reason = str(error).splitlines()[-1]
        raise UsageError(f"{path} cannot be read: {reason}") from error


def _why_not(path: str, text: str, old: str, count: int) -> str:
    """Words that let the next try succeed."""
    if count > 1:
        places = [text[:at].count("\n") + 1 for at in _places(text, old)]
        where = ", ".join(map(str, places[:8]))
        return f"edit: old occurs {count} times in {path}, at lines {where}; add lines around it that make it unique"
    lines = text.splitlines()
    first = old.strip("\r\n").partition("\n")[0].rstrip("\r")
    near = difflib.get_close_matches(first, lines, n=1, cutoff=0.6)
    if not near:
        return f"edit: old does not occur in {path}, nor anything like its first line; read the file again"
    number = lines.index(near[0])
    around = "\n".join(f"{n + 1:6}\t{lines[n]}" for n in range(number, min(number + old.count("\n") + 2, len(lines))))
    return f"edit: old does not occur in {path}; the nearest is at line {number + 1}:\n{around}"


def _places(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + len(part))
    return found


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


# Runs inside the workspace: untrusted files are opened by nobody else, and a regular expression that never ends is
# ended by the time limit.
_SEARCHER = r"""
import fnmatch, os, re, sys
kind, pattern, top = sys.argv[1:]
skipped = {".git", "node_modules", ".venv", "__pycache__", ".mypy_cache", ".tox"}
limit, found = 200, 0
if not os.path.exists(top):
    sys.exit(f"search: there is no {top}")
try:
    expression = re.compile(pattern if kind == "lines" else fnmatch.translate(pattern.removeprefix("**/")))
except re.error as error:
    sys.exit(f"search: {pattern!r} is no regular expression: {error}")
def files():
    if os.path.isfile(top):
        yield top
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(set(folders) - skipped)
        yield from (os.path.normpath(os.path.join(folder, name)) for name in sorted(names))
def matches(path):
    if kind == "names":
        return [path] if expression.match(path) or expression.match(os.path.basename(path)) else []
    try:
        data = open(path, "rb").read(4 << 20) if os.path.isfile(path) else b""
    except OSError:
        return []
    if b"\0" in data[:8192]:
        return []
    lines = enumerate(data.decode("utf-8", "replace").splitlines(), 1)
    return [f"{path}:{number}: {line[:300]}" for number, line in lines if expression.search(line)]
for path in files():
    for match in matches(path):
        if found == limit:
            print(f"[more than {limit} matches; narrow the search]")
            sys.exit()
        print(match.encode("utf-8", "replace").decode())
        found += 1
"""
