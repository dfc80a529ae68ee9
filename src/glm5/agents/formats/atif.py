"""ATIF, the agent trajectory interchange format of Harbor, schema 1.4.

A turn of the model and the results of its calls are one step; folds and decisions are system steps, which may carry
observations for that purpose.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from glm5 import __version__
from glm5.agents.events import Decided, Ended, Entry, Event, Folded, Observed, Replied, Said, Started
from glm5.errors import UsageError
from glm5.text.messages import Message, ToolCall

SCHEMA = "ATIF-v1.4"
_SOURCES = {"system": "system", "person": "user", "harness": "system"}


def to_atif(entries: Sequence[Entry], session_id: str) -> dict[str, Any]:
    """A log as an ATIF trajectory."""
    steps: list[dict[str, Any]] = []
    agent: dict[str, Any] = {"name": "glm5-code", "version": __version__}
    replies: list[Replied] = []
    extra: dict[str, Any] = {}

    def add(entry: Entry, source: str, message: str, **more: Any) -> None:
        moment = datetime.fromtimestamp(entry.time, UTC).isoformat()
        steps.append({"step_id": len(steps) + 1, "timestamp": moment, "source": source, "message": message, **more})

    for entry in entries:
        match entry.event:
            case Started() as started:
                agent["model_name"] = started.model
                extra |= {"task": started.task, "root": started.root, "mode": started.mode}
            case Said(message=message, by=by, reason=reason):
                add(entry, _SOURCES[by], message.content, extra={"by": by, "reason": reason})
            case Replied(message=message) as reply:
                replies.append(reply)
                add(entry, "agent", message.content, **_turn(reply))
            case Observed() as seen:
                result = {"source_call_id": seen.call_id, "content": seen.content}
                notes = {"name": seen.name, "status": seen.status, "exit_code": seen.exit_code}
                step = steps[-1] if steps and steps[-1]["source"] == "agent" else None
                if step is None:
                    add(entry, "system", "", observation={"results": []}, extra={"results": []})
                    step = steps[-1]
                step.setdefault("observation", {"results": []})["results"].append(result)
                step.setdefault("extra", {}).setdefault("results", []).append(notes)
            case Decided(verdict=verdict, by=by, reason=reason) as decided:
                extra.setdefault("decisions", []).append([decided.call_id, verdict, by, reason])
            case Folded(manager=manager, restart=restart):
                add(entry, "system", f"context: {manager}{', restart' if restart else ''}", extra={"fold": manager})
            case Ended() as ended:
                extra |= {"status": ended.status, "summary": ended.summary, "evidence": ended.evidence}
    totals = {
        "total_prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "total_completion_tokens": sum(reply.completion_tokens for reply in replies),
        "total_cached_tokens": sum(reply.cached_tokens for reply in replies),
        "total_steps": len(steps),
    }
    root = {"schema_version": SCHEMA, "session_id": session_id, "agent": agent, "steps": steps}
    return {**root, "final_metrics": totals, "extra": extra}


def from_atif(raw: Any) -> list[Entry]:
    """An ATIF trajectory, of any agent, as a log.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(raw, dict) or not str(raw.get("schema_version", "")).startswith("ATIF-v1"):
        raise UsageError(f"this is no ATIF trajectory of version 1: {json.dumps(raw)[:200]}")
    extra, agent = raw.get("extra") or {}, raw.get("agent") or {}
    task = extra.get("task") or next((s.get("message", "") for s in raw["steps"] if s.get("source") == "user"), "")
    mode, model = extra.get("mode", ""), agent.get("model_name") or ""
    events: list[tuple[float, Event]] = [(0.0, Started(task, extra.get("root", ""), mode, model))]
    for step in raw["steps"]:
        moment = datetime.fromisoformat(step["timestamp"]).timestamp() if step.get("timestamp") else 0.0
        notes = step.get("extra") or {}
        if step["source"] == "agent":
            events.append((moment, _reply(step)))
        elif step.get("message") and "fold" not in notes:
            role = "system" if step["source"] == "system" and notes.get("by", "system") == "system" else "user"
            by = notes.get("by") or ("system" if role == "system" else "person")
            events.append((moment, Said(Message(role, step["message"]), by, notes.get("reason", ""))))  # type: ignore[arg-type]
        results = (step.get("observation") or {}).get("results", [])
        known = notes.get("results") or [{}] * len(results)
        names = {c["tool_call_id"]: c["function_name"] for c in step.get("tool_calls") or ()}
        for result, note in zip(results, known, strict=False):
            call_id = result.get("source_call_id") or ""
            name, status = note.get("name") or names.get(call_id, ""), note.get("status", "ok")
            events.append((moment, Observed(call_id, name, str(result.get("content")), status, note.get("exit_code"))))
    if extra.get("status"):
        ended = Ended(extra["status"], extra.get("summary", ""), extra.get("evidence", ""))
        events.append((events[-1][0], ended))
    return [Entry(number, moment, event) for number, (moment, event) in enumerate(events)]


def _turn(reply: Replied) -> dict[str, Any]:
    calls = [
        {"tool_call_id": call.id, "function_name": call.name, "arguments": call.arguments}
        for call in reply.message.tool_calls
    ]
    tokens = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cached_tokens": reply.cached_tokens,
    }
    more: dict[str, Any] = {"metrics": tokens, "extra": {"finish_reason": reply.finish_reason}}
    if reply.message.reasoning_content is not None:
        more["reasoning_content"] = reply.message.reasoning_content
    return {**more, "tool_calls": calls} if calls else more


def _reply(step: dict[str, Any]) -> Replied:
    calls = tuple(
        ToolCall(call["function_name"], call.get("arguments") or {}, call["tool_call_id"])
        for call in step.get("tool_calls") or ()
    )
    tokens = step.get("metrics") or {}
    message = Message("assistant", step.get("message") or "", step.get("reasoning_content"), calls)
    reason = (step.get("extra") or {}).get("finish_reason") or ("tool_calls" if calls else "stop")
    prompt, completion, cached = (tokens.get(f"{name}_tokens") or 0 for name in ("prompt", "completion", "cached"))
    return Replied(message, reason, prompt, completion, cached)
