"""Going round in circles: noticed early, told once, asked about, and only then stopped.

    nudge ──> ask a person ──> stop

What counts is the call together with its result, so waiting for something that still changes is no circle. Calls that
declare themselves as waiting never count.
"""

import json
import zlib
from collections import deque

from glm5.agents.limits import packaged
from glm5.agents.outcomes import Result
from glm5.text.messages import Message, ToolCall

# Output that differs in every run without meaning anything would hide a circle.
_WINDOW = 12


class StuckDetector:
    """Looks at turns as they come; `circle` says what is wrong, or nothing."""

    def __init__(self) -> None:
        self._limits = packaged("stuck")
        self._pairs: deque[tuple[str, str]] = deque(maxlen=_WINDOW)
        self._monologue = 0
        self._malformed = 0
        self._degenerate = False

    def saw_turn(self, message: Message, malformed: bool) -> None:
        """A turn of the model."""
        self._degenerate = is_degenerate(message.content) or is_degenerate(message.reasoning_content or "")
        self._malformed = self._malformed + 1 if malformed else 0
        self._monologue = 0 if message.tool_calls else self._monologue + 1

    def saw_result(self, call: ToolCall, result: Result, waiting: bool) -> None:
        """The result of a call."""
        if not waiting:
            signature = json.dumps([call.name, call.arguments], sort_keys=True)
            self._pairs.append((signature, result.text))

    def circle(self) -> str:
        """What goes round in circles, in words for the model; "" while all is well."""
        pairs = list(self._pairs)
        same, turns = self._limits["same_result"], self._limits["alternation"]
        if self._degenerate:
            return "your last message repeats itself"
        if self._malformed >= self._limits["malformed"]:
            return f"your last {self._malformed} messages held calls that could not be read"
        if self._monologue >= self._limits["monologue"]:
            return f"your last {self._monologue} messages made no call"
        if len(pairs) >= same and len(set(pairs[-same:])) == 1:
            return f"the same call gave the same result {same} times"
        if len(pairs) >= turns and len(set(pairs[-turns:])) == 2 and pairs[-turns:-2] == pairs[-turns + 2 :]:
            return f"two calls have taken turns {turns // 2} times with the same results"
        return ""

    def forget(self) -> None:
        """Start looking anew, after somebody was told."""
        self._pairs.clear()
        self._monologue = self._malformed = 0
        self._degenerate = False


def is_degenerate(text: str) -> bool:
    """Whether a text is mostly one thing said again and again, which compresses as no meaningful text does."""
    limits = packaged("stuck")
    if len(text) < limits["degenerate_characters"]:
        return False
    tail = text[-4 * limits["degenerate_characters"] :].encode("utf-8", "replace")
    return len(tail) / len(zlib.compress(tail, 6)) > limits["degenerate_ratio"]
