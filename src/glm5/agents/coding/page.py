"""A log as one HTML file: no script, nothing loaded, dark or light as the reader's system is.

Everything in a log was written by a model or by what it ran, so every character of it is escaped.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template

from glm5.agents.coding.show import edit_diff
from glm5.agents.events import (
    Audited,
    Decided,
    Ended,
    Entry,
    Folded,
    Observed,
    Replied,
    Resumed,
    Reverted,
    Rewound,
    Said,
    Saved,
    Started,
)
from glm5.text.messages import ToolCall


def page(entries: Sequence[Entry]) -> str:
    """The page of a log."""
    folder = files("glm5.agents.coding") / "page"
    started = next((entry.event for entry in entries if isinstance(entry.event, Started)), None)
    ended = [entry.event for entry in entries if isinstance(entry.event, Ended)]
    status = ended[-1].status if ended else "unfinished"
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        title=escape(started.task[:120] if started else "a run"),
        css=(folder / "page.css").read_text("utf-8"),
        status=escape(status.replace("_", " ")),
        status_class=status,
        facts=_facts(entries, started),
        events="\n".join(filter(None, map(_event, entries))),
    )


def _facts(entries: Sequence[Entry], started: Started | None) -> str:
    replies = [entry.event for entry in entries if isinstance(entry.event, Replied)]
    prompt, cached = sum(r.prompt_tokens for r in replies), sum(r.cached_tokens for r in replies)
    facts = {
        "project": started.root if started else "",
        "mode": started.mode if started else "",
        "model": started.model if started else "",
        "turns": str(len(replies)),
        "tokens": f"{prompt:,} in, {sum(r.completion_tokens for r in replies):,} out",
        "cached": f"{cached / prompt:.0%}" if prompt else "",
        "waited for the model": f"{sum(r.seconds for r in replies):.1f} s",
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)


def _event(entry: Entry) -> str:
    match entry.event:
        case Said(message=message, by=by, reason=reason):
            title = {"system": "instructions", "person": "person", "harness": f"harness · {reason}"}[by]
            return _block(entry, f"said {by}", title, _text(message.content, folded=by == "system"))
        case Replied(message=message) as reply:
            thought = _details("thought", _pre(message.reasoning_content)) if message.reasoning_content else ""
            content = _text(message.content) if message.content.strip() else ""
            calls = "".join(map(_call, message.tool_calls))
            numbers = f"{reply.prompt_tokens:,} + {reply.completion_tokens:,} tokens · {reply.seconds:.1f} s"
            return _block(entry, "reply", "model", thought + content + calls, numbers)
        case Observed(name=name, content=content, status=status, seconds=seconds):
            return _block(entry, f"result {status}", f"{name} · {status}", _text(content), f"{seconds:.1f} s")
        case Decided(verdict=verdict, by=by, reason=reason):
            words = "refused" if verdict == "deny" else "allowed"
            return _block(entry, f"decided {verdict}", f"{words} by {by}", _text(reason))
        case Saved(changed=changed):
            return _block(entry, "saved", "files changed", _text("\n".join(changed)))
        case Reverted(changed=changed, reason=reason):
            return _block(entry, "reverted", f"set back, because {reason}", _text("\n".join(changed)))
        case Folded(manager=manager, observations=folded, restart=restart):
            words = "history dropped" if restart else f"{len(folded)} older results left out"
            return _block(entry, "folded", f"context · {manager}", _text(words))
        case Rewound(to=to):
            return _block(entry, "resumed", "rewound", _text(f"to event {to}"))
        case Resumed(reason=reason):
            return _block(entry, "resumed", "resumed", _text(reason))
        case Ended() as ended:
            lines = [ended.summary, ended.evidence, ended.test_command and f"{ended.test_command} → {ended.exit_code}"]
            lines += ["changed:", *ended.changed] if ended.changed else ["nothing changed"]
            return _block(
                entry, f"ended {ended.status}", ended.status.replace("_", " "), _text("\n".join(filter(None, lines)))
            )
        case Audited(findings=findings):
            items = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
            return _block(entry, "audit", "audit", f"<ul>{items}</ul>" if items else "<p>nothing beside the task</p>")
    return ""


def _call(call: ToolCall) -> str:
    shown = {
        name: value for name, value in call.arguments.items() if not (call.name == "edit" and name in ("old", "new"))
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{_pre(str(value))}</dd>" for name, value in shown.items())
    diff = ""
    if call.name == "edit":
        marks = {"+": "ins", "-": "del"}
        lines = edit_diff(call).splitlines()
        tags = [marks.get(line[:1], "span") for line in lines]
        diff = "".join(f"<{tag}>{escape(line)}\n</{tag}>" for tag, line in zip(tags, lines, strict=True))
        diff = f'<pre class="diff">{diff}</pre>'
    return f'<div class="call"><b>{escape(call.name)}</b><dl>{rows}</dl>{diff}</div>'


def _block(entry: Entry, kind: str, title: str, body: str, numbers: str = "") -> str:
    moment = datetime.fromtimestamp(entry.time, UTC).strftime("%H:%M:%S")
    head = f'<a href="#e{entry.number}">{entry.number}</a> {escape(title)} <small>{moment} {escape(numbers)}</small>'
    return f'<section id="e{entry.number}" class="{escape(kind)}"><h2>{head}</h2>{body}</section>'


def _text(text: str, folded: bool = False) -> str:
    lines = text.splitlines()
    if folded or len(lines) > 30 or len(text) > 4000:
        return _details(f"{len(lines)} lines, {len(text):,} characters", _pre(text))
    return _pre(text) if text.strip() else ""


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _pre(text: str) -> str:
    return f"<pre>{escape(text.encode('utf-8', 'replace').decode())}</pre>"
