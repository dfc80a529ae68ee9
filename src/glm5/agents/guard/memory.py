"""What failed in a project before, kept between runs, so that the same approach is not tried unawares again.

One file of JSON lines for each project. A run that was not verified leaves its task, how it ended, and fingerprints
of the edits it made. The next run is told; and when it is about to make the very same edit, it is reminded once.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from glm5.agents.events import Entry, Replied
from glm5.agents.outcomes import Ending, Status
from glm5.text.messages import ToolCall

_SHOWN = 5
_FAILURES = (Status.UNVERIFIED, Status.GAVE_UP, Status.STUCK, Status.STEP_LIMIT, Status.TOKEN_LIMIT, Status.TIME_LIMIT)


class Memory:
    """The failures of one project."""

    def __init__(self, folder: Path | None, root: Path) -> None:
        """Without a folder, nothing is remembered."""
        name = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._path = None if folder is None else folder / f"{name}.jsonl"
        known = self._path is not None and self._path.exists()
        lines = self._path.read_text("utf-8").splitlines() if known and self._path is not None else []
        self._failures = [json.loads(line) for line in lines]
        self._reminded: set[str] = set()

    def lines(self) -> list[str]:
        """The latest failures, a sentence each."""
        return [
            f"on {failure['date']}, {failure['task'][:200]!r} ended as {failure['status']}: {failure['why'][:300]}"
            for failure in self._failures[-_SHOWN:]
        ]

    def recollect(self, call: ToolCall) -> str:
        """What to consider before an edit that an earlier, failed run made as well; said once."""
        mark = _fingerprint(call)
        failure = next((failure for failure in reversed(self._failures) if mark in failure["edits"]), None)
        if not mark or failure is None or mark in self._reminded:
            return ""
        self._reminded.add(mark)
        return (
            f"Nothing was changed yet: the very same edit was made on {failure['date']}, in a run that ended as "
            f"{failure['status']} ({failure['why'][:300]}). If it is still right, make the call again."
        )

    def record(self, entries: Sequence[Entry], ending: Ending) -> None:
        """Remember a run that failed."""
        if self._path is None or ending.status not in _FAILURES:
            return
        task = next((getattr(entry.event, "task", "") for entry in entries), "")
        calls = [call for e in entries if isinstance(e.event, Replied) for call in e.event.message.tool_calls]
        edits = sorted({mark for call in calls if (mark := _fingerprint(call))})
        why = ending.evidence or ending.summary
        failure = {"date": time.strftime("%Y-%m-%d"), "task": task, "status": ending.status, "why": why, "edits": edits}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(failure, ensure_ascii=True) + "\n")


def _fingerprint(call: ToolCall) -> str:
    if call.name not in ("edit", "write"):
        return ""
    return hashlib.sha256(json.dumps([call.name, call.arguments], sort_keys=True).encode()).hexdigest()[:16]
