"""What happened in an RL stage, in order, so that a run killed at any moment goes on where it was.

    journal.jsonl     one small line an event: a group was started, judged, put into a batch
    rollouts.jsonl    one line a finished rollout (rl/replay.py), written before anything is done with it

Nothing else is saved of the asynchronous state: the queue, the counts of the staleness rule, the place in every
environment's tasks and the shares of the mixture all follow from these two files and the number of updates in the
trainer's checkpoint. A batch that was trained after that checkpoint is trained again from the same rollouts, in the
same order, on the weights that have not seen it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from glm5.errors import GLM5Error

Verdict = Literal["accepted", "filtered", "dropped"]


@dataclass(frozen=True, slots=True)
class GroupStarted:
    """A prompt was taken up; `index` is its place in the environment's endless list of tasks."""

    group: str
    environment: str
    index: int
    event: str = "started"


@dataclass(frozen=True, slots=True)
class GroupJudged:
    """All rollouts of a group are there. `reason` says why it was not accepted."""

    group: str
    verdict: Verdict
    reason: str = ""
    event: str = "judged"


@dataclass(frozen=True, slots=True)
class BatchTaken:
    """Groups left the queue: `groups` for update number `update` (from 1), `stale` because they were too old."""

    update: int
    groups: list[str]
    stale: list[str]
    event: str = "batch"


Event = GroupStarted | GroupJudged | BatchTaken
_EVENTS: dict[str, type] = {"started": GroupStarted, "judged": GroupJudged, "batch": BatchTaken}


class Journal:
    """Append-only; opening it again drops a last line that a kill has torn."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                with path.open("r+b") as file:
                    file.truncate(len(whole[0]) + len(whole[1]))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Append an event; a kill of this process right afterwards does not lose it.

        Raises:
            GLM5Error: it cannot be written.
        """
        try:
            self._file.write(json.dumps(asdict(event)) + "\n")
            self._file.flush()
        except OSError as error:
            raise GLM5Error(
                f"{self.path} cannot be written: {error}. Free some space; the run goes on from it"
            ) from error

    def __iter__(self) -> Iterator[Event]:
        """All events so far.

        Raises:
            GLM5Error: a line is no event.
        """
        self._file.flush()
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values: dict[str, Any] = json.loads(line)
                yield _EVENTS[values["event"]](**values)
            except (ValueError, KeyError, TypeError) as error:
                raise GLM5Error(f"{self.path}:{number} is no event of an RL run ({error})") from error

    def close(self) -> None:
        """Close the file, its content safely on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(slots=True)
class Standing:
    """What a journal amounts to.

    Attributes:
        started: every group that was ever started, with its place in its environment's tasks.
        judged: what became of those that ended.
        batches: groups of each update that was ever begun, by number.
        stale: groups that left the queue untrained.
    """

    started: dict[str, GroupStarted]
    judged: dict[str, GroupJudged]
    batches: dict[int, list[str]]
    stale: set[str]

    @classmethod
    def of(cls, events: Iterator[Event] | Journal) -> "Standing":
        """Add the events up."""
        standing = cls({}, {}, {}, set())
        for event in events:
            match event:
                case GroupStarted():
                    standing.started[event.group] = event
                case GroupJudged():
                    standing.judged[event.group] = event
                case BatchTaken():
                    standing.batches[event.update] = event.groups
                    standing.stale |= set(event.stale)
        return standing

    @property
    def queued(self) -> list[str]:
        """Accepted groups that are in no batch, in the order of their verdicts."""
        taken = self.stale.union(*self.batches.values())
        return [name for name, judged in self.judged.items() if judged.verdict == "accepted" and name not in taken]

    @property
    def unfinished(self) -> list[GroupStarted]:
        """Groups whose rollouts were in flight; they are started again under the same names."""
        return [started for name, started in self.started.items() if name not in self.judged]

    def cursor(self, environment: str) -> int:
        """The next task of an environment that no group has had."""
        indices = [started.index for started in self.started.values() if started.environment == environment]
        return max(indices, default=-1) + 1
