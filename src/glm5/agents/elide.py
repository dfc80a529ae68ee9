"""Big outputs shortened in the middle, with a handle under which the whole stays readable.

Not only single sizes are bounded: the results of one step share a budget, because several medium ones overflow a
context together just as well.
"""

from dataclasses import dataclass
from pathlib import Path

from glm5.errors import UsageError


@dataclass(frozen=True, slots=True)
class Shortened:
    """What the model is shown of an output, and the handle of the whole if that is more."""

    text: str
    handle: str = ""


class Outputs:
    """The whole outputs of a run, one file each in its folder."""

    def __init__(self, folder: Path, longest: int = 12_000, step_budget: int = 30_000) -> None:
        """
        Args:
            folder: made when first needed.
            longest: characters of one result that the model is shown.
            step_budget: characters of all results of one step together.
        """
        self._folder = folder
        self._longest = longest
        self._step_budget = step_budget
        self._left = step_budget

    def begin_step(self) -> None:
        """The next results share a new budget."""
        self._left = self._step_budget

    def shorten(self, text: str) -> Shortened:
        """Head and tail of a text that is too long for the model, all of one that is not."""
        room = max(min(self._longest, self._left), 400)  # even the last of many says something
        self._left -= min(len(text), room)
        if len(text) <= room:
            return Shortened(text)
        handle = self._keep(text)
        half = room // 2
        notice = (
            f"\n[{len(text) - 2 * half} of {len(text)} characters left out; "
            f'to see more: read(path="{handle}", first_line=…)]\n'
        )
        return Shortened(text[:half] + notice + text[-half:], handle)

    def read(self, handle: str) -> str:
        """The whole output. Raises UsageError for a handle that nothing was kept under."""
        path = self._folder / f"{handle.removeprefix('output:')}.txt"
        if not handle.removeprefix("output:").isdecimal() or not path.exists():
            raise UsageError(f"there is no {handle}")
        return path.read_text("utf-8", "surrogatepass")

    def _keep(self, text: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.stem) for path in self._folder.glob("*.txt")), default=0)
        (self._folder / f"{number}.txt").write_text(text, "utf-8", "surrogatepass")
        return f"output:{number}"
