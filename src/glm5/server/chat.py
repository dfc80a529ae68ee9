"""OpenAI's chat completions, with what Z.ai and vLLM add to them.

`reasoning_content` beside `content`; `thinking` (Z.ai) or `chat_template_kwargs` (vLLM) to switch thought off or keep
old thoughts; `thinking_token_budget`; `tool_stream: false` to get each tool call in one piece; `structured_outputs`;
`return_token_ids`. A turn that runs in circles ends with the finish reason "repetition".
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from glm5.engine.records import TokenOutput
from glm5.errors import UsageError
from glm5.server.errors import as_api_error, error_body
from glm5.server.sampling import Body, ResponseFormat, SamplingBody, StructuredOutputs, read_grammar
from glm5.server.service import Service, shown_bytes
from glm5.server.sse import DONE, EventStream, event, json_reply, while_connected
from glm5.server.turn import RunningTurn, ToolChoice, Turn, TurnRequest, TurnUpdate
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    collect,
)
from glm5.text.messages import Tool, conversation_from_openai
from glm5.text.thinking import ThinkingOptions
from glm5.text.tokenizer import Tokenizer

PATH = "/v1/chat/completions"


class StreamOptions(Body):
    """What else a stream should carry."""

    include_usage: bool | None = None


class ChatBody(SamplingBody):
    """The body of a chat completion request."""

    messages: list[Any]
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    reasoning_effort: str | None = None
    tool_stream: bool | None = None
    return_token_ids: bool | None = None
    request_id: str | None = None  # Z.ai's name for it, sent back as it came


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(PATH)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        model = service.model_name(body.model)
        turn = Turn(service, read_request(body, service.tokenizer))
        answer = ChatAnswer(service.tokenizer, body, model, turn, request.state.request_id)
        if body.stream:
            return EventStream(answer.chunks(), answer.failure, service.settings.send_timeout)
        return json_reply(await while_connected(request, answer.whole()))

    return routes


def read_request(body: ChatBody, tokenizer: Tokenizer) -> TurnRequest:
    """The request without its wire format. Raises UsageError for what cannot be done as asked."""
    tools = read_tools(body.tools)
    thinking = read_thinking(
        {
            "thinking": body.thinking,
            "chat_template_kwargs": body.chat_template_kwargs,
            "thinking_token_budget": body.thinking_token_budget,
        },
        body.reasoning_effort,
    )
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs: true")
    grammar = read_grammar(body.response_format, body.structured_outputs, after_thinking=thinking.enable_thinking)
    params = body.sampling_params(
        stop_ids=tokenizer.stop_ids,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
        thinking_budget=thinking.budget if thinking.enable_thinking else None,
    )
    return TurnRequest(
        messages=conversation_from_openai(body.messages),
        params=params,
        tools=tools,
        tool_choice=read_tool_choice(body.tool_choice, body.parallel_tool_calls is not False),
        thinking=thinking,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=body.stop_strings(),
        whole_calls=body.tool_stream is False,
    )


def read_tools(raw: Sequence[Any] | None) -> tuple[Tool, ...]:
    """Tools in OpenAI's form, nested or flat. Raises UsageError for a malformed tool, or a name given twice."""
    tools = tuple(Tool.from_openai(tool, f"tools[{i}]") for i, tool in enumerate(raw or ()))
    names = [tool.name for tool in tools]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"tools: two tools are called {repeated!r}")
    return tools


def read_tool_choice(raw: Any, parallel: bool) -> ToolChoice:
    """`tool_choice` in OpenAI's forms. Raises UsageError for any other."""
    match raw:
        case None | "auto":
            return ToolChoice("auto", parallel=parallel)
        case "none" | "required":
            return ToolChoice(raw, parallel=parallel)
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return ToolChoice("named", name, parallel=False)
        case _:
            raise UsageError(f"tool_choice must be auto, none, required or a function with its name, not {raw!r}")


def read_thinking(fields: Mapping[str, Any], effort: str | None) -> ThinkingOptions:
    """The thinking options; GLM-5 knows no degrees of effort but one: none (or minimal) switches thought off.

    Raises:
        UsageError: spellings that are wrong or contradict each other.
    """
    no_effort = effort in ("none", "minimal")
    if no_effort and not fields.get("thinking"):
        fields = {**fields, "thinking": {"type": "disabled"}}
    thinking = ThinkingOptions.from_request(fields)
    if no_effort and thinking.enable_thinking:
        raise UsageError(f"reasoning effort {effort!r} and thinking.type 'enabled' contradict each other")
    return thinking


def logprob_entry(tokenizer: Tokenizer, token: TokenOutput) -> dict[str, Any]:
    """One token in OpenAI's `logprobs.content`."""
    top = [_token(tokenizer, token_id, logprob) for token_id, logprob in token.top_logprobs]
    return {**_token(tokenizer, token.token_id, token.logprob), "top_logprobs": top}


class ChatAnswer:
    """Writes the updates of a turn as a chat completion, whole or in chunks."""

    def __init__(self, tokenizer: Tokenizer, body: ChatBody, model: str, turn: RunningTurn, request_id: str) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._turn = turn
        self._request_id = request_id
        self._head: dict[str, Any] = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
        if body.request_id is not None:
            self._head["request_id"] = body.request_id

    async def whole(self) -> dict[str, Any]:
        """The completion as one object."""
        updates: list[TurnUpdate] = []
        async with aclosing(self._turn.updates()) as running:
            updates += [update async for update in running]
        indices = sorted({update.index for update in updates})
        choices = [self._choice(i, [update for update in updates if update.index == i]) for i in indices]
        usage = self._turn.usage.to_openai()
        return {**self._head, "object": "chat.completion", **self._prompt(), "choices": choices, "usage": usage}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The completion as server-sent events."""
        options = self._body.stream_options or StreamOptions()
        begun: set[int] = set()
        async with aclosing(self._turn.updates()) as updates:
            async for update in updates:
                deltas = [delta for item in update.events if (delta := chat_delta(item))]
                extra = self._extra(update.tokens)
                if update.index not in begun:
                    deltas.insert(0, {"role": "assistant", "content": ""})
                elif not deltas and extra:
                    deltas.append({})  # tokens without text yet, such as half a character, have log-probs all the same
                first_head = self._prompt() if not begun else {}
                begun.add(update.index)
                for position, delta in enumerate(deltas):
                    yield self._chunk(update.index, delta, extra if position == 0 else {}, head=first_head)
                    first_head = {}
                if update.finish_reason is not None:
                    yield self._chunk(update.index, {}, {}, update.finish_reason)
        if options.include_usage:
            usage = self._turn.usage.to_openai()
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def failure(self, error: Exception) -> bytes:
        """The event that ends a stream which failed after it had begun."""
        return event(error_body(as_api_error(error), PATH, self._request_id))

    def _choice(self, index: int, updates: Sequence[TurnUpdate]) -> dict[str, Any]:
        message = collect([item for update in updates for item in update.events])
        raw = message.to_openai()
        raw["content"] = message.content if message.content or not message.tool_calls else None
        tokens = [token for update in updates for token in update.tokens]
        choice = {"index": index, "message": raw, "finish_reason": updates[-1].finish_reason, "logprobs": None}
        return choice | self._extra(tokens)

    def _extra(self, tokens: Sequence[TokenOutput]) -> dict[str, Any]:
        """What a choice says about its tokens, as far as the request wants to know."""
        extra: dict[str, Any] = {}
        if self._body.logprobs and tokens:
            extra["logprobs"] = {"content": [logprob_entry(self._tokenizer, token) for token in tokens]}
        if self._body.return_token_ids and tokens:
            extra["token_ids"] = [token.token_id for token in tokens]
        return extra

    def _prompt(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._turn.prompt_ids} if self._body.return_token_ids else {}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        extra: dict[str, Any],
        finish_reason: str | None = None,
        head: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None, **extra}
        return event({**self._head, "object": "chat.completion.chunk", **(head or {}), "choices": [choice]})


def chat_delta(item: Event) -> dict[str, Any] | None:
    """The `delta` of a chunk for one event; None for events that OpenAI's format has no words for."""
    match item:
        case ReasoningDelta(text):
            return {"reasoning_content": text} if text else None
        case ContentDelta(text):
            return {"content": text}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolCallArgumentsDelta(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
        case _:
            return None


def _token(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    raw = shown_bytes(tokenizer, token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}
