"""Problems from a file of the user's own: JSON lines, divided into splits by their text.

Which split a line is in depends on its words alone (`splits.split_of`), so lines may be added, taken away and moved
without a held-out problem ever becoming a training problem.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from glm5.environments.base import Split
from glm5.environments.splits import split_of
from glm5.errors import UsageError


class ProblemFile:
    """The lines of a file, by split."""

    def __init__(self, path: Path, fields: Mapping[str, type], text: str) -> None:
        """Read and check it.

        Args:
            fields: what every line must have, by name.
            text: the field that tells one problem from another.

        Raises:
            UsageError: the file cannot be read, or a line is not as it should be; the message has its number.
        """
        self._path = path
        self._rows: dict[Split, list[dict[str, Any]]] = {"train": [], "held_out": []}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the problems {path} cannot be read: {error}") from error
        seen: set[str] = set()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = _read(line, fields, f"{path}:{number}")
                if row[text] not in seen:
                    seen.add(row[text])
                    self._rows[split_of(row[text])].append(row)
        if not seen:
            raise UsageError(f"{path} has no problems in it")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All lines, of both splits."""
        return chain.from_iterable(self._rows.values())

    def row(self, split: Split, index: int) -> dict[str, Any]:
        """Line `index` of a split; after the last comes the first again.

        Raises:
            UsageError: the split is empty.
        """
        rows = self._rows[split]
        if not rows:
            raise UsageError(
                f"none of the problems in {self._path} falls into the split {split!r}, which takes "
                f"{'one' if split == 'held_out' else 'nine'} in ten by chance; give it more problems"
            )
        return rows[index % len(rows)]


def _read(line: str, fields: Mapping[str, type], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a problem is an object, not {type(row).__name__}")
    for name, kind in fields.items():
        if not isinstance(row.get(name), kind) or not row[name]:
            raise UsageError(f"{where}: needs {name!r}, a {kind.__name__} that is not empty; it is {row.get(name)!r}")
    return row
