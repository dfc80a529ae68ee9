"""OpenAI's responses API, without its state: items in, items out.

An answer is a list of output items (reasoning, message, function_call). In a stream each item is added, grows by deltas
and is done; numbered events tell of every step, and the last one carries the whole response.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from glm5.errors import UsageError
from glm5.server.errors import as_api_error
from glm5.server.responses_request import ResponsesBody, read_request
from glm5.server.service import Service
from glm5.server.sse import EventStream, event, json_reply, while_connected
from glm5.server.turn import Turn
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ReasoningRetracted,
    ToolCallArgumentsDelta,
    ToolCallCut,
    ToolCallEnd,
    ToolCallStart,
)

PATH = "/v1/responses"
_CUT = {"length": "max_output_tokens", "repetition": "repetition", "abort": "abort"}


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(PATH)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        if body.n not in (None, 1):
            raise UsageError("n: a response has one answer")
        model = service.model_name(body.model)
        turn = Turn(service, read_request(body, service.tokenizer))
        answer = _ResponseAnswer(body, model, turn, request.state.request_id)
        if body.stream:
            return EventStream(answer.encoded(), answer.failure, service.settings.send_timeout)
        return json_reply(await while_connected(request, answer.whole()))

    return routes


class _ResponseAnswer:
    """Writes the updates of a turn as a response, whole or in events."""

    def __init__(self, body: ResponsesBody, model: str, turn: Turn, request_id: str) -> None:
        self._turn = turn
        self._number = 0
        self._items = _Items(request_id)
        self._head: dict[str, Any] = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "tools": body.tools or [],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "error": None,
            "incomplete_details": None,
        }

    async def whole(self) -> dict[str, Any]:
        """The response as one object."""
        last: dict[str, Any] = {}
        async with aclosing(self.events()) as events:
            async for data in events:
                last = data
        response: dict[str, Any] = last["response"]
        return response

    async def encoded(self) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events."""
        async with aclosing(self.events()) as events:
            async for data in events:
                yield self._encode(data)

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of the stream; the last one holds the whole response."""
        begun = False
        finish_reason = None
        async with aclosing(self._turn.updates()) as updates:
            async for update in updates:
                if not begun:
                    begun = True
                    response = {**self._head, "status": "in_progress", "output": [], "usage": None}
                    yield {"type": "response.created", "response": response}
                    yield {"type": "response.in_progress", "response": response}
                for item in update.events:
                    for data in self._items.write(item):
                        yield data
                finish_reason = update.finish_reason
        reason = _CUT.get(finish_reason or "")
        for data in self._items.close("completed" if reason is None else "incomplete"):
            yield data
        status = "completed" if reason is None else "incomplete"
        response = {**self._head, "status": status, "output": self._items.output, "usage": self._usage()}
        if reason is not None:
            response["incomplete_details"] = {"reason": reason}
        yield {"type": f"response.{status}", "response": response}

    def failure(self, error: Exception) -> bytes:
        """The event that ends a stream which failed after it had begun."""
        told = {"code": "server_error", "message": str(as_api_error(error).detail)}
        response = {**self._head, "status": "failed", "output": self._items.output, "usage": None, "error": told}
        return self._encode({"type": "response.failed", "response": response})

    def _encode(self, data: dict[str, Any]) -> bytes:
        self._number += 1
        return event({**data, "sequence_number": self._number - 1}, data["type"])

    def _usage(self) -> dict[str, Any]:
        usage = self._turn.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


class _Items:
    """Cuts the events of a turn into output items, of which the last one may be open.

    Attributes:
        output: the items so far; the open one holds its text as far as it has come.
    """

    def __init__(self, request_id: str) -> None:
        self.output: list[dict[str, Any]] = []
        self._request_id = request_id
        self._open = ""  # type of the open item

    def write(self, item: Event) -> list[dict[str, Any]]:
        """What to send for one event of the turn."""
        match item:
            case ReasoningDelta(text):
                return [*self._ensure_text("reasoning"), self._add_text(text)] if text else []
            case ContentDelta(text):
                return [*self._ensure_text("message"), self._add_text(text)]
            case ReasoningRetracted():  # the same text follows as a message
                return self.close("completed")
            case ToolCallStart(_, call_id, name):
                call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
                return [*self.close("completed"), *self._add_item(call, "fc")]
            case ToolCallArgumentsDelta(_, fragment):
                self.output[-1]["arguments"] += fragment
                return [{"type": "response.function_call_arguments.delta", **self._place(), "delta": fragment}]
            case ToolCallEnd():
                return self.close("completed")
            case ToolCallCut():
                return self.close("incomplete")

    def close(self, status: str) -> list[dict[str, Any]]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        place, item = self._place(), self.output[-1]
        item["status"] = status
        if self._open == "function_call":
            done = {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]}
            parts = [{**done, "name": item["name"]}]
        else:
            [part] = item["content"]
            prefix, part_place = self._text_events(), {**place, "content_index": 0}
            parts = [
                {"type": f"{prefix}.done", **part_place, "text": part["text"]},
                {"type": "response.content_part.done", **part_place, "part": part},
            ]
        self._open = ""
        done_item = {"type": "response.output_item.done", "output_index": place["output_index"], "item": item}
        return [*parts, done_item]

    def _ensure_text(self, kind: str) -> list[dict[str, Any]]:
        """Have an item of this kind, with one part of text, open."""
        if self._open == kind:
            return []
        before = self.close("completed")
        if kind == "message":
            item: dict[str, Any] = {"type": "message", "role": "assistant", "content": []}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
        else:
            item = {"type": "reasoning", "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        added = self._add_item(item, "msg" if kind == "message" else "rs")
        self.output[-1]["content"].append(part)
        added_part = {"type": "response.content_part.added", **self._place(), "content_index": 0, "part": dict(part)}
        return [*before, *added, added_part]

    def _add_item(self, item: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
        item = {"id": f"{prefix}_{self._request_id}_{len(self.output)}", "status": "in_progress", **item}
        self.output.append(item)
        self._open = item["type"]
        shown = {**item, "content": []} if "content" in item else dict(item)
        return [{"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": shown}]

    def _add_text(self, text: str) -> dict[str, Any]:
        self.output[-1]["content"][0]["text"] += text
        return {"type": f"{self._text_events()}.delta", **self._place(), "content_index": 0, "delta": text}

    def _text_events(self) -> str:
        return "response.output_text" if self._open == "message" else "response.reasoning_text"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}
