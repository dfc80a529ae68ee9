"""The faces: a terminal where a person watches and decides, and a headless run for scripts and CI.

y  yes, once      a  yes, and do not ask again about the very same command      n  no      words  no, and why
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rich.console import Console

from glm5.agents.coding.session import Session, SessionSettings, open_session
from glm5.agents.coding.show import blocks, call_blocks, status_line
from glm5.agents.coding.thinking import thinking_rule
from glm5.agents.endpoint import Endpoint
from glm5.agents.events import Entry, Listener, Replied
from glm5.agents.guard.gate import Verdict
from glm5.agents.outcomes import Ending, Status
from glm5.agents.person import Answer
from glm5.text.messages import ToolCall

HELP = """\
  words           go on with this
  /diff           all changes so far
  /undo           take back the last step that changed files
  /rewind N       back to event N: files and conversation
  /think on|off|auto|model
  /status         tokens, cache, context
  /quit           leave; the session can be opened again"""


class PersonAtTerminal:
    """Asks with single letters, and remembers what was allowed for good."""

    def __init__(self, console: Console, ask: Callable[[str], str] = input) -> None:
        self._console, self._ask = console, ask
        self._allowed: set[str] = set()

    async def approve(self, call: ToolCall, verdict: Verdict) -> Answer:
        """Show the call and why it is asked about, and wait for an answer."""
        signature = json.dumps([call.name, call.arguments], sort_keys=True)
        if signature in self._allowed:
            return Answer(True)
        for block in call_blocks(call):
            self._console.print(block)
        self._console.print(f"  {verdict.reason}", style="yellow", markup=False)
        answer = (await self._read("  run it? [y]es, [a]lways, [n]o, or words: ")).strip()
        if answer.lower() in ("a", "always"):
            self._allowed.add(signature)
        if answer.lower() in ("y", "yes", "a", "always"):
            return Answer(True)
        return Answer(False, "" if answer.lower() in ("n", "no", "") else f"The person says: {answer}")

    async def advise(self, trouble: str) -> str:
        """Ask what to do about a model that goes round in circles."""
        self._console.print(f"  going round in circles: {trouble}", style="magenta", markup=False)
        return (await self._read("  what should it do? (nothing: stop) ")).strip()

    async def _read(self, prompt: str) -> str:
        try:
            return await asyncio.to_thread(self._ask, prompt)
        except EOFError:
            return ""


class LiveText:
    """What the model writes, as it comes: its words as they are, its thoughts as a count of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._thought = 0
        self._spoke = False

    def __call__(self, kind: str, text: str) -> None:
        """A piece of an answer (see `streaming.DeltaListener`)."""
        if kind == "reasoning":
            self._thought += len(text)
            self._console.print(f"\r  thinking… {self._thought:,} characters", style="dim", end="", highlight=False)
        elif kind == "content":
            if not self._spoke:
                self._console.print()
            self._spoke = True
            self._console.print(text, end="", markup=False, highlight=False)
        elif kind == "again":
            self._console.print("\n  the answer broke off; asking again", style="dim")

    def took_over(self) -> bool:
        """Whether the words of the turn that just ended were shown already; begins a new turn."""
        spoke, thought = self._spoke, self._thought
        self._spoke, self._thought = False, 0
        if spoke or thought:
            self._console.print()
        return spoke


async def headless(
    settings: SessionSettings, endpoint: Endpoint, listener: Listener | None
) -> tuple[Ending, list[str]]:
    """One task from beginning to end, with nobody to ask. The ending, and the findings of the audit."""
    async with open_session(settings, endpoint, None, listener) as session:
        ending = await session.run()
        return ending, session.findings


def print_event(entry: Entry) -> None:
    """One JSON line on standard output."""
    print(json.dumps(entry.to_json()), flush=True)


async def interactive(
    settings: SessionSettings,
    endpoint: Endpoint,
    console: Console,
    ask: Callable[[str], str] = input,
    live: "LiveText | None" = None,
) -> Ending | None:
    """Tasks one after the other in one session, until the person leaves; the last ending.

    Args:
        live: shows the model's words while they come, so that they are not shown again.
    """
    person = PersonAtTerminal(console, ask)
    words = settings.task or await asyncio.to_thread(ask, "what is to be done? ")

    def show(entry: Entry) -> None:
        if isinstance(entry.event, Replied) and live is not None and live.took_over():
            entry = replace(entry, event=replace(entry.event, message=replace(entry.event.message, content="")))
        for block in blocks(entry):
            console.print(block)

    async with open_session(replace(settings, task=words), endpoint, person, show) as session:
        while True:
            ending = await _work(session)
            line = status_line(session.budget, session.agent.view.tokens, settings.threshold)
            console.print(f"  {line}", style="dim", markup=False, highlight=False)
            while (words := await _next_words(session, console, ask)).startswith("/"):
                if words == "/quit":
                    return ending
                _command(words, session, console)
            session.say(words)


async def _work(session: Session) -> Ending:
    """Run until there is an ending; Ctrl-C ends the turn, not the session."""
    try:
        return await session.run()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return Ending(Status.INTERRUPTED, "interrupted")


async def _next_words(session: Session, console: Console, ask: Callable[[str], str]) -> str:
    with suppress(EOFError):
        while True:
            words = (await asyncio.to_thread(ask, "\n> ")).strip()
            if words:
                return words
            console.print(HELP, style="dim", markup=False)
    return "/quit"


def _command(words: str, session: Session, console: Console) -> None:
    name, _, rest = words.partition(" ")
    if name == "/diff":
        console.print(session.patch() or "nothing has changed", markup=False)
    elif name == "/undo":
        console.print("\n".join(session.undo()) or "there is nothing to undo", markup=False)
    elif name == "/rewind" and rest.strip().isdecimal():
        console.print("\n".join(session.rewind(int(rest))) or "no file changed", markup=False)
    elif name == "/think" and rest.strip() in ("on", "off", "auto", "model"):
        session.agent.thinking = thinking_rule(rest.strip())  # type: ignore[arg-type]
    elif name == "/status":
        console.print(status_line(session.budget, session.agent.view.tokens, session.settings.threshold))
    else:
        console.print(HELP, style="dim", markup=False)
