"""The search agent: the loop of `glm5.agents` with a backend to search, and an answer that has to be found.

    question ──> [search · open · find · python · notes]* ──> answer ──> Found(answer, sources, counts)

The tree that the loop looks after is an empty temporary folder, which `python` can read but not write.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from glm5.agents.context import Kind, context_manager
from glm5.agents.elide import Outputs
from glm5.agents.endpoint import Endpoint
from glm5.agents.events import EventLog, Listener, Said, Started
from glm5.agents.guard.gate import Guard
from glm5.agents.guard.policy import Policy
from glm5.agents.limits import Budget, Limits, packaged
from glm5.agents.loop import Agent
from glm5.agents.outcomes import Ending
from glm5.agents.tools.base import Desk
from glm5.agents.workspace import Place, Workspace, open_workspace
from glm5.errors import UsageError
from glm5.search.backend import Backend
from glm5.search.reading import ReadingRoom
from glm5.search.tools import search_tools
from glm5.text.messages import Message


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How a question is worked on.

    Attributes:
        threshold: tokens at which the context manager drops the history; None for the packaged number.
        notebook: whether there is one that survives this.
    """

    context: Kind = "hybrid"
    threshold: int | None = None
    notebook: bool = True
    limits: Limits = field(default_factory=Limits.default)


@dataclass(frozen=True, slots=True)
class Found:
    """What came out.

    Attributes:
        ending: its summary is the final message, where there is one.
        opened: addresses of the pages that were opened, in order.
    """

    ending: Ending
    opened: tuple[str, ...]
    searches: int
    budget: Budget


async def answer_question(
    question: str,
    endpoint: Endpoint,
    backend: Backend,
    log: Path,
    settings: SearchSettings | None = None,
    listener: Listener | None = None,
    parent: Budget | None = None,
) -> Found:
    """Work on a question to an ending; every event goes to the file `log`.

    An endpoint or a backend that does not work is an ending too, `Status.ENDPOINT_FAILED`: nobody learns from it.

    Raises:
        UsageError: the question is empty, or the log exists already.
        SandboxError: the sandbox cannot start.
    """
    settings = settings or SearchSettings()
    if not question.strip():
        raise UsageError("the question is empty")
    if log.exists():
        raise UsageError(f"{log} exists already: a log holds one question")
    room = ReadingRoom(backend)
    budget = Budget(settings.limits, parent=parent)
    events = EventLog(log, listener)
    try:
        async with _empty_workspace() as workspace:
            events.append(Started(question, str(workspace.root), "auto", ""))
            system = (files("glm5.search") / "prompts" / "system.txt").read_text("utf-8")
            events.append(Said(Message("system", system), "system"))
            events.append(Said(Message("user", question), "person"))
            shown = packaged("tool")
            outputs = Outputs(log.parent / "outputs", shown["characters"], shown["step_characters"])
            agent = Agent(
                endpoint, search_tools(room, settings.notebook), Desk(workspace, outputs), events,
                Guard("auto", Policy(None), workspace.root), budget,
                context_manager(settings.context, endpoint, settings.threshold),
            )  # fmt: skip
            ending = await agent.run()
    finally:
        events.close()
    return Found(ending, tuple(room.pages), room.searches, budget)


@asynccontextmanager
async def _empty_workspace() -> AsyncIterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="glm5-search-") as folder:
        Path(folder).chmod(0o755)  # the sandbox's user is another one where this runs as root
        async with open_workspace(Place(Path(folder), writable=False)) as workspace:
            yield workspace
