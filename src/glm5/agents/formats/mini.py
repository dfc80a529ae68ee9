"""mini-swe-agent's trajectory, format 1.1: one JSON object with the conversation in OpenAI form.

What the format has no place for (decisions, snapshots, folds) is left out of it; the log has it.
"""

import json
from collections.abc import Sequence
from typing import Any

from glm5 import __version__
from glm5.agents.events import CallStatus, Ended, Entry, Event, Observed, Replied, Said, Started
from glm5.errors import UsageError
from glm5.text.messages import Message

FORMAT = "mini-swe-agent-1.1"
_STATUSES = {"verified": "Submitted", "unverified": "Submitted"}


def to_mini(entries: Sequence[Entry]) -> dict[str, Any]:
    """A log as a trajectory of mini-swe-agent."""
    messages: list[dict[str, Any]] = []
    info: dict[str, Any] = {"mini_version": "", "exit_status": "", "submission": ""}
    config: dict[str, Any] = {"agent": {}, "agent_type": f"glm5.agents.loop.Agent {__version__}"}
    turns = 0
    for entry in entries:
        extra: dict[str, Any] = {"timestamp": entry.time}
        match entry.event:
            case Started() as started:
                config |= {"model": {"model_name": started.model}, "environment": {"cwd": started.root}}
            case Said(message=message):
                messages.append({**message.to_openai(), "extra": extra})
            case Replied(message=message):
                turns += 1
                extra["actions"] = [{"tool": c.name, "tool_call_id": c.id, **c.arguments} for c in message.tool_calls]
                messages.append({**message.to_openai(), "extra": extra})
            case Observed() as seen:
                extra |= {"returncode": seen.exit_code, "status": seen.status, "tool": seen.name}
                messages.append({"role": "tool", "tool_call_id": seen.call_id, "content": seen.content, "extra": extra})
            case Ended() as ended:
                info |= {"exit_status": _STATUSES.get(ended.status, ended.status), "submission": ended.summary}
                extra |= {"exit_status": info["exit_status"], "submission": ended.summary, "status": ended.status}
                messages.append({"role": "exit", "content": ended.summary, "extra": extra})
    info |= {"model_stats": {"instance_cost": 0.0, "api_calls": turns}, "config": config}
    return {"info": info, "messages": messages, "trajectory_format": FORMAT}


def from_mini(raw: Any) -> list[Entry]:
    """A trajectory of mini-swe-agent as a log, to be looked at and measured with everything that reads logs.

    Raises:
        UsageError: it is none, or of a form this does not know.
    """
    if not isinstance(raw, dict) or not str(raw.get("trajectory_format", "")).startswith("mini-swe-agent-1"):
        raise UsageError(f"this is no trajectory of mini-swe-agent 1: {json.dumps(raw)[:200]}")
    config = raw.get("info", {}).get("config", {})
    model = (config.get("model") or {}).get("model_name", "")
    root = (config.get("environment") or {}).get("cwd", "")
    messages = raw.get("messages", [])
    task = next((str(m.get("content")) for m in messages if m.get("role") == "user"), "")
    events: list[tuple[float, Event]] = [(0.0, Started(task, root, "full", model))]
    for number, message in enumerate(messages):
        extra = message.get("extra") or {}
        moment = float(extra.get("timestamp") or 0.0)
        match message.get("role"):
            case "exit":
                ending = extra.get("status") or ("unverified" if extra.get("exit_status") == "Submitted" else "stuck")
                events.append((moment, Ended(ending, str(message.get("content") or extra.get("exit_status", "")))))
            case "assistant":
                read = Message.from_openai(message, f"messages[{number}]")
                events.append((moment, Replied(read, "tool_calls" if read.tool_calls else "stop")))
            case "tool":
                read = Message.from_openai(message, f"messages[{number}]")
                code = extra.get("returncode")
                status: CallStatus = extra.get("status") or ("ok" if code in (0, None) else "failed")
                call_id, name = read.tool_call_id or "", extra.get("tool", "bash")
                events.append((moment, Observed(call_id, name, read.content, status, code)))
            case _:
                read = Message.from_openai(message, f"messages[{number}]")
                events.append((moment, Said(read, "system" if read.role == "system" else "person")))
    return [Entry(number, moment, event) for number, (moment, event) in enumerate(events)]
