"""Keeping a benchmark honest: pages that hold its canary stay closed, and an answer known beforehand is told.

A benchmark's questions and answers end up on pages of the web. Its authors put a canary, a string that occurs nowhere
else, beside them, so that such a page can be recognised.
"""

import re
from collections.abc import Sequence

from glm5.search.backend import Backend, Hit, Page, PageError
from glm5.text.messages import Message


class CanaryGuard:
    """A backend behind which pages and hits with a canary do not exist.

    Attributes:
        met: the addresses that were held back, to be told with the result.
    """

    def __init__(self, backend: Backend, canaries: Sequence[str]) -> None:
        """`canaries` are looked for as they are, in any case."""
        self._backend = backend
        self._pattern = re.compile("|".join(map(re.escape, canaries)) or r"(?!)", re.IGNORECASE)
        self.met: list[str] = []

    async def search(self, query: str, limit: int) -> list[Hit]:
        """See `Backend.search`."""
        clean = []
        for hit in await self._backend.search(query, limit):
            if self._pattern.search(f"{hit.title}\n{hit.snippet}"):
                self.met.append(hit.address)
            else:
                clean.append(hit)
        return clean

    async def open(self, address: str) -> Page:
        """See `Backend.open`."""
        page = await self._backend.open(address)
        if self._pattern.search(f"{page.title}\n{page.text}"):
            self.met.append(address)
            raise PageError(f"{address} holds a benchmark's canary and stays closed")
        return page

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._backend.close()


def answered_before_search(messages: Sequence[Message], answers: Sequence[str]) -> bool:
    """Whether the assistant wrote one of the answers before the first result of a tool came back.

    What it says then it did not find: it knew, guessed, or has seen the benchmark.
    """
    said = []
    for message in messages:
        if message.role == "tool":
            break
        if message.role == "assistant":
            calls = (str(value) for call in message.tool_calls for value in call.arguments.values())
            said += [message.content, message.reasoning_content or "", *calls]
    text = "\n".join(said)
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers)
