"""Events as people read them in a terminal: one short block each, with thoughts folded and diffs coloured."""

import difflib
from collections.abc import Iterable, Iterator

from rich.console import Console, RenderableType
from rich.syntax import Syntax
from rich.text import Text

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
    Started,
)
from glm5.agents.limits import Budget
from glm5.text.messages import ToolCall

_FOLDED_LINES = 3
_RESULT_LINES = 12
_ENDING_STYLES = {"verified": "bold green", "unverified": "bold yellow", "gave_up": "bold yellow"}


def show_log(entries: Iterable[Entry], console: Console) -> None:
    """A whole log."""
    for entry in entries:
        for block in blocks(entry):
            console.print(block)


def blocks(entry: Entry) -> Iterator[RenderableType]:
    """What is printed of one event; nothing of events that only matter to programs."""
    match entry.event:
        case Started(root=root, mode=mode, model=model):
            yield _text(f"{root} · {mode} · {model or 'a model'}", "dim")
        case Said(message=message, by=by) if by != "system":
            style = "bold" if by == "person" else "magenta"
            yield _text(_first(message.content, 20), style)
        case Replied(message=message):
            if message.reasoning_content:
                yield _text(_first(message.reasoning_content, _FOLDED_LINES), "dim italic")
            if message.content.strip():
                yield _text(_first(message.content, 40))
            for call in message.tool_calls:
                yield from call_blocks(call)
        case Decided(verdict=verdict, by=by, reason=reason):
            yield _text(f"  {'refused' if verdict == 'deny' else 'allowed'} by {by}: {reason}", "yellow")
        case Observed(content=content, status=status):
            style = {"ok": "dim", "failed": "red", "refused": "yellow"}.get(status, "magenta")
            yield _text(_indented(_last(content, _RESULT_LINES)), style)
        case Reverted(changed=changed, reason=reason) if changed:
            yield _text(f"  set back, because {reason}: {', '.join(line[2:] for line in changed[:8])}", "yellow")
        case Folded(manager=manager, restart=restart):
            yield _text(f"  context: {manager}{' (restart)' if restart else ''}", "dim")
        case Rewound(to=to):
            yield _text(f"  back to event {to}", "dim")
        case Resumed(reason=reason):
            yield _text(f"  {reason}", "dim")
        case Ended() as ended:
            yield _text(
                f"{ended.status.replace('_', ' ')}: {ended.summary}", _ENDING_STYLES.get(ended.status, "bold red")
            )
            if ended.evidence and ended.status != "verified":
                yield _text(f"  {ended.evidence}", "yellow")
            if ended.test_command:
                yield _text(f"  {ended.test_command} → exit code {ended.exit_code}", "dim")
            if ended.changed:
                yield _text(f"  changed: {', '.join(ended.changed)}", "dim")
        case Audited(findings=findings):
            yield _text(
                "audit: nothing beside the task" if not findings else "audit:", "dim" if not findings else "yellow"
            )
            for finding in findings:
                yield _text(f"  - {finding}", "yellow")


def call_blocks(call: ToolCall) -> Iterator[RenderableType]:
    """A call: its tool and what matters of its arguments; an edit as a diff."""
    arguments = call.arguments
    subject = arguments.get("command") or arguments.get("path") or arguments.get("pattern") or ""
    if call.name == "process":
        subject = f"{arguments.get('action')} {arguments.get('name', '')} {arguments.get('command', '')}"
    yield Text.assemble(("• ", "cyan"), (call.name, "bold cyan"), _text(f" {_first(str(subject), 6)}"))
    if call.name == "edit":
        yield Syntax(str(_text(edit_diff(call))), "diff", background_color="default")
    elif call.name == "plan":
        yield _text(_indented(str(arguments.get("steps", ""))))


def edit_diff(call: ToolCall) -> str:
    """The passage before and after."""
    old, new = (str(call.arguments.get(name, "")).splitlines() for name in ("old", "new"))
    return "\n".join(list(difflib.unified_diff(old, new, lineterm="", n=2))[2:])


def status_line(budget: Budget, context_tokens: int, threshold: int | None) -> str:
    """Tokens, money, cache and context, in one line."""
    parts = [f"step {budget.steps}", f"{budget.prompt_tokens + budget.completion_tokens:,} tokens"]
    parts.append(f"cache {budget.cache_share:.0%}")
    parts.append(f"context {context_tokens:,}" + (f" of {threshold:,}" if threshold else ""))
    if budget.money:
        parts.append(f"cost {budget.money:.3f}")
    parts.append(f"{budget.seconds:.0f} s")
    return " · ".join(parts)


def _first(text: str, count: int) -> str:
    lines = text.strip().splitlines()
    rest = len(lines) - count
    return "\n".join(line[:400] for line in lines[:count]) + (f"\n… {rest} more lines" if rest > 0 else "")


def _last(text: str, count: int) -> str:
    lines = text.strip().splitlines()
    rest = len(lines) - count
    return (f"… {rest} lines\n" if rest > 0 else "") + "\n".join(line[:400] for line in lines[-count:])


def _text(words: str, style: str = "") -> Text:
    """Names of files, and what models write, may hold what no terminal can print."""
    return Text(words.encode("utf-8", "replace").decode(), style)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
