"""The audit after a run: every effect beside what was asked for, one sentence each.

It is made from the log and from what is really there, not from what the model says. An empty list is a statement too.
"""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from glm5.agents.events import Decided, Ended, Entry, Observed, Replied, Reverted, Started
from glm5.agents.guard.argv import Unparseable, parse
from glm5.agents.guard.gate import Guard
from glm5.agents.outcomes import Status
from glm5.agents.stuck import is_degenerate
from glm5.agents.tools.finish import is_test_file
from glm5.agents.view import LONGEST_TURN
from glm5.text.messages import ToolCall

_NAMED = 10  # paths in one sentence
_WORTH_TELLING = ("network", "publish", "history", "outside", "migrate", "privilege", "protected", "delete_foreign")


def audit(
    entries: Sequence[Entry], guard: Guard, scope: Sequence[str], changed: Sequence[str], left_running: Sequence[str]
) -> list[str]:
    """What there is to tell about a run.

    Args:
        scope: globs of what the task was about; empty for all of the tree.
        changed: "A", "M" or "D", a space, and the name.
        left_running: commands that ran in the background until the end.
    """
    calls = {c.id: c for e in entries if isinstance(e.event, Replied) for c in e.event.message.tool_calls}
    findings = _files(guard, scope, changed)
    findings += [f"left running, and stopped: {command}" for command in left_running]
    for entry in entries:
        match entry.event:
            case Decided(verdict=verdict, by=by, reason=reason, call_id=call_id):
                findings.append(
                    f"{'denied' if verdict == 'deny' else 'allowed'} by {by}: {_of(calls, call_id)} ({reason})"
                )
            case Reverted(changed=undone, reason=reason) if undone:
                findings.append(f"set back, because {reason}: {_list([line[2:] for line in undone])}")
            case Observed(status="malformed" | "interrupted" as status, name=name):
                findings.append(f"a call of {name} was {status}")
            case Observed(status="ok" | "failed", call_id=call_id) if call_id in calls:
                findings += _ran(calls[call_id], guard)
            case Replied(message=message):
                length = max(len(message.content), len(message.reasoning_content or ""))
                if is_degenerate(message.content) or is_degenerate(message.reasoning_content or ""):
                    findings.append(f"a message of {length} characters repeated itself")
                elif length > LONGEST_TURN:
                    findings.append(f"a message was {length} characters long")
            case Ended(status=Status.UNVERIFIED, evidence=evidence):
                findings.append(f"claimed to be done, unverified: {evidence}")
    return list(dict.fromkeys(findings))


def git_state(root: Path) -> str:
    """A digest of what commands must not change in a repository unseen: branches, settings and hooks."""
    folder = root / ".git"
    if not folder.is_dir():
        return ""
    names = [folder / "HEAD", folder / "packed-refs", folder / "config"]
    names += [path for part in ("refs", "hooks") for path in sorted((folder / part).rglob("*"))]
    digest = hashlib.sha256()
    for path in names:
        if path.is_file() and not path.is_symlink():
            digest.update(str(path).encode("utf-8", "surrogateescape") + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(guard: Guard, scope: Sequence[str], changed: Sequence[str]) -> list[str]:
    findings = []
    outside = [line for line in changed if scope and not any(fnmatch(line[2:], pattern) for pattern in scope)]
    if outside:
        findings.append(f"changed outside the scope ({', '.join(scope)}): {_list(outside)}")
    tests = [line for line in changed if line[0] in "MD" and is_test_file(line[2:])]
    if tests:
        findings.append(f"changed tests that were there before: {_list(tests)}")
    deleted = [line[2:] for line in changed if line[0] == "D"]
    if deleted:
        findings.append(f"deleted: {_list(deleted)}")
    if guard.shadow is not None and guard.shadow.unsaved:
        findings.append(f"not saved in snapshots, too large or not readable: {_list(guard.shadow.unsaved)}")
    if not guard.confined:
        findings.append("ran without a sandbox: what commands did outside the project is known from their words only")
    return findings


def git_findings(entries: Sequence[Entry], root: Path) -> list[str]:
    """Whether the project's own repository is not what it was."""
    started = entries[0].event
    if isinstance(started, Started) and started.git != git_state(root):
        return ["the project's git branches, settings or hooks are not what they were"]
    return []


def _ran(call: ToolCall, guard: Guard) -> list[str]:
    """Commands that ran, or tried to, with effects worth telling."""
    command = call.arguments.get("command")
    if not isinstance(command, str) or not command:
        return []
    effects = [effect for effect in guard.judge(call).effects if effect.kind in _WORTH_TELLING]
    findings = [f"{guard.policy.effects[effect.kind]}: {effect.what}" for effect in effects]
    try:
        parsed = parse(command)
    except Unparseable:
        parsed = []
    if call.name == "shell" and any(part.background or {"nohup", "setsid"} & {*part.via} for part in parsed):
        findings.append(f"would have left a process behind, which was ended: {command[:120]}")
    return findings


def _of(calls: dict[str, ToolCall], call_id: str) -> str:
    call = calls.get(call_id)
    if call is None:
        return "a call"
    return str(call.arguments.get("command") or call.arguments.get("path") or call.name)[:160]


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
