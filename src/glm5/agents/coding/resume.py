"""Going on with a session in a new process: everything the old one knew is in the log.

    … replied(call) ── saved ── observed        the call was answered: go on after it
    … replied(call) ── saved ──✗                cut off: the tree is set back to before the call, which begins anew
    … replied(call) ──✗                         as above, with nothing to set back

Outside a sandbox a call may have done more than the tree shows, so there it is not repeated: the model is told that it
was interrupted. Nothing gets lost by setting back: what was there is saved, and named in the log.
"""

from pathlib import Path

from glm5.agents.events import Decided, Entry, EventLog, Observed, Replied, Resumed, Reverted, Saved, Started
from glm5.agents.guard.gate import Guard
from glm5.agents.guard.shadow import Shadow
from glm5.agents.limits import Budget
from glm5.agents.tools.base import Desk, TestRun
from glm5.agents.tools.shell import EVIDENCE_CHARACTERS
from glm5.agents.view import View
from glm5.errors import UsageError
from glm5.text.messages import ToolCall

INTERRUPTED = "interrupted: it may have run in part or whole. Look at how things stand before repeating it."


def check_same(log: EventLog, root: Path) -> Started:
    """How the session of a log began.

    Raises:
        UsageError: it is no log of a session, or of one on another tree.
    """
    started = log.entries[0].event
    if not isinstance(started, Started):
        raise UsageError(f"{log.path} does not begin with the start of a session")
    if Path(started.root) != root:
        raise UsageError(f"{log.path} is about {started.root}, not about {root}")
    return started


def recall(entries: list[Entry], guard: Guard, budget: Budget, desk: Desk) -> str:
    """Bring guard, budget and desk to where they were; the snapshot that the next call must find.

    That is the tree after the last call that was answered where a call is open, else after the last that ran.
    """
    settled = latest = guard.baseline
    calls: dict[str, ToolCall] = {}
    for entry in entries:
        match entry.event:
            case Replied() as reply:
                settled = latest
                calls = {call.id: call for call in reply.message.tool_calls}
                budget.spend(reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
                budget.seconds_before += reply.seconds
                desk.plan = next((str(c.arguments.get("steps")) for c in calls.values() if c.name == "plan"), desk.plan)
            case Saved(snapshot=snapshot) | Reverted(snapshot=snapshot):
                latest = snapshot
            case Decided(verdict="deny", call_id=call_id):
                guard.remember_denial(guard.judge(calls[call_id]))
            case Observed(name=name, call_id=call_id) as seen:
                settled = latest
                budget.seconds_before += seen.seconds
                if name == "run_tests" and seen.exit_code is not None:
                    command = str(calls[call_id].arguments["command"])
                    tail = seen.content[-EVIDENCE_CHARACTERS:]
                    desk.test_runs.append(TestRun(command, seen.exit_code, tail, latest))
    return settled if View(entries).open_calls else latest


def settle(log: EventLog, guard: Guard, shadow: Shadow, expected: str, repeat: bool) -> None:
    """Make tree and conversation fit together again.

    Args:
        expected: what `recall` gave.
        repeat: an open call begins anew, in the tree that it found; otherwise it is answered as interrupted.
    """
    is_open, now = bool(View(log.entries).open_calls), shadow.current
    if is_open and repeat and guard.confined and now != expected:
        undone = shadow.restore(expected)
        log.append(Reverted(expected, now, undone, "a call was cut off; it begins anew"))
    elif now != expected:
        log.append(Saved(now, shadow.changes(expected, now)))
    if is_open and not (repeat and guard.confined):
        close_open_calls(log)
    log.append(Resumed("the session was opened again"))


def close_open_calls(log: EventLog) -> list[Entry]:
    """Answer calls that nobody will answer any more, so that the conversation can go on; the new events."""
    return [log.append(Observed(c.id, c.name, INTERRUPTED, "interrupted")) for c in View(log.entries).open_calls]
