"""The tools of the search agent: search, open, find, python, notes and answer. Their words are `prompts/tools.toml`.

What pages say is shown between marks as somebody's text. Nothing in it is followed by the harness, and the system
prompt tells the model to do the same.
"""

import shlex
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from glm5.agents.limits import packaged
from glm5.agents.outcomes import Ending, Result, Status
from glm5.agents.tools.base import AgentTool, Desk
from glm5.agents.tools.shell import as_result
from glm5.errors import UsageError
from glm5.search.backend import BackendError, PageError
from glm5.search.matching import is_refusal
from glm5.search.reading import OpenPage, ReadingRoom, find, window
from glm5.search.reply import citations_in
from glm5.text.messages import Tool

RESULTS = 8  # of one search
_PAGE = "{title} ({address}), passages {numbers} of {total}\n<page>\n{text}\n</page>"


class SearchTool:
    """Base of these tools: finds its words by its name, and ends the run where the backend does not work."""

    name = ""
    writes = False

    def __init__(self, room: ReadingRoom) -> None:
        self._room = room

    @property
    def spec(self) -> Tool:
        """From `prompts/tools.toml`."""
        return _specs()[self.name]

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Act. What is wrong with a call or a page is told to the model; a dead backend is not its fault."""
        try:
            return await self.act(arguments, desk)
        except BackendError as error:
            return Result(str(error), "failed", ending=Ending(Status.ENDPOINT_FAILED, str(error)))

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """What the tool does."""
        raise NotImplementedError

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """No."""
        return False


class Search(SearchTool):
    """Addresses for words."""

    name = "search"

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Up to `RESULTS` hits; that there are none is said."""
        if not arguments["query"].strip():
            raise UsageError("search needs words to look for")
        hits = await self._room.backend.search(arguments["query"], RESULTS)
        self._room.searches += 1
        if not hits:
            return Result("no results; try other words")
        lines = [f"{n}. {hit.title} ({hit.address})\n   {hit.snippet}" for n, hit in enumerate(hits, start=1)]
        return Result("\n".join(lines))


class Open(SearchTool):
    """A page, passage by passage."""

    name = "open"

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """A window of passages."""
        opened = await self._room.page(arguments["address"])
        if not opened.passages:
            raise PageError(f"{arguments['address']} holds no text")
        return Result(_shown(opened, window(opened, arguments.get("passage", 1))))


class Find(SearchTool):
    """Where words stand on a page."""

    name = "find"

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """The passages that hold all the words."""
        opened = await self._room.page(arguments["address"])
        numbers = find(opened, arguments["words"])
        if not numbers:
            return Result(f"no passage of {arguments['address']} holds all of: {arguments['words']}")
        return Result(_shown(opened, numbers))


class Python(SearchTool):
    """A program in the sandbox."""

    name = "python"
    writes = True

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Run it; what it prints is the result."""
        seconds = packaged("tool")["seconds"]
        return as_result(await desk.workspace.run(f"python3 -c {shlex.quote(arguments['code'])}", seconds), seconds)


class Notes(SearchTool):
    """The evidence notebook, which a restart of the context does not erase."""

    name = "notes"

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Add an entry; citations in it must hold."""
        text = arguments["text"].strip()
        if not text:
            raise UsageError("notes needs something to write down")
        if doubts := [doubt for citation in citations_in(text) if (doubt := self._room.doubt(citation))]:
            raise UsageError(f"not written down: {'; '.join(doubts)}")
        desk.plan = f"{desk.plan}\n- {text}".strip()
        return Result("written down")


class Answer(SearchTool):
    """The last call of a run."""

    name = "answer"

    async def act(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """End the run. The answer is verified if a cited passage that was read holds it word for word."""
        explanation, exact = arguments["explanation"].strip(), arguments["exact_answer"].strip()
        confidence = arguments["confidence"]
        if not 0 <= confidence <= 100:
            raise UsageError(f"confidence is from 0 to 100, not {confidence}")
        summary = f"Explanation: {explanation}\nExact Answer: {exact}\nConfidence: {confidence:g}%"
        if not exact or is_refusal(exact):
            return Result("recorded: no answer", ending=Ending(Status.GAVE_UP, summary))
        citations = citations_in(explanation)
        doubts = [doubt for citation in citations if (doubt := self._room.doubt(citation))]
        if doubts:
            raise UsageError(f"{'; '.join(doubts)}. Cite only passages that you have read, as [address:number].")
        holding = [citation for citation in citations if self._room.supports(citation, exact)]
        status = Status.VERIFIED if holding else Status.UNVERIFIED
        evidence = ", ".join(holding) or "no cited passage holds the answer word for word"
        return Result(f"recorded as {status}: {evidence}", ending=Ending(status, summary, evidence))


def search_tools(room: ReadingRoom, notebook: bool) -> list[AgentTool]:
    """All of them, the notebook if wanted."""
    return [Search(room), Open(room), Find(room), Python(room), *([Notes(room)] if notebook else []), Answer(room)]


def _shown(opened: OpenPage, numbers: list[int]) -> str:
    listed = f"{numbers[0]}-{numbers[-1]}" if numbers == list(range(numbers[0], numbers[-1] + 1)) else str(numbers)
    return _PAGE.format(
        title=opened.page.title, address=opened.page.address, numbers=listed, total=len(opened.passages),
        text=opened.show(numbers).replace("</page>", "< /page>"),  # a page cannot end its own frame
    )  # fmt: skip


@cache
def _specs() -> dict[str, Tool]:
    raw = tomllib.loads((files("glm5.search") / "prompts" / "tools.toml").read_text("utf-8"))
    specs = {}
    for name, words in raw.items():
        properties = {key: dict(value) for key, value in words["arguments"].items()}
        required = [key for key, value in properties.items() if not value.pop("optional", False)]
        parameters = {"type": "object", "properties": properties, "required": required}
        specs[name] = Tool(name, words["description"].strip(), parameters)
    return specs
