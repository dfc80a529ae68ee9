"""Stop strings: the answer ends before the first of them, and no part of one is ever shown."""

from collections.abc import Sequence


class StopText:
    """Passes text on, except a tail that may be the beginning of a stop string.

    Attributes:
        matched: the stop string that was found; nothing is passed on after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for any of `stops`, of which none is empty."""
        self.matched: str | None = None
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text; returns what may be shown."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            end, self.matched = found
            self._held = ""
            return text[:end]
        end = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """The tail that was held back, when no more text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
