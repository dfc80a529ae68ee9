"""OpenAI's responses format read into the records of a turn.

The input is a list of items; what the assistant did in one turn is several of them (reasoning, message, function_call)
and becomes one message here. The server keeps no state, so a conversation is sent whole: `previous_response_id` is
refused rather than ignored.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from glm5.errors import UsageError
from glm5.server.chat import read_thinking, read_tool_choice, read_tools
from glm5.server.sampling import Body, JsonSchema, ResponseFormat, SamplingBody, read_grammar
from glm5.server.turn import TurnRequest
from glm5.text.messages import Message, Tool, conversation_from_openai
from glm5.text.tokenizer import Tokenizer


class TextFormat(Body):
    """`text.format`, flatter than in chat completions."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class TextOptions(Body):
    """What the text must look like."""

    format: TextFormat | None = None


class ReasoningOptions(Body):
    """How to think."""

    effort: str | None = None


class ResponsesBody(SamplingBody):
    """The body of a responses request."""

    input: str | list[Any]
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    stream: bool | None = None


def read_request(body: ResponsesBody, tokenizer: Tokenizer) -> TurnRequest:
    """The request without its wire format. Raises UsageError for what cannot be done as asked."""
    if body.previous_response_id is not None:
        raise UsageError("previous_response_id: this server keeps no conversations; send all items as input")
    if body.background:
        raise UsageError("background: this server keeps no responses; send background: false")
    effort = body.reasoning.effort if body.reasoning else None
    thinking = read_thinking({"thinking": body.thinking, "chat_template_kwargs": body.chat_template_kwargs}, effort)
    parallel = body.parallel_tool_calls is not False
    return TurnRequest(
        messages=read_input(body.input, body.instructions),
        params=body.sampling_params(
            stop_ids=tokenizer.stop_ids,
            grammar=read_grammar(_response_format(body.text), None, after_thinking=thinking.enable_thinking),
        ),
        tools=_tools(body.tools),
        tool_choice=read_tool_choice(body.tool_choice, parallel),
        thinking=thinking,
        max_tokens=body.max_output_tokens,
        stop=body.stop_strings(),
    )


def read_input(items: str | Sequence[Any], instructions: str | None) -> list[Message]:
    """The conversation. Raises UsageError naming the item or message at fault."""
    raw: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, str):
        return conversation_from_openai([*raw, {"role": "user", "content": items}])
    turn: dict[str, Any] | None = None  # the assistant's, while its items come
    for i, item in enumerate(items):
        part = _assistant_part(item, f"input[{i}]")
        if part is None:
            turn = None
            raw.append(_other_message(item, f"input[{i}]"))
            continue
        # A thought or a text that follows a text begins a new turn; calls always belong to the turn before them.
        if turn is None or (turn.get("content") and "tool_calls" not in part):
            turn = {"role": "assistant", "content": None}
            raw.append(turn)
        turn["tool_calls"] = [*turn.get("tool_calls", []), *part.pop("tool_calls", [])]
        turn |= part
    return conversation_from_openai(raw)


def _assistant_part(item: Any, where: str) -> dict[str, Any] | None:
    """What an item adds to an assistant message; None when it is no part of one."""
    match item:
        case {"type": "function_call", "call_id": str(call_id), "name": str(name)}:
            call = {"id": call_id, "function": {"name": name, "arguments": item.get("arguments")}}
            return {"tool_calls": [call]}
        case {"type": "reasoning"}:
            parts = item.get("content") or item.get("summary") or []
            return {"reasoning_content": "".join(str(part.get("text", "")) for part in parts)}
        case {"role": "assistant"}:
            return {"content": item.get("content")}
        case dict():
            return None
        case _:
            raise UsageError(f"{where} must be an object, not {type(item).__name__}")


def _other_message(item: dict[str, Any], where: str) -> dict[str, Any]:
    match item:
        case {"type": "function_call_output", "call_id": str(call_id)}:
            return {"role": "tool", "tool_call_id": call_id, "content": item.get("output")}
        case {"role": str(role)} if item.get("type", "message") == "message":
            return {"role": role, "content": item.get("content")}
        case _:
            raise UsageError(f"{where}: items of type {item.get('type')!r} are not understood here")


def _tools(raw: Sequence[Any] | None) -> tuple[Tool, ...]:
    for i, tool in enumerate(raw or ()):
        if isinstance(tool, dict) and tool.get("type") != "function":
            raise UsageError(f"tools[{i}]: this server runs no tools of its own, so there is no {tool.get('type')!r}")
    return read_tools(raw)


def _response_format(text: TextOptions | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    schema = text.format.json_schema
    return ResponseFormat(
        type=text.format.type, json_schema=None if schema is None else JsonSchema.model_validate({"schema": schema})
    )
