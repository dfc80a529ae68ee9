"""Tokens in, tokens out: for training, which must never encode its own text again, and for looking at the encoding.

`/generate` continues ids and returns ids, each with its log-probability under the model itself and the version of the
weights that made it. It samples the bare distribution unless told otherwise.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from glm5.engine.records import Completion, Delta, TokenOutput
from glm5.errors import UsageError
from glm5.server.chat import read_thinking, read_tools
from glm5.server.completions import read_prompts
from glm5.server.errors import as_api_error, error_body
from glm5.server.sampling import Body, SamplingBody, StructuredOutputs, read_grammar
from glm5.server.service import Service
from glm5.server.sse import DONE, EventStream, event, json_reply, while_connected
from glm5.server.turn import render_prompt
from glm5.text.messages import conversation_from_openai

PATH = "/generate"


class GenerateBody(SamplingBody):
    """The body of a generate request."""

    input_ids: list[int] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    temperature: float | None = Field(1.0, ge=0)
    top_p: float | None = Field(1.0, gt=0, le=1)
    logprobs: int = Field(0, ge=0)
    prompt_logprobs: int | None = Field(None, ge=0)
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: int | None = Field(None, ge=0)
    stream: bool = False


class TokenizeBody(Body):
    """The body of a tokenize request: a text, or a conversation to be rendered."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Body):
    """The body of a detokenize request."""

    model: str | None = None
    tokens: list[int]


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(PATH)
    async def generate(body: GenerateBody, request: Request) -> Response:
        service.model_name(body.model)
        answer = _Generation(service, body, request.state.request_id)
        if body.stream:
            return EventStream(answer.chunks(), answer.failure, service.settings.send_timeout)
        return json_reply(await while_connected(request, answer.whole()))

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        service.model_name(body.model)
        ids = _tokenize(service, body)
        return json_reply({"tokens": ids, "count": len(ids), "max_model_len": service.settings.context_length})

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        service.model_name(body.model)
        return json_reply({"prompt": service.tokenizer.decode_bytes(body.tokens).decode("utf-8", "replace")})

    return routes


class _Generation:
    """Runs a prompt and writes its tokens as they are."""

    def __init__(self, service: Service, body: GenerateBody, request_id: str) -> None:
        [self._prompt_ids] = read_prompts(body.input_ids, service.tokenizer)
        self._service = service
        self._request_id = request_id
        params = body.sampling_params(
            stop_ids=service.tokenizer.stop_ids,
            logprobs=body.logprobs,
            grammar=read_grammar(None, body.structured_outputs, after_thinking=False),
            thinking_budget=body.thinking_token_budget,
        )
        self._params = params.replace(
            max_tokens=service.max_tokens(self._prompt_ids, body.max_tokens),
            stop=body.stop_strings(),
            prompt_logprobs=body.prompt_logprobs,
            repetition_guard=None,  # training wants the model's own behaviour
        )

    async def whole(self) -> dict[str, Any]:
        """All completions as one object."""
        completions = [Completion(index) for index in range(self._params.n)]
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                completions[delta.index].add(delta)
        return {
            "id": self._request_id,
            "prompt_tokens": len(self._prompt_ids),
            "cached_tokens": completions[0].cached_tokens,
            "weight_version": self._service.engine.version,
            "choices": [_choice(completion) for completion in completions],
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """One event for every delta."""
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                counts = {"prompt_tokens": delta.prompt_tokens, "cached_tokens": delta.cached_tokens}
                yield event({"id": self._request_id, **counts, "choices": [_choice(delta)]})
        yield DONE

    def failure(self, error: Exception) -> bytes:
        """The event that ends a stream which failed after it had begun."""
        return event(error_body(as_api_error(error), PATH, self._request_id))

    def _deltas(self) -> AsyncGenerator[Delta, None]:
        measured = self._service.metrics.request(len(self._prompt_ids), self._params.n)
        return self._service.stream(self._prompt_ids, self._params, measured)


def _choice(part: Completion | Delta) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": part.index,
        "ids": [token.token_id for token in part.tokens],
        "logprobs": [token.logprob for token in part.tokens],
        "versions": [token.version for token in part.tokens],
        "finish_reason": part.finish_reason,
        "stop_matched": part.stop_matched,
        "drafted": part.drafted,
        "accepted": part.accepted,
    }
    if any(token.top_logprobs for token in part.tokens):
        choice["top_logprobs"] = [token.top_logprobs for token in part.tokens]
    if part.prompt_logprobs:
        choice["prompt_logprobs"] = [_prompt_token(token) for token in part.prompt_logprobs]
    return choice


def _prompt_token(token: TokenOutput | None) -> dict[str, Any] | None:
    if token is None:
        return None
    return {"id": token.token_id, "logprob": token.logprob, "top_logprobs": token.top_logprobs}


def _tokenize(service: Service, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise UsageError("give either prompt or messages")
    if body.prompt is not None:
        return service.tokenizer.encode(body.prompt)
    thinking = read_thinking(
        {"thinking": body.thinking, "chat_template_kwargs": body.chat_template_kwargs}, effort=None
    )
    return render_prompt(service, conversation_from_openai(body.messages or []), read_tools(body.tools), thinking)
