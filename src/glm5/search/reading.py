"""Pages cut into numbered passages, so that a citation can point at the words it rests on: `[address:12]`.

What has been opened is remembered with the numbers that were shown: a citation of anything else is an invention.
"""

import re
from dataclasses import dataclass, field

from glm5.errors import UsageError
from glm5.search.backend import Backend, Page
from glm5.search.normalise import normalise

PASSAGE = 500  # characters of a passage at most, unless one word is longer
WINDOW = 12  # passages shown at once

_CITATION = re.compile(r"(?P<address>.+?)(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?")


@dataclass(slots=True)
class OpenPage:
    """A page with its passages, and the numbers (from 1) of those that were shown."""

    page: Page
    passages: list[str]
    shown: set[int] = field(default_factory=set)

    def show(self, numbers: list[int]) -> str:
        """Passages for the model, each under its number."""
        self.shown.update(numbers)
        return "\n".join(f"[{number}] {self.passages[number - 1]}" for number in numbers)


class ReadingRoom:
    """Everything one run has opened, on top of a backend.

    Attributes:
        pages: by address, in the order of opening.
        searches: how many there were.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.pages: dict[str, OpenPage] = {}
        self.searches = 0

    async def page(self, address: str) -> OpenPage:
        """The page at an address, fetched once.

        Raises:
            PageError: this page cannot be read.
            BackendError: the backend does not work.
        """
        if address not in self.pages:
            page = await self.backend.open(address)
            self.pages[address] = OpenPage(page, cut(page.text))
        return self.pages[address]

    def doubt(self, citation: str) -> str:
        """Why a citation does not hold; "" where it points at passages that were shown."""
        found = _CITATION.fullmatch(citation)
        if citation in self.pages or found is None:
            return "" if citation in self.pages else f"[{citation}] is no citation"
        opened = self.pages.get(found["address"])
        if opened is None or found["first"] is None:
            return f"[{citation}] was never opened"
        numbers = range(int(found["first"]), int(found["last"] or found["first"]) + 1)
        return "" if numbers and set(numbers) <= opened.shown else f"[{citation}] points at passages that were not read"

    def supports(self, citation: str, answer: str) -> bool:
        """Whether the passages of a citation (the page, without numbers) hold an answer word for word."""
        found = _CITATION.fullmatch(citation)
        if found is None or self.doubt(citation):
            return False
        if citation in self.pages:
            text = self.pages[citation].page.text
        else:
            numbers = range(int(found["first"]), int(found["last"] or found["first"]) + 1)
            text = " ".join(self.pages[found["address"]].passages[number - 1] for number in numbers)
        return f" {normalise(answer)} " in f" {normalise(text)} "


def cut(text: str) -> list[str]:
    """Passages of at most `PASSAGE` characters: whole paragraphs where they fit, else cut between words."""
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\S)", text):
        words = paragraph.split()
        line: list[str] = []
        length = 0
        for word in words:
            if line and length + len(word) > PASSAGE:
                passages.append(" ".join(line))
                line, length = [], 0
            line.append(word)
            length += len(word) + 1
        if line:
            passages.append(" ".join(line))
    return passages


def window(opened: OpenPage, first: int) -> list[int]:
    """The numbers of the passages to show from `first` on. Raises UsageError for a number the page does not have."""
    if not 1 <= first <= len(opened.passages):
        raise UsageError(f"{opened.page.address} has passages 1 to {len(opened.passages)}, none with number {first}")
    return list(range(first, min(first + WINDOW, len(opened.passages) + 1)))


def find(opened: OpenPage, words: str) -> list[int]:
    """The numbers of the passages that hold all words, best match first in order of the page; at most `WINDOW`."""
    wanted = normalise(words).split()
    if not wanted:
        raise UsageError("find needs words to look for")
    forms = [f" {normalise(passage)} " for passage in opened.passages]
    whole = [n for n, form in enumerate(forms, start=1) if f" {' '.join(wanted)} " in form]
    every = [n for n, form in enumerate(forms, start=1) if all(f" {word}" in form for word in wanted)]
    return list(dict.fromkeys([*whole, *every]))[:WINDOW]
