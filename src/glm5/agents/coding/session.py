"""A session: one task on one tree, from the first word to the audit, in a folder of its own that can be gone on with.

<state>/code/<name>/
  events.jsonl    everything that happened
  outputs/        results that were too long for the model
  shadow.git/     the tree at every step

async with open_session(settings, endpoint) as session:
    ending = await session.run()
"""

import os
import re
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template

from glm5.agents.coding.resume import check_same, close_open_calls, recall, settle
from glm5.agents.coding.thinking import Thinking, thinking_rule
from glm5.agents.context import KINDS, Kind, context_manager
from glm5.agents.elide import Outputs
from glm5.agents.endpoint import Endpoint
from glm5.agents.events import (
    Audited,
    EventLog,
    Listener,
    Reverted,
    Rewound,
    Said,
    Saved,
    Started,
)
from glm5.agents.guard.audit import audit, git_findings, git_state
from glm5.agents.guard.gate import Guard
from glm5.agents.guard.memory import Memory
from glm5.agents.guard.policy import MODES, Mode, Policy
from glm5.agents.guard.shadow import Shadow
from glm5.agents.limits import Budget, Limits, Prices, packaged
from glm5.agents.loop import Agent
from glm5.agents.outcomes import Ending
from glm5.agents.person import Person
from glm5.agents.tools import coding_tools
from glm5.agents.tools.base import AgentTool, Desk
from glm5.agents.tools.mcp import open_servers
from glm5.agents.tools.shell import Background
from glm5.agents.workspace import Place, Workspace, open_workspace
from glm5.errors import UsageError
from glm5.text.messages import Message

LOG = "events.jsonl"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session is asked for.

    Attributes:
        folder: where the session keeps its log; an existing one goes on.
        scope: globs of what the task is about; the audit lists changes outside. Empty: all of the tree.
        test_command: what shows success; "" leaves the choice to the model.
        mcp: MCP servers, each as `name=command`.
        memory: where what failed in this project is remembered; None remembers nothing.
    """

    root: Path
    task: str
    folder: Path
    mode: Mode = "auto"
    model: str = ""
    test_command: str = ""
    scope: tuple[str, ...] = ()
    policy: Path | None = None
    show: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits.default)
    prices: Prices = field(default_factory=Prices)
    context: Kind = "hybrid"
    threshold: int | None = None
    thinking: Thinking = "model"
    mcp: tuple[str, ...] = ()
    memory: Path | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be a session."""
        if self.mode not in MODES:
            raise UsageError(f"there is no mode {self.mode!r}; the modes are {', '.join(MODES)}")
        if self.context not in KINDS:
            raise UsageError(f"there is no context manager {self.context!r}; known are {', '.join(KINDS)}")
        if not self.task.strip() and not (self.folder / LOG).exists():
            raise UsageError("the task is empty; say what is to be done")
        if self.folder.resolve().is_relative_to(self.root.resolve()):
            raise UsageError(
                f"the session's folder {self.folder} must not lie in the project, whose agent may change it"
            )


def state_folder() -> Path:
    """Where sessions are kept, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "glm5"


def new_folder(task: str) -> Path:
    """A name for a session: when it began, and the first words of its task."""
    words = "-".join(re.findall(r"[a-z0-9]+", task.lower())[:5]) or "task"
    return state_folder() / "code" / f"{time.strftime('%Y%m%d-%H%M%S')}-{words[:40]}"


@asynccontextmanager
async def open_session(
    settings: SessionSettings,
    endpoint: Endpoint,
    person: Person | None = None,
    listener: Listener | None = None,
    parent: Budget | None = None,
) -> "AsyncIterator[Session]":
    """Begin a session, or go on with the one in its folder.

    Raises:
        UsageError: the settings, the policy or the log are wrong.
        GLM5Error: the session is open elsewhere, git is missing, the sandbox cannot start.
    """
    policy = Policy(settings.policy)
    place = Place(settings.root, settings.mode != "full", settings.mode != "read-only", settings.show)
    log = EventLog(settings.folder / LOG, listener)
    try:
        shadow = Shadow(settings.root.resolve(), settings.folder / "shadow.git")
        async with open_workspace(place) as workspace, open_servers(settings.mcp) as mcp:
            session = Session(settings, endpoint, person, parent, log, shadow, workspace, policy, tuple(mcp))
            try:
                yield session
            finally:
                await session.background.stop_all()
    finally:
        log.close()


class Session:
    """See `open_session`, which makes it.

    Attributes:
        agent: the loop.
        budget: what may be spent, and what was.
        guard: what may be done, and what was denied.
        findings: of the last audit.
    """

    def __init__(
        self,
        settings: SessionSettings,
        endpoint: Endpoint,
        person: Person | None,
        parent: Budget | None,
        log: EventLog,
        shadow: Shadow,
        workspace: Workspace,
        policy: Policy,
        extra_tools: tuple[AgentTool, ...],
    ) -> None:
        self.settings, self.log, self.shadow = settings, log, shadow
        self.guard = Guard(settings.mode, policy, workspace.root, shadow, shadow.current)
        self.budget = Budget(settings.limits, settings.prices, parent)
        self.findings: list[str] = []
        self.memory = Memory(settings.memory, workspace.root)
        tool_limits = packaged("tool")
        outputs = Outputs(settings.folder / "outputs", tool_limits["characters"], tool_limits["step_characters"])
        self.desk = Desk(workspace, outputs, lambda: shadow.current, self.changed, test_command=settings.test_command)
        tools = [*coding_tools(), *extra_tools]
        self.guard.foreign = frozenset(tool.spec.name for tool in extra_tools if tool.writes)
        self.background = next(tool for tool in tools if isinstance(tool, Background))
        goes_on = any(isinstance(entry.event, Said) and entry.event.by == "person" for entry in log.entries)
        if log.entries:
            self.guard.baseline = check_same(log, workspace.root).snapshot
        if goes_on:
            expected = recall(log.entries, self.guard, self.budget, self.desk)
            settle(log, self.guard, shadow, expected, repeat=not settings.task)
        else:
            self._introduce()
        self.agent = Agent(
            endpoint, tools, self.desk, log, self.guard, self.budget,
            context_manager(settings.context, endpoint, settings.threshold), person,
            thinking_rule(settings.thinking), self.memory.recollect,
        )  # fmt: skip
        if settings.task and goes_on:
            self.say(settings.task)

    def changed(self) -> list[str]:
        """Files that differ from how the tree was found."""
        return self.shadow.changes(self.guard.baseline, self.shadow.current)

    def patch(self) -> str:
        """All changes of the session as one patch."""
        return self.shadow.patch(self.guard.baseline, self.shadow.current)

    def say(self, text: str) -> None:
        """A person's words, before the next turn; a call that was cut off is answered as interrupted first."""
        for entry in close_open_calls(self.log):
            self.agent.view.apply(entry)
        self.agent.view.apply(self.log.append(Said(Message("user", text), "person")))

    def undo(self) -> list[str]:
        """Take back the last change of files; what changed by that. The conversation stays, and is told."""
        saved = [e.event for e in self.log.entries if isinstance(e.event, Saved | Reverted)]
        states = [self.guard.baseline, *(event.snapshot for event in saved)]
        before = next((state for state in reversed(states) if state != self.shadow.current), None)
        if before is None:
            return []
        undone = self._set_back(before, "the person took the last change back")
        self.say("I took your last change of files back.")
        return undone

    def rewind(self, number: int) -> list[str]:
        """Go back to an event: files and conversation. Raises UsageError for a number that is not in the log."""
        if not 0 <= number < len(self.log.entries):
            raise UsageError(f"there is no event {number}; the log has events 0 to {len(self.log.entries) - 1}")
        earlier = [e.event for e in self.log.entries[: number + 1] if isinstance(e.event, Saved | Reverted)]
        undone = self._set_back(earlier[-1].snapshot if earlier else self.guard.baseline, f"back to event {number}")
        self.agent.view.apply(self.log.append(Rewound(number)))
        return undone

    def _set_back(self, snapshot: str, reason: str) -> list[str]:
        replaced = self.shadow.current
        undone = self.shadow.restore(snapshot)
        self.log.append(Reverted(snapshot, replaced, undone, reason))
        return undone

    async def run(self) -> Ending:
        """Work to an ending, stop what was left running, and audit."""
        ending = await self.agent.run()
        left = await self.background.stop_all()
        self.findings = audit(self.log.entries, self.guard, self.settings.scope, self.changed(), left)
        self.findings += git_findings(self.log.entries, self.guard.root)
        self.log.append(Audited(self.findings))
        self.memory.record(self.log.entries, ending)
        return ending

    def _introduce(self) -> None:
        """The first events; those that are missing, if a process died between them."""
        settings = self.settings
        words = tomllib.loads((files("glm5.agents") / "prompts" / "modes.toml").read_text("utf-8"))
        extra = [f"- The command that shows success: {settings.test_command}"] if settings.test_command else []
        extra += (
            [f"- The task is about: {', '.join(settings.scope)}. Leave other files alone."] if settings.scope else []
        )
        extra += [f"- What failed here before: {line}" for line in self.memory.lines()]
        template = Template((files("glm5.agents") / "prompts" / "system.txt").read_text("utf-8"))
        system = template.substitute(
            root=self.guard.root, mode=settings.mode, mode_words=words[settings.mode], extra="\n".join(extra)
        )
        if not self.log.entries:
            event = Started(
                settings.task, str(self.guard.root), settings.mode, settings.model, self.shadow.current,
                list(settings.scope), git_state(self.guard.root),
            )  # fmt: skip
            self.log.append(event)
        if len(self.log.entries) == 1:
            self.log.append(Said(Message("system", system.strip()), "system"))
        task = settings.task or check_same(self.log, self.guard.root).task
        self.log.append(Said(Message("user", task), "person"))
