"""Anthropic's request format read into the records of a turn.

A user message there holds the results of the tools as blocks among its text; here each result is a message of its own,
before the text. Thinking blocks of the history are the assistant's reasoning. Thought is on unless `thinking.type` is
"disabled", because that is how GLM-5 works best; `budget_tokens` bounds it.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from glm5.errors import UsageError
from glm5.server.chat import read_thinking, read_tools
from glm5.server.sampling import Body, SamplingBody
from glm5.server.turn import ToolChoice, TurnRequest
from glm5.text.messages import Message, Tool, conversation_from_openai
from glm5.text.thinking import ThinkingOptions
from glm5.text.tokenizer import Tokenizer


class AnthropicMessage(Body):
    """One message of the history."""

    role: str
    content: str | list[dict[str, Any]]


class PromptBody(SamplingBody):
    """What decides the prompt; all there is to a count_tokens request."""

    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesBody(PromptBody):
    """The body of a messages request."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    stream: bool | None = None


def read_request(body: MessagesBody, tokenizer: Tokenizer) -> TurnRequest:
    """The request without its wire format. Raises UsageError for what cannot be done as asked."""
    thinking = read_anthropic_thinking(body)
    body = body.model_copy(update={"stop": body.stop_sequences})
    budget = thinking.budget if thinking.enable_thinking else None
    return TurnRequest(
        messages=read_messages(body),
        params=body.sampling_params(stop_ids=tokenizer.stop_ids, thinking_budget=budget),
        tools=read_anthropic_tools(body.tools),
        tool_choice=_tool_choice(body.tool_choice),
        thinking=thinking,
        max_tokens=body.max_tokens,
        stop=body.stop_strings(),
    )


def read_messages(body: PromptBody) -> list[Message]:
    """The conversation, system prompt first.

    Raises:
        UsageError: naming the message and block at fault; also for an answer that has already begun (a last message of
            the assistant), which GLM's chat layout cannot continue.
    """
    if body.messages[-1].role == "assistant":
        raise UsageError("messages: the last message is the assistant's; GLM-5 cannot continue a begun answer")
    raw: list[dict[str, Any]] = []
    if body.system:
        raw.append({"role": "system", "content": body.system})
    for i, message in enumerate(body.messages):
        blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
        if message.role == "user":
            raw += _user_messages(blocks, f"messages[{i}]")
        elif message.role == "assistant":
            raw.append(_assistant_message(blocks, f"messages[{i}]"))
        else:
            raise UsageError(f"messages[{i}]: role must be user or assistant, not {message.role!r}")
    return conversation_from_openai(raw)


def read_anthropic_tools(raw: Sequence[dict[str, Any]] | None) -> tuple[Tool, ...]:
    """The tools. Raises UsageError for tools that Anthropic's own servers would run, such as web search."""
    for i, tool in enumerate(raw or ()):
        if tool.get("type", "custom") != "custom":
            raise UsageError(f"tools[{i}]: this server runs no tools of its own, so there is no {tool['type']!r}")
    return read_tools(
        [
            {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
            for tool in raw or ()
        ]
    )


def read_anthropic_thinking(body: PromptBody) -> ThinkingOptions:
    """The thinking options. Raises UsageError for a value that is none."""
    thinking = dict(body.thinking or {})
    budget = thinking.pop("budget_tokens", None)
    if thinking.get("type") == "adaptive":  # the model decides how long to think, as GLM-5 always does
        thinking["type"] = "enabled"
    return read_thinking(
        {
            "thinking": thinking,
            "chat_template_kwargs": body.chat_template_kwargs,
            "thinking_token_budget": budget,
        },
        None,
    )


def _tool_choice(raw: dict[str, Any] | None) -> ToolChoice:
    parallel = not (raw or {}).get("disable_parallel_tool_use", False)
    match raw:
        case None | {"type": "auto"}:
            return ToolChoice("auto", parallel=parallel)
        case {"type": "any"}:
            return ToolChoice("required", parallel=parallel)
        case {"type": "none"}:
            return ToolChoice("none")
        case {"type": "tool", "name": str(name)}:
            return ToolChoice("named", name, parallel=False)
        case _:
            raise UsageError(f"tool_choice.type must be auto, any, none, or tool with a name, not {raw!r}")


def _user_messages(blocks: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The results of tools, then the text."""
    results, texts = [], []
    for n, block in enumerate(blocks):
        match block:
            case {"type": "tool_result", "tool_use_id": str(call_id)}:
                results.append({"role": "tool", "tool_call_id": call_id, "content": block.get("content")})
            case {"type": "text", "text": str()}:
                texts.append(block)
            case _:
                raise UsageError(f"{where}, block {n}: a user's {block.get('type')!r} block cannot be read by GLM-5")
    return [*results, {"role": "user", "content": texts}] if texts or not results else results


def _assistant_message(blocks: Sequence[dict[str, Any]], where: str) -> dict[str, Any]:
    """One message of what the assistant thought, said and called."""
    message: dict[str, Any] = {"role": "assistant", "content": [], "tool_calls": []}
    for n, block in enumerate(blocks):
        match block:
            case {"type": "text", "text": str()}:
                message["content"].append(block)
            case {"type": "thinking", "thinking": str(thought)}:
                message["reasoning_content"] = message.get("reasoning_content", "") + thought
            case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                call = {"id": call_id, "function": {"name": name, "arguments": block.get("input") or {}}}
                message["tool_calls"].append(call)
            case _:
                raise UsageError(f"{where}, block {n}: an assistant's {block.get('type')!r} block cannot be read here")
    return message
