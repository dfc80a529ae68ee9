"""What an agent knows of a model: messages in, one assistant turn out.

`HttpEndpoint` talks to any OpenAI-compatible server, `ScriptedEndpoint` lets a Python function play the model; the
gateway of the reinforcement learning is a third one. An agent cannot tell them apart, so the agent that is trained is
the agent that is used.

A fault of the model comes back as a `Reply` to be judged. A fault of the endpoint is an `EndpointError`: nobody learns
from it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from inspect import isawaitable
from time import time
from typing import TYPE_CHECKING, Any, Protocol, Self

from glm5.agents.streaming import BrokenStream, DeltaListener, collect
from glm5.errors import GLM5Error, UsageError
from glm5.text.markers import Marker
from glm5.text.messages import Message, Tool, ToolCall

if TYPE_CHECKING:
    import httpx

FINISH_REASONS = ("stop", "length", "tool_calls", "abort", "repetition", "error")
ATTEMPTS = 6
_LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the server asks for
_RETRIED = frozenset({408, 409, 425, 429})  # and everything from 500 on


@dataclass(frozen=True, slots=True)
class Reply:
    """One assistant turn, as any chat API gives it.

    Attributes:
        finish_reason: one of `FINISH_REASONS`.
        cached_tokens: of the prompt, those the server had computed before.
    """

    message: Message
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Endpoint(Protocol):
    """All that an agent or an environment knows of a model."""

    async def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        thinking: bool | None = None,
        stop: tuple[str, ...] = (),
    ) -> Reply:
        """The assistant's next turn. None leaves a choice to the endpoint.

        Raises:
            EndpointError: the endpoint failed, which is not the model's fault.
        """


class EndpointError(GLM5Error):
    """The endpoint failed: not the model's fault, so a rollout that meets it is excluded from training."""


class HttpEndpoint:
    """A model behind an OpenAI-compatible URL.

    A refused connection and a server that is busy or broken are tried again, `ATTEMPTS` times in all, after the time
    that the server asks for (`retry-after`) or, where it does not say, after 0.5, 1, 2, … seconds.

        async with HttpEndpoint("http://localhost:8000/v1", "glm-5") as endpoint:
            reply = await endpoint.chat([Message("user", "Hello")])
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        timeout: float = 600.0,
        on_delta: DeltaListener | None = None,
    ) -> None:
        """Remember where the model is; nothing is sent yet.

        Args:
            base_url: up to and including the version, such as `https://host/v1`.
            timeout: seconds for one whole answer; with `on_delta`, for each of its pieces.
            on_delta: asks the server to stream, and hears of every piece (see `streaming.collect`).

        Raises:
            UsageError: `base_url` is not a URL of http or https.
            GLM5Error: the package `httpx` is not installed.
        """
        try:
            import httpx  # not at the top: whoever talks to a model in the same process needs no HTTP client
        except ImportError as error:
            raise GLM5Error("talking to an endpoint over HTTP needs the package httpx: pip install httpx") from error
        if not base_url.startswith(("http://", "https://")):
            raise UsageError(f"the endpoint's URL must begin with http:// or https://, not {base_url!r}")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model, self._on_delta = model, on_delta
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        thinking: bool | None = None,
        stop: tuple[str, ...] = (),
    ) -> Reply:
        """See `Endpoint.chat`."""
        body: dict[str, Any] = {"model": self._model, "messages": [message.to_openai() for message in messages]}
        if tools:
            body["tools"] = [tool.to_openai() for tool in tools]
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if temperature is not None:
            body["temperature"] = temperature
        if thinking is not None:
            body["thinking"] = {"type": "enabled" if thinking else "disabled"}
        if stop:
            body["stop"] = list(stop)
        return read_reply(await self._post(body), self._url)

    async def _post(self, body: Mapping[str, Any]) -> Any:
        import httpx

        for attempt in range(ATTEMPTS):
            wait = 0.5 * 2**attempt
            try:
                if self._on_delta is None:
                    response = await self._client.post(self._url, content=_encoded(body))
                else:
                    answer = await self._stream(body, self._on_delta)
                    if isinstance(answer, dict):
                        return answer
                    response = answer
            except (httpx.HTTPError, BrokenStream) as error:
                failure = f"{type(error).__name__} {error}".strip()
            else:
                if response.is_success:
                    return _json(response, self._url)
                failure = f"{response.status_code} {_error_text(response)}"
                if response.status_code not in _RETRIED and response.status_code < 500:
                    raise EndpointError(f"{self._url} refused the request: {failure}")
                wait = _retry_after(response.headers.get("retry-after"), wait)
            if attempt < ATTEMPTS - 1:
                await asyncio.sleep(min(wait, _LONGEST_WAIT))
        raise EndpointError(f"{self._url} failed {ATTEMPTS} times, the last time with: {failure}")

    async def _stream(self, body: Mapping[str, Any], on_delta: DeltaListener) -> "httpx.Response | dict[str, Any]":
        """The whole answer put together from its pieces, or the response that refuses it."""
        wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._client.stream("POST", self._url, content=_encoded(wanted)) as response:
            if response.is_success:
                return await collect(response.aiter_lines(), on_delta)
            await response.aread()
            return response


Script = Callable[[Sequence[Message], Sequence[Tool]], "Reply | Message | str | Awaitable[Reply | Message | str]"]
"""Plays the model: what it answers to a conversation. Text stands for a message with that content."""


class ScriptedEndpoint:
    """A Python function that plays the model, for trying an agent or an environment without one.

        endpoint = ScriptedEndpoint(lambda messages, tools: "Paris")

    Attributes:
        requests: every conversation it was asked to continue.
    """

    def __init__(self, script: Script) -> None:
        """`script` may be a plain or an async function; what it raises, `chat` raises."""
        self._script = script
        self.requests: list[list[Message]] = []

    async def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        thinking: bool | None = None,
        stop: tuple[str, ...] = (),
    ) -> Reply:
        """What the script answers, whole: limits, temperature, thinking and stop strings do not change a script."""
        self.requests.append(list(messages))
        answer = self._script(messages, tools)
        if isawaitable(answer):
            answer = await answer
        if isinstance(answer, str):
            answer = Message("assistant", answer)
        if isinstance(answer, Message):
            answer = Reply(answer, "tool_calls" if answer.tool_calls else "stop")
        return answer


def _encoded(body: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: names of files and what models write may hold characters that UTF-8 cannot."""
    return json.dumps(body).encode()


def read_reply(raw: Any, where: str) -> Reply:
    """Read a chat completion; `where` begins the error message.

    A call whose arguments are not the JSON of an object is the model's fault, not the endpoint's: it becomes text that
    begins with `<tool_call>`, as GLM's own parser leaves it.

    Raises:
        EndpointError: the response is not a chat completion.
    """
    try:
        choice = raw["choices"][0]
        content = choice["message"]
        calls, broken = _sound_calls(content.get("tool_calls") or ())
        if broken:
            content = {**content, "tool_calls": calls, "content": (content.get("content") or "") + broken}
        usage = raw.get("usage") or {}
        return Reply(
            message=Message.from_openai(content),
            finish_reason=_finish_reason(choice.get("finish_reason"), bool(calls)),
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        )
    except (KeyError, IndexError, TypeError, AttributeError, UsageError) as error:
        raise EndpointError(f"{where} did not answer with a chat completion ({error!r}): {str(raw)[:300]}") from error


def _sound_calls(raw: Sequence[Any]) -> tuple[list[Any], str]:
    """The calls that can be read, and the text of those that cannot."""
    sound: list[Any] = []
    broken = ""
    for call in raw:
        try:
            ToolCall.from_openai(call)
            sound.append(call)
        except UsageError:
            function = call["function"]
            broken += f"{Marker.TOOL_CALL}{function.get('name')}{function.get('arguments')}"
    return sound, broken


def _finish_reason(raw: Any, has_calls: bool) -> str:
    """The reason in our words; servers that know more reasons than we do stopped for one of their own."""
    if raw in FINISH_REASONS:
        return str(raw)
    return "tool_calls" if has_calls else "stop"


def _json(response: "httpx.Response", where: str) -> Any:
    try:
        return response.json()
    except json.JSONDecodeError as error:
        raise EndpointError(f"{where} did not answer with JSON: {response.text[:300]!r}") from error


def _error_text(response: "httpx.Response") -> str:
    """The sentence in an error body of OpenAI's shape, else the body as it is."""
    try:
        return str(response.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return response.text[:300]


def _retry_after(header: str | None, default: float) -> float:
    """Seconds, from a header that holds a number of them or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return default
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except ValueError:
        return default
