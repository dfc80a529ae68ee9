"""OpenAI's plain completions: text, or token ids, to be continued. No chat template and no parsing."""

import codecs
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from glm5.engine.records import Delta, SamplingParams, TokenOutput
from glm5.errors import UsageError
from glm5.server.chat import StreamOptions
from glm5.server.errors import as_api_error, error_body
from glm5.server.sampling import ResponseFormat, SamplingBody, StructuredOutputs, read_grammar
from glm5.server.service import Service, shown_bytes
from glm5.server.sse import DONE, EventStream, event, json_reply, while_connected
from glm5.server.stops import StopText
from glm5.server.turn import Usage
from glm5.text.tokenizer import Tokenizer

PATH = "/v1/completions"
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionBody(SamplingBody):
    """The body of a completion request. `prompt` is a text, token ids, or a list of either."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(PATH)
    async def completions(body: CompletionBody, request: Request) -> Response:
        model = service.model_name(body.model)
        answer = _Completions(service, body, model, request.state.request_id)
        if body.stream:
            return EventStream(answer.chunks(), answer.failure, service.settings.send_timeout)
        return json_reply(await while_connected(request, answer.whole()))

    return routes


@dataclass(slots=True)
class _Piece:
    """What is new in one choice."""

    index: int
    text: str
    tokens: list[TokenOutput] = field(default_factory=list)
    finish_reason: str | None = None


class _Choice:
    """The text of one completion, with half characters and possible stop strings held back."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopText(stops)

    def feed(self, delta: Delta) -> tuple[str, list[TokenOutput]]:
        """The text that a delta adds, and the tokens used for it."""
        shown = ""
        for position, token in enumerate(delta.tokens):
            if token.token_id != delta.stop_matched:
                shown += self._stops.feed(self._decoder.decode(shown_bytes(self._tokenizer, token.token_id)))
            if self._stops.matched is not None:
                self.finish_reason = "stop"
                return shown, delta.tokens[: position + 1]
        if delta.finish_reason is not None:
            shown += self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.flush()
            self.finish_reason = delta.finish_reason
        return shown, delta.tokens


class _Completions:
    """Runs the prompts of one request one after the other and writes them in OpenAI's format."""

    def __init__(self, service: Service, body: CompletionBody, model: str, request_id: str) -> None:
        self._service = service
        self._body = body
        self._request_id = request_id
        self._head = {
            "id": f"cmpl-{request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._prompts = read_prompts(body.prompt, service.tokenizer)
        self._stops = body.stop_strings()
        self._usage = Usage(sum(map(len, self._prompts)))
        self._params = [self._sampling(prompt) for prompt in self._prompts]

    async def whole(self) -> dict[str, Any]:
        """All choices as one object."""
        pieces: dict[int, list[_Piece]] = {}
        async with aclosing(self._pieces()) as running:
            async for piece in running:
                pieces.setdefault(piece.index, []).append(piece)
        choices = []
        for index, parts in sorted(pieces.items()):
            tokens = [token for part in parts for token in part.tokens]
            joined = _Piece(index, "".join(part.text for part in parts), tokens, parts[-1].finish_reason)
            choices.append(self._choice(joined))
        return {**self._head, "choices": choices, "usage": self._usage.to_openai()}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The choices as server-sent events."""
        async with aclosing(self._pieces()) as running:
            async for piece in running:
                if piece.text or piece.finish_reason or self._body.logprobs is not None or self._body.return_token_ids:
                    yield event({**self._head, "choices": [self._choice(piece)]})
        if (self._body.stream_options or StreamOptions()).include_usage:
            yield event({**self._head, "choices": [], "usage": self._usage.to_openai()})
        yield DONE

    def failure(self, error: Exception) -> bytes:
        """The event that ends a stream which failed after it had begun."""
        return event(error_body(as_api_error(error), PATH, self._request_id))

    async def _pieces(self) -> AsyncGenerator[_Piece, None]:
        for number, (prompt, params) in enumerate(zip(self._prompts, self._params, strict=True)):
            choices = [_Choice(self._service.tokenizer, self._stops) for _ in range(params.n)]
            usage = Usage(0)
            measured = self._service.metrics.request(len(prompt), params.n)
            if self._body.echo:
                for index in range(params.n):
                    yield _Piece(number * params.n + index, self._service.tokenizer.decode(prompt))
            async with aclosing(self._service.stream(prompt, params, measured)) as deltas:
                async for delta in deltas:
                    choice = choices[delta.index]
                    if choice.finish_reason is not None:
                        continue
                    text, tokens = choice.feed(delta)
                    usage.add(delta)
                    self._usage.completion_tokens += len(tokens)
                    if choice.finish_reason is not None:
                        measured.finished(delta.index, choice.finish_reason)
                    yield _Piece(number * params.n + delta.index, text, tokens, choice.finish_reason)
                    if all(choice.finish_reason for choice in choices):
                        break
            self._usage.include(usage, first_answer=number * params.n)

    def _sampling(self, prompt: list[int]) -> SamplingParams:
        body = self._body
        grammar = read_grammar(body.response_format, body.structured_outputs, after_thinking=False)
        params = body.sampling_params(
            stop_ids=self._service.tokenizer.stop_ids, logprobs=body.logprobs, grammar=grammar
        )
        return params.replace(max_tokens=self._service.max_tokens(prompt, body.max_tokens or _DEFAULT_MAX_TOKENS))

    def _choice(self, piece: _Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": piece.index,
            "text": piece.text,
            "finish_reason": piece.finish_reason,
            "logprobs": None if self._body.logprobs is None else self._logprobs(piece.tokens),
        }
        if self._body.return_token_ids:
            choice["token_ids"] = [token.token_id for token in piece.tokens]
        return choice

    def _logprobs(self, tokens: Sequence[TokenOutput]) -> dict[str, Any]:
        decode = self._service.tokenizer.decode
        return {
            "tokens": [decode([token.token_id]) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{decode([i]): logprob for i, logprob in token.top_logprobs} for token in tokens],
        }


def read_prompts(prompt: str | list[int] | list[str] | list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """The prompts as token ids. Special tokens in a text are text; to use them, send ids.

    Raises:
        UsageError: no prompt, an empty one, or an id that is not in the vocabulary.
    """
    several = prompt if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)) else [prompt]
    prompts = [tokenizer.encode(one) if isinstance(one, str) else list(one) for one in several]  # type: ignore[arg-type]
    if not prompts or not all(prompts):
        raise UsageError("prompt: there is nothing to continue; give at least one token")
    for ids in prompts:
        tokenizer.decode_bytes(ids)  # refuses ids that do not exist
    return prompts
