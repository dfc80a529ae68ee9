"""Everything an agent did, as typed events in an append-only file of JSON lines.

    {"number": 7, "time": 1764000000.1, "kind": "observed", "call_id": "c3", "name": "shell", "content": "…", …}

The file is the truth: what the model is shown is a view of it (`view.py`), a crash loses at most the line that was
being written, and every export is made from it. A step costs one short line, however long the run already is.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from glm5.errors import GLM5Error, UsageError
from glm5.text.messages import Message

SCHEMA_VERSION = 1
By = Literal["system", "person", "harness"]
CallStatus = Literal["ok", "failed", "refused", "malformed", "interrupted"]


class Event:
    """Base of the events. What each field is called here is what it is called in the file."""

    kind: ClassVar[str] = ""
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Started(Event):
    """A run begins: what was asked, where, and under which rules."""

    kind: ClassVar[str] = "started"
    task: str
    root: str
    mode: str
    model: str
    snapshot: str = ""  # of the tree before anything happened
    scope: list[str] = field(default_factory=list)
    git: str = ""  # a digest of the project's own repository: branches, settings, hooks
    version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Said(Event):
    """Words for the model that are no result of a call."""

    kind: ClassVar[str] = "said"
    message: Message
    by: By
    reason: str = ""  # why the harness spoke: "stuck", "no call", …


@dataclass(frozen=True, slots=True)
class Replied(Event):
    """One turn of the model, whole, as it came."""

    kind: ClassVar[str] = "replied"
    message: Message
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    thinking: bool | None = None  # what was asked of the endpoint; None: its own choice


@dataclass(frozen=True, slots=True)
class Decided(Event):
    """What the guard or a person made of a call before it ran. Calls that nobody had doubts about have none."""

    kind: ClassVar[str] = "decided"
    call_id: str
    verdict: Literal["allow", "deny"]
    by: By
    reason: str
    effects: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Observed(Event):
    """The result of a call, as the model sees it."""

    kind: ClassVar[str] = "observed"
    call_id: str
    name: str
    content: str
    status: CallStatus = "ok"
    exit_code: int | None = None
    seconds: float = 0.0
    handle: str = ""  # of the whole output, where `content` is shortened


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """The tree changed and was saved."""

    kind: ClassVar[str] = "saved"
    snapshot: str
    changed: list[str]


@dataclass(frozen=True, slots=True)
class Reverted(Event):
    """Files were set back to a snapshot; what was there before that is `replaced`."""

    kind: ClassVar[str] = "reverted"
    snapshot: str
    replaced: str
    changed: list[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Folded(Event):
    """The view got shorter. `observations` are the numbers of events whose content is left out from now on."""

    kind: ClassVar[str] = "folded"
    manager: str
    observations: list[int] = field(default_factory=list)
    restart: bool = False
    summary: str = ""  # with a restart: what is told in place of what was dropped


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The run went on in a new process."""

    kind: ClassVar[str] = "resumed"
    reason: str


@dataclass(frozen=True, slots=True)
class Rewound(Event):
    """The run went back: events after number `to`, up to this one, do not count any more."""

    kind: ClassVar[str] = "rewound"
    to: int


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """How it ended: `status` is one of `outcomes.Status`."""

    kind: ClassVar[str] = "ended"
    status: str
    summary: str
    evidence: str = ""
    test_command: str = ""
    exit_code: int | None = None
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Audited(Event):
    """What the run did beside what it was asked to: one sentence each, empty when there is nothing to tell."""

    kind: ClassVar[str] = "audited"
    findings: list[str]


_KINDS: dict[str, type[Event]] = {cls.kind: cls for cls in Event.__subclasses__() if cls.kind}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place in the log."""

    number: int
    time: float  # seconds since 1970
    event: Event

    def to_json(self) -> dict[str, Any]:
        """The object of one line."""
        values = {name: getattr(self.event, name) for name in (f.name for f in fields(self.event))}  # type: ignore[arg-type]
        if isinstance(self.event, Said | Replied):
            values["message"] = self.event.message.to_openai()
        return {"number": self.number, "time": self.time, "kind": self.event.kind, **values}

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Read one line's object. Raises UsageError for what is no event."""
        try:
            values = dict(raw)
            number, moment, kind = values.pop("number"), values.pop("time"), values.pop("kind")
            if "message" in values:
                values["message"] = Message.from_openai(values["message"])
            return cls(number, moment, _KINDS[kind](**values))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this is no event of an agent's log ({error!r}): {str(raw)[:200]}") from error


Listener = Callable[[Entry], None]


class EventLog:
    """The log of one run, opened for writing. Whoever subscribes hears of every event as it is written.

    Attributes:
        entries: all of them, in order.
    """

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        """Open or go on with a log; a last line that was never finished is cut off.

        Raises:
            UsageError: the file holds something else.
            GLM5Error: another process is writing it, or it cannot be written.
        """
        self.path = path
        self.entries: list[Entry] = read_log(path) if path.exists() else []
        self._listener = listener
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIOWrapper = path.open("a", encoding="utf-8", errors="surrogatepass")
            _lock(self._file, path)
            self._file.truncate(_whole_bytes(path))
        except OSError as error:
            raise GLM5Error(f"the log {path} cannot be written: {error}") from error

    def append(self, event: Event) -> Entry:
        """Write an event. It is in the file when this returns, so the death of this process does not lose it."""
        entry = Entry(len(self.entries), round(time.time(), 3), event)
        self._file.write(json.dumps(entry.to_json(), ensure_ascii=False) + "\n")
        self._file.flush()
        self.entries.append(entry)
        if self._listener is not None:
            self._listener(entry)
        return entry

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[Entry]:
    """All whole lines of a log.

    Raises:
        UsageError: there is no such file, or a line is no event.
    """
    try:
        lines = path.read_bytes()[: _whole_bytes(path)].decode("utf-8", "surrogatepass").split("\n")[:-1]
    except OSError as error:
        raise UsageError(f"the log {path} cannot be read: {error.strerror}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(Entry.from_json(json.loads(line)))
        except (ValueError, UsageError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    return entries


def _whole_bytes(path: Path) -> int:
    """The length of a file up to its last line break."""
    return path.read_bytes().rfind(b"\n") + 1


def _lock(file: TextIOWrapper, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise GLM5Error(f"another process is writing {path}; end it, or begin a run of its own") from error
