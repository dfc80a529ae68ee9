"""What every surface works with: an engine, a tokenizer, the settings, and one way to run a prompt that is measured."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from glm5.engine.records import Delta, EngineStats, SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.server.errors import ApiError
from glm5.server.gate import Gate
from glm5.server.metrics import Metrics, RequestMetrics
from glm5.text.markers import GENERATIONS, Generation
from glm5.text.parser import OutputParser
from glm5.text.streams import TokenStream
from glm5.text.tokenizer import Tokenizer


class TokenEngine(Protocol):
    """What the server needs of an engine: `glm5.engine.Engine`, or `glm5.server.scripted.ScriptedEngine`."""

    @property
    def version(self) -> int:
        """Of the weights."""

    def stream(self, prompt_ids: list[int], params: SamplingParams, /) -> AsyncGenerator[Delta, None]:
        """The completions of one prompt as they grow; closing the generator aborts them and gives up their pages."""

    def stats(self) -> EngineStats:
        """Gauges and counters."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How one server answers.

    Attributes:
        model_names: the names it answers to; the first one is its own.
        context_length: tokens of prompt and answer together, at most.
        generation: the chat layout that the model was trained on.
        api_keys: any of them opens the door; none, and it is open.
        max_body_bytes: of one request.
        max_in_flight: requests at once; more are told to come back later.
        send_timeout: seconds after which a client that does not read is dropped.
    """

    model_names: tuple[str, ...]
    context_length: int
    generation: Generation = "glm-5"
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    max_in_flight: int = 512
    send_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise UsageError("the served model needs a name")
        if self.generation not in GENERATIONS:
            raise UsageError(f"generation {self.generation!r}: choose one of {', '.join(GENERATIONS)}")
        if not all(self.api_keys):
            raise UsageError("an API key must not be empty")


class Service:
    """The engine with everything a surface needs around it.

    Attributes:
        gate: counts what is in flight.
        metrics: what Prometheus reads.
    """

    def __init__(self, engine: TokenEngine, tokenizer: Tokenizer, settings: ServerSettings) -> None:
        """Put them together. Raises GLM5Error when the tokenizer lacks the markers of a GLM conversation."""
        TokenStream(OutputParser(), tokenizer)
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.gate = Gate(settings.max_in_flight)
        self.metrics = Metrics(engine.stats, settings.model_names[0])

    def model_name(self, asked: str | None) -> str:
        """The name to answer under. Raises ApiError (404) when this server has no such model."""
        if asked is None:
            return self.settings.model_names[0]
        if asked not in self.settings.model_names:
            known = ", ".join(self.settings.model_names)
            raise ApiError(
                404,
                f"the model '{asked}' does not exist here; there is: {known}",
                code="model_not_found",
                param="model",
            )
        return asked

    def max_tokens(self, prompt_ids: Sequence[int], asked: int | None) -> int:
        """How long the answer may become: what was asked for, and no more than fits behind the prompt.

        Coding agents ask for their model's usual maximum whatever the context; an answer that reaches the end of the
        context ends with the finish reason "length".

        Raises:
            ApiError: 400, the prompt leaves no room for an answer.
        """
        room = self.settings.context_length - len(prompt_ids)
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {len(prompt_ids)} tokens; with room for one token of answer, this model's maximum "
                f"context length of {self.settings.context_length} tokens allows {self.settings.context_length - 1}",
                code="context_length_exceeded",
                param="messages",
            )
        return room if asked is None else min(asked, room)

    async def stream(
        self, prompt_ids: list[int], params: SamplingParams, measured: RequestMetrics
    ) -> AsyncGenerator[Delta, None]:
        """The engine's deltas, measured on their way. Closing it aborts the request and frees its pages.

        Raises:
            UsageError: the engine refuses the request, before its first delta.
            GLM5Error: the engine failed.
        """
        unfinished = "abort"
        try:
            async with aclosing(self.engine.stream(prompt_ids, params)) as deltas:
                async for delta in deltas:
                    measured.delta(delta)
                    if delta.finish_reason == "error":
                        raise GLM5Error("the engine failed while writing the answer")
                    yield delta
        except GLM5Error:
            unfinished = "error"
            raise
        finally:
            measured.end(unfinished)


def shown_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """What a sampled token shows; U+FFFD for a row of the network behind the last token of its tokenizer."""
    return tokenizer.token_bytes(token_id) if tokenizer.is_token(token_id) else "\ufffd".encode()
