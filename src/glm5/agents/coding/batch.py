"""Many tasks, some at once, under one budget; what is finished stays finished.

    <output>/<id>/tree       its files
    <output>/<id>/session    its session, which goes on after an interruption
    <output>/results.json    one line of the table for each
    <output>/predictions.jsonl   what the harness of SWE-bench grades

A task that cannot be laid out, or whose endpoint fails, does not end the others.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from glm5.agents.coding.session import LOG, SessionSettings, open_session
from glm5.agents.coding.tasks import BatchTask
from glm5.agents.endpoint import Endpoint
from glm5.agents.events import Audited, Ended, Replied, read_log
from glm5.agents.limits import Budget
from glm5.agents.outcomes import Status
from glm5.errors import GLM5Error, UsageError

RUNNING, WAITING = "running", "waiting"
# What a later run tries again: the fault was not the model's.
_RETRIED = {Status.ENDPOINT_FAILED, Status.SANDBOX_FAILED, Status.INTERRUPTED}


@dataclass(slots=True)
class Outcome:
    """A line of the table."""

    id: str
    status: str = WAITING
    steps: int = 0
    tokens: int = 0
    changed: int = 0
    findings: int = 0
    note: str = ""


async def run_batch(
    tasks: Sequence[BatchTask],
    settings: SessionSettings,
    endpoint: Endpoint,
    output: Path,
    workers: int,
    budget: Budget,
    on_change: Callable[[list[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Work on all tasks that are not finished yet.

    Args:
        settings: of every session; root, task, folder and test command are each task's own.
        budget: for all of them together, those finished earlier not counted.
        on_change: hears of all outcomes whenever one of them changes.

    Raises:
        UsageError: without a worker.
    """
    if workers < 1:
        raise UsageError(f"a batch needs at least one worker, not {workers}")
    outcomes = [Outcome(task.id) for task in tasks]
    waiting = iter(zip(tasks, outcomes, strict=True))

    async def worker() -> None:
        for task, outcome in waiting:
            await _work(task, outcome, settings, endpoint, output / task.id, budget, lambda: on_change(outcomes))
            _write(outcomes, output, settings.model)

    output.mkdir(parents=True, exist_ok=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Table:
    """All outcomes, and how many there are of each status."""
    counts = {status: sum(o.status == status for o in outcomes) for status in dict.fromkeys(o.status for o in outcomes)}
    title = ", ".join(f"{count} {status}" for status, count in counts.items())
    shown = Table("task", "status", "steps", "tokens", "changed", "audit", "note", box=None, title=title)
    for o in outcomes:
        numbers = (f"{o.steps}", f"{o.tokens:,}", f"{o.changed}", f"{o.findings}")
        shown.add_row(o.id, o.status, *numbers, o.note[:80])
    return shown


async def _work(
    task: BatchTask,
    outcome: Outcome,
    settings: SessionSettings,
    endpoint: Endpoint,
    folder: Path,
    budget: Budget,
    changed: Callable[[], None],
) -> None:
    session_folder = folder / "session"
    if _finished(session_folder, outcome):
        return
    if (over := budget.exceeded()) is not None:
        outcome.note = f"not begun: {over[1]}"
        return
    outcome.status = RUNNING
    changed()
    try:
        await asyncio.to_thread(task.lay_out, folder / "tree")
        goes_on = (session_folder / LOG).exists()
        own = replace(
            settings,
            root=folder / "tree",
            task="" if goes_on else task.task,
            folder=session_folder,
            test_command=task.test_command or settings.test_command,
        )
        async with open_session(own, endpoint, parent=budget) as session:
            await session.run()
            (folder / "changes.patch").write_text(session.patch(), "utf-8", "surrogateescape")
        _finished(session_folder, outcome)
    except GLM5Error as error:
        outcome.status, outcome.note = "failed", str(error)
    changed()


def _finished(session: Path, outcome: Outcome) -> bool:
    """Read how a session ended into its outcome; whether it needs no more work."""
    if not (session / LOG).exists():
        return False
    events = [entry.event for entry in read_log(session / LOG)]
    replies = [event for event in events if isinstance(event, Replied)]
    ended = [event for event in events if isinstance(event, Ended)]
    if not ended or not isinstance(events[-1], Audited):
        return False
    outcome.status, outcome.note = ended[-1].status, ended[-1].summary.replace("\n", " ")
    outcome.steps, outcome.tokens = len(replies), sum(r.prompt_tokens + r.completion_tokens for r in replies)
    outcome.changed, outcome.findings = len(ended[-1].changed), len(events[-1].findings)
    return outcome.status not in _RETRIED


def _write(outcomes: Sequence[Outcome], output: Path, model: str) -> None:
    (output / "results.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), "utf-8")
    patches = [(o.id, output / o.id / "changes.patch") for o in outcomes]
    rows = [
        {"instance_id": name, "model_name_or_path": model, "model_patch": path.read_text("utf-8", "replace")}
        for name, path in patches
        if path.exists()
    ]
    (output / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
