"""A chat completion put together from the pieces in which a server streams it.

A stream that ends before its reason to stop is broken: nothing of it may be acted on, and the request is made again.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

DeltaListener = Callable[[str, str], None]
"""Hears ("reasoning" | "content" | "call", text) as it comes, and ("again", "") when a request begins anew."""


class BrokenStream(Exception):
    """The server stopped in the middle of an answer."""


async def collect(lines: AsyncIterator[str], on_delta: DeltaListener) -> dict[str, Any]:
    """Read server-sent events to their end.

    Returns:
        What the server would have answered without streaming.

    Raises:
        BrokenStream: it ended too early, or is no stream of a chat completion.
    """
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": None}
    calls: dict[int, dict[str, Any]] = {}
    finish_reason, usage = None, None
    try:
        async for line in lines:
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            if "error" in chunk:
                raise BrokenStream(f"the server said: {str(chunk['error'])[:300]}")
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                _add(choice.get("delta") or {}, message, calls, on_delta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStream(f"no stream of a chat completion: {error!r}") from error
    finally:
        if finish_reason is None:
            on_delta("again", "")
    if finish_reason is None:
        raise BrokenStream("the answer ended before it was complete")
    message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


def _add(
    delta: dict[str, Any], message: dict[str, Any], calls: dict[int, dict[str, Any]], heard: DeltaListener
) -> None:
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    if reasoning:
        message["reasoning_content"] = (message["reasoning_content"] or "") + reasoning
        heard("reasoning", reasoning)
    if content := delta.get("content"):
        message["content"] += content
        heard("content", content)
    for piece in delta.get("tool_calls") or ():
        index = piece.get("index", len(calls))
        call = calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = piece.get("id") or call["id"]
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
        heard("call", (function.get("name") or "") + (function.get("arguments") or ""))
