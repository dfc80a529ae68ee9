"""Anthropic's messages API, which is how many coding agents are pointed at another model.

An answer is a list of blocks (thinking, text, tool_use), streamed one after the other: a block starts, grows by deltas
of its own kind, and stops. A thinking block ends with a signature; ours says only where it came from, for thoughts that
come back are taken as they are.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from glm5.errors import UsageError
from glm5.server.anthropic_request import (
    MessagesBody,
    PromptBody,
    read_anthropic_thinking,
    read_anthropic_tools,
    read_messages,
    read_request,
)
from glm5.server.errors import as_api_error, error_body
from glm5.server.service import Service
from glm5.server.sse import EventStream, event, json_reply, while_connected
from glm5.server.turn import RunningTurn, Turn, TurnUpdate, render_prompt
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ReasoningRetracted,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
    collect,
)

PATH = "/v1/messages"
_SIGNATURE = "glm5"
# Anthropic has no word for a turn that was stopped because it ran in circles; to its clients it was cut.
_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "repetition": "max_tokens"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(PATH)
    async def messages(body: MessagesBody, request: Request) -> Response:
        if body.n not in (None, 1):
            raise UsageError("n: the messages API has one answer")
        model = service.model_name(body.model)
        turn = Turn(service, read_request(body, service.tokenizer))
        answer = MessageAnswer(model, turn, request.state.request_id)
        if body.stream:
            return EventStream(answer.events(), answer.failure, service.settings.send_timeout)
        return json_reply(await while_connected(request, answer.whole()))

    @routes.post(f"{PATH}/count_tokens")
    async def count_tokens(body: PromptBody) -> Response:
        service.model_name(body.model)
        tools = read_anthropic_tools(body.tools)
        prompt_ids = render_prompt(service, read_messages(body), tools, read_anthropic_thinking(body))
        return json_reply({"input_tokens": len(prompt_ids)})

    return routes


class MessageAnswer:
    """Writes the updates of a turn as one message, whole or in events."""

    def __init__(self, model: str, turn: RunningTurn, request_id: str) -> None:
        self._turn = turn
        self._request_id = request_id
        self._head: dict[str, Any] = {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}

    async def whole(self) -> dict[str, Any]:
        """The message as one object."""
        updates: list[TurnUpdate] = []
        async with aclosing(self._turn.updates()) as running:
            updates += [update async for update in running]
        message = collect([item for update in updates for item in update.events])
        content: list[dict[str, Any]] = []
        if message.reasoning_content:
            content.append(_thinking_block(message.reasoning_content, _SIGNATURE))
        if message.content:
            content.append({"type": "text", "text": message.content})
        for call in message.tool_calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
        return {**self._head, "content": content, **_stop(updates[-1]), "usage": self._usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The message as server-sent events."""
        blocks = _Blocks()
        begun = False
        async with aclosing(self._turn.updates()) as updates:
            async for update in updates:
                if not begun:
                    begun = True
                    usage = {**self._usage(), "output_tokens": 0}
                    message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                    yield _event({"type": "message_start", "message": message})
                for item in update.events:
                    for data in blocks.write(item):
                        yield _event(data)
                if update.finish_reason is not None:
                    for data in blocks.stop():
                        yield _event(data)
                    yield _event({"type": "message_delta", "delta": _stop(update), "usage": self._usage()})
        yield _event({"type": "message_stop"})

    def failure(self, error: Exception) -> bytes:
        """The event that ends a stream which failed after it had begun."""
        return _event(error_body(as_api_error(error), PATH, self._request_id))

    def _usage(self) -> dict[str, int]:
        usage = self._turn.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.completion_tokens,
        }


class _Blocks:
    """Cuts the events of a turn into blocks, of which one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None

    def write(self, item: Event) -> list[dict[str, Any]]:
        """What to send for one event of the turn."""
        match item:
            case ReasoningDelta(text):
                if not text:
                    return []
                return [
                    *self._ensure("thinking", _thinking_block("", "")),
                    self._delta({"type": "thinking_delta", "thinking": text}),
                ]
            case ContentDelta(text):
                return [
                    *self._ensure("text", {"type": "text", "text": ""}),
                    self._delta({"type": "text_delta", "text": text}),
                ]
            case ToolCallStart(_, call_id, name):
                block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                return [*self.stop(), *self._ensure("tool_use", block)]
            case ToolCallArgumentsDelta(_, fragment):
                return [self._delta({"type": "input_json_delta", "partial_json": fragment})]
            case ReasoningRetracted() | ToolCallEnd():
                return self.stop()
            case _:
                return []

    def stop(self) -> list[dict[str, Any]]:
        """End the open block, if there is one."""
        if self._open is None:
            return []
        signature = {"type": "signature_delta", "signature": _SIGNATURE}
        last = [self._delta(signature)] if self._open == "thinking" else []
        self._open = None
        return [*last, {"type": "content_block_stop", "index": self._index}]

    def _ensure(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        """Have a block of this kind open."""
        if self._open == kind:
            return []
        before = self.stop()
        self._open = kind
        self._index += 1
        return [*before, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _thinking_block(thought: str, signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": thought, "signature": signature}


def _stop(update: TurnUpdate) -> dict[str, Any]:
    reason = _STOP_REASONS.get(update.finish_reason or "", "end_turn")
    if update.stop_sequence is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": update.stop_sequence}


def _event(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])
