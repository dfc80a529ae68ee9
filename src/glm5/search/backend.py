"""What can be searched and opened: a folder's index, the live web, or anything else with these two methods.

    query ──> search ──> hits, each with an address and a piece of its text
    address ──> open ──> the page as plain text

Two things can go wrong, and they are not the same. A page that cannot be read is news for whoever asked for it: a
`PageError`, whose text an agent may be shown. A backend that does not answer is nobody's finding: a `BackendError`,
after which a rollout is excluded from training rather than counted as a zero.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from glm5.errors import GLM5Error

SNIPPET = 320  # characters of a hit's text


class PageError(GLM5Error):
    """This page cannot be read: it is gone, too large, no text, blocked, or sends its reader in a circle."""


class BackendError(GLM5Error):
    """The backend does not work: it cannot be reached, refuses the key, or answers with something unreadable."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search: `address` is what `open` takes, `snippet` a piece of the text."""

    address: str
    title: str
    snippet: str


@dataclass(frozen=True, slots=True)
class Page:
    """A document as plain text."""

    address: str
    title: str
    text: str


class Backend(Protocol):
    """All that an agent knows of the world's documents."""

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Up to `limit` hits, best first; none is an answer too.

        Raises:
            BackendError: the backend does not work.
        """

    async def open(self, address: str) -> Page:
        """The page at an address, whether or not a search has shown it.

        Raises:
            PageError: this page cannot be read.
            BackendError: the backend does not work.
        """

    async def close(self) -> None:
        """Give back connections and files."""


def snippet(text: str, terms: set[str]) -> str:
    """The `SNIPPET` characters of a text, cut at words, in which most of the different `terms` (lower case) occur."""
    words = list(re.finditer(r"\S+", text))
    best, best_start, first = -1, 0, 0
    inside: dict[str, int] = {}
    matched = [terms.intersection(re.findall(r"\w+", word[0].lower())) for word in words]
    for last, word in enumerate(words):
        for term in matched[last]:
            inside[term] = inside.get(term, 0) + 1
        while word.end() - words[first].start() > SNIPPET and first < last:
            for term in matched[first]:
                inside[term] -= 1
                if not inside[term]:
                    del inside[term]
            first += 1
        if len(inside) > best:
            best, best_start = len(inside), words[first].start()
    cut = " ".join(text[best_start : best_start + SNIPPET].split())
    return ("… " if best_start else "") + cut + (" …" if best_start + SNIPPET < len(text) else "")
