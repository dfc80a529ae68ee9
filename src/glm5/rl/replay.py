"""Finished rollouts and training samples on disk, one JSON object a line, so that the two halves can be run apart.

Rollouts that were written can be trained on again without an engine, and looked at without a trainer (slime's dump
and replay). Numbers come back exactly: JSON holds the shortest decimal that reads back as the same double.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

from glm5.errors import GLM5Error
from glm5.rl.records import TrainingSample, Trajectory

Record = TypeVar("Record", Trajectory, TrainingSample)


class RolloutLog:
    """Appends records to one file, which holds one kind of them.

    A line is with the operating system when `append` returns, so it survives the death of the process; `sync` and
    `close` make it survive that of the machine. A torn last line, left by a kill, is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the file at `path`, or begin it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab+")
        self._file.truncate(_end_of_last_line(self._file))

    def append(self, record: Trajectory | TrainingSample) -> None:
        """Append one record.

        Raises:
            GLM5Error: it holds a number that is not finite; nothing is written then.
        """
        try:
            line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":"))
        except ValueError as error:
            raise GLM5Error(f"rollout {record.rollout_id} cannot be written: {error}") from error
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until everything is on disk, as before a checkpoint that counts on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_replay(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the records of a file in order, one at a time. A torn last line is passed over.

    Raises:
        GLM5Error: there is no such file, no record in it, or a whole line is not a record of this kind.
    """
    if not path.is_file():
        raise GLM5Error(f"{path} does not exist; name a file of finished rollouts or training samples")
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                number -= 1
                break
            try:
                record = kind.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, GLM5Error) as error:
                raise GLM5Error(f"{path}:{number} is not a {kind.__name__}: {error}") from error
            yield record
    if not number:
        raise GLM5Error(f"{path} holds no finished {kind.__name__}")


def _end_of_last_line(file: BinaryIO) -> int:
    """Bytes up to and with the last newline, looked for from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
