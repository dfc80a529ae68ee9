"""What `glm5 code` and `glm5 view` do, once the command line is read."""

import asyncio
import json
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from glm5.agents.coding.batch import Outcome, run_batch, table
from glm5.agents.coding.page import page
from glm5.agents.coding.scripted import Program
from glm5.agents.coding.session import LOG, SessionSettings
from glm5.agents.coding.show import show_log
from glm5.agents.coding.tasks import load_tasks
from glm5.agents.coding.terminal import LiveText, headless, interactive, print_event
from glm5.agents.endpoint import HttpEndpoint, ScriptedEndpoint
from glm5.agents.events import Entry, read_log
from glm5.agents.formats.atif import from_atif, to_atif
from glm5.agents.formats.mini import from_mini, to_mini
from glm5.agents.limits import Budget, Limits
from glm5.agents.outcomes import EXIT_CODES, Ending, Status
from glm5.errors import UsageError


def code(
    settings: SessionSettings, url: str, api_key: str | None, script: Path | None, events: bool, as_json: bool
) -> int:
    """Work on a task: in a terminal with a person, or headless where there is none.

    Args:
        script: a file of steps for a scripted model, in place of an endpoint.
        events: every event as a JSON line on standard output.
        as_json: one JSON object on standard output at the end.

    Returns:
        The exit code.
    """
    watched = not (events or as_json) and Console().is_terminal and Console(stderr=True).is_terminal
    console = Console()
    live = LiveText(console) if watched else None
    endpoint: HttpEndpoint | ScriptedEndpoint
    if script is not None:
        endpoint = ScriptedEndpoint(Program.load(script))
    else:
        endpoint = HttpEndpoint(url, settings.model, api_key, on_delta=live)
    if watched:
        ending = asyncio.run(interactive(settings, endpoint, console, live=live))
        console.print(f"  glm5 code --session {settings.folder}   goes on with this", style="dim", highlight=False)
        return EXIT_CODES[ending.status] if ending is not None else 0
    try:
        ending, findings = asyncio.run(headless(settings, endpoint, print_event if events else None))
    except KeyboardInterrupt:
        ending, findings = Ending(Status.INTERRUPTED, "interrupted"), []
    if as_json:
        print(json.dumps(summary(settings, ending, findings)))
    elif not events:
        show_log(read_log(settings.folder / LOG)[-2:], console)
    return EXIT_CODES[ending.status]


def batch(
    tasks: Path,
    repositories: Path | None,
    settings: SessionSettings,
    url: str,
    api_key: str | None,
    output: Path,
    workers: int,
    limits: Limits,
) -> list[Outcome]:
    """Work on a set of tasks with a live table on standard error.

    Raises:
        UsageError: the tasks, or the settings, are wrong.
    """
    loaded = load_tasks(tasks, repositories)
    with Live(console=Console(stderr=True), refresh_per_second=2) as live:
        return asyncio.run(
            run_batch(
                loaded, settings, HttpEndpoint(url, settings.model, api_key), output, workers, Budget(limits),
                lambda outcomes: live.update(table(outcomes)),
            )
        )  # fmt: skip


def summary(settings: SessionSettings, ending: Ending, findings: list[str]) -> dict[str, object]:
    """The end of a run as one JSON object."""
    return {
        "status": ending.status,
        "summary": ending.summary,
        "evidence": ending.evidence,
        "test_command": ending.test_command,
        "exit_code": ending.exit_code,
        "changed": ending.changed,
        "audit": findings,
        "session": str(settings.folder),
    }


@dataclass(frozen=True, slots=True)
class Writing:
    """Files that a log is written to, each in its own form."""

    html: Path | None = None
    atif: Path | None = None
    mini: Path | None = None


def view(log: Path, writing: Writing, browse: bool = False) -> list[Path]:
    """Show a log in the terminal, or write it in other forms; the files that were written.

    Args:
        log: the folder of a session, its `events.jsonl`, or a trajectory in ATIF or of mini-swe-agent (`.json`).

    Raises:
        UsageError: there is no such log, it is empty, or there is no page to open.
    """
    entries = _read(log)
    if not entries:
        raise UsageError(f"{log} holds no events")
    if browse and writing.html is None:
        raise UsageError("there is a page to open only where one is written: give --html FILE")
    if writing.html is not None:
        writing.html.write_text(page(entries), "utf-8", "replace")
    if writing.atif is not None:
        writing.atif.write_text(json.dumps(to_atif(entries, log.stem), indent=1), "utf-8")
    if writing.mini is not None:
        writing.mini.write_text(json.dumps(to_mini(entries), indent=1), "utf-8")
    if browse and writing.html is not None:
        webbrowser.open(writing.html.resolve().as_uri())
    written = [path for path in (writing.html, writing.atif, writing.mini) if path is not None]
    if not written:
        show_log(entries, Console())
    return written


def _read(log: Path) -> list[Entry]:
    if log.suffix != ".json":
        return read_log(log / LOG if log.is_dir() else log)
    try:
        raw = json.loads(log.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{log} cannot be read: {error}") from error
    return from_mini(raw) if isinstance(raw, dict) and "trajectory_format" in raw else from_atif(raw)
