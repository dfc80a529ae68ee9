"""A conversation as typed records with the OpenAI names, read from and written to the OpenAI chat format.

Clients differ in how they spell the same thing. Accepted without a word: content as a list of text parts, null content
beside tool calls, arguments as a JSON string or as an object, the `developer` role, `reasoning` for
`reasoning_content`, and any key that a chat template has no use for. Everything malformed is a `UsageError` that names
the index of the message.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glm5.errors import UsageError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # the newer OpenAI name for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TEXT_PART_TYPES = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    @classmethod
    def from_openai(cls, raw: Any, where: str = "tool") -> "Tool":
        """Read `{"type": "function", "function": {…}}`, or the flat form in which the function's keys stand beside
        `type`.

        Raises:
            UsageError: without a name, or with parameters that are no JSON schema object.
        """
        function = _mapping(raw, where).get("function", raw)
        name = _name(_mapping(function, f"{where}: function").get("name"), where)
        parameters = function.get("parameters")
        if parameters is None:
            return cls(name, function.get("description") or "")
        return cls(name, function.get("description") or "", _mapping(parameters, f"{where} ({name}): parameters"))

    def to_openai(self) -> dict[str, Any]:
        """The nested form, which is also what the chat template shows to the model."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that an assistant made. The id never reaches the model: on the wire only the order links results."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    @classmethod
    def from_openai(cls, raw: Any, where: str = "tool call") -> "ToolCall":
        """Read a call; arguments may be an object, the JSON of one, or nothing at all.

        Raises:
            UsageError: without a name, or with arguments that are not (the JSON of) an object.
        """
        function = _mapping(_mapping(raw, where).get("function", raw), f"{where}: function")
        name = _name(function.get("name"), where)
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise UsageError(f"{where} ({name}): arguments are not valid JSON ({error}): {arguments!r}") from error
        return cls(name, _mapping(arguments, f"{where} ({name}): arguments"), raw.get("id") or "")

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI form, with the arguments as a JSON string."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `reasoning_content` is None when the assistant did not think, "" when its thought was empty."""

    role: Role
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @classmethod
    def from_openai(cls, raw: Any, where: str = "message") -> "Message":
        """Read one OpenAI chat message; `where` begins the error message.

        Raises:
            UsageError: unknown role, content that is not text, a key that this role cannot have, a malformed call.
        """
        raw = _mapping(raw, where)
        role = ROLES.get(str(raw.get("role")))
        if role is None:
            raise UsageError(f"{where}: unknown role {raw.get('role')!r}; known roles are {', '.join(ROLES)}")
        reasoning = next((raw[k] for k in ("reasoning_content", "reasoning") if raw.get(k) is not None), None)
        calls = raw.get("tool_calls") or ()
        if role != "assistant" and (reasoning or calls):
            raise UsageError(f"{where}: only an assistant message can have tool_calls or reasoning_content, not {role}")
        if reasoning is not None and not isinstance(reasoning, str):
            raise UsageError(f"{where}: reasoning_content must be a string, not {type(reasoning).__name__}")
        if not isinstance(calls, list | tuple):
            raise UsageError(f"{where}: tool_calls must be a list, not {type(calls).__name__}")
        content = raw.get("content")
        if content is None and role in ("system", "user"):
            raise UsageError(f"{where}: a {role} message needs content")
        return cls(
            role=role,
            content=_text(content, where),
            reasoning_content=reasoning if role == "assistant" else None,
            tool_calls=tuple(ToolCall.from_openai(c, f"{where}, tool call {i}") for i, c in enumerate(calls)),
            tool_call_id=(raw.get("tool_call_id") or None) if role == "tool" else None,
        )

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI form; keys that say nothing are left out, content beside tool calls is null when empty."""
        raw: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            raw["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            raw["content"] = self.content or None
            raw["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            raw["tool_call_id"] = self.tool_call_id
        return raw


def conversation_from_openai(raw: Iterable[Any]) -> list[Message]:
    """Read a whole conversation, check it (`check_conversation`) and put tool results into the order of their calls,
    because order is all that links them once they are rendered.

    Raises:
        UsageError: naming the index of the message at fault.
    """
    messages = [Message.from_openai(message, f"messages[{i}]") for i, message in enumerate(raw)]
    check_conversation(messages)
    position: dict[str, int] = {}
    for i, message in enumerate(messages):
        if message.role == "assistant":
            position = {call.id: n for n, call in enumerate(message.tool_calls)}
        elif message.role == "tool" and messages[i - 1].role != "tool":
            run = _tool_run(messages, i)
            if len({m.tool_call_id for m in run} & set(position)) == len(run):
                messages[i : i + len(run)] = sorted(run, key=lambda m: position[m.tool_call_id or ""])
    return messages


def check_conversation(messages: Sequence[Message]) -> None:
    """Check that there is a conversation and that every tool message answers a call made just before it.

    A tool message without an id answers the next open call. Calls may stay unanswered.

    Raises:
        UsageError: no messages; a tool message without a call, or for a call that is already answered or unknown.
    """
    if not messages:
        raise UsageError("messages: the conversation is empty; give at least one message")
    open_calls: list[ToolCall] = []
    for i, message in enumerate(messages):
        if message.role != "tool":
            open_calls = list(message.tool_calls)
            continue
        wanted = message.tool_call_id
        answered = next((call for call in open_calls if wanted is None or call.id == wanted), None)
        if answered is None:
            known = ", ".join(repr(call.id) for call in open_calls) or "none"
            raise UsageError(
                f"messages[{i}]: tool message for call {wanted!r}, but the calls waiting for a result here are: "
                f"{known}; a tool message must follow the assistant message whose tool_calls it answers"
            )
        open_calls.remove(answered)


def _tool_run(messages: Sequence[Message], start: int) -> list[Message]:
    run = []
    for message in messages[start:]:
        if message.role != "tool":
            break
        run.append(message)
    return run


def _text(content: Any, where: str) -> str:
    """Content as one string: null is empty, a list of text parts is joined without a separator."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UsageError(f"{where}: content must be a string or a list of parts, not {type(content).__name__}")
    texts = []
    for n, part in enumerate(content):
        text = part if isinstance(part, str) else _mapping(part, f"{where}, content part {n}").get("text")
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind not in TEXT_PART_TYPES or not isinstance(text, str):
            raise UsageError(f"{where}: content part {n} is {kind!r} without readable text; GLM-5 reads text only")
        texts.append(text)
    return "".join(texts)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be an object, not {type(value).__name__}")
    return value


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: the function needs a name")
    return value
