"""One assistant turn, the same for every chat surface: messages in, parsed events out.

    messages ── template ──> prompt ids ── engine ──> tokens ── parser ──> events ── stop strings ──> TurnUpdate

Each surface reads its own request into a `TurnRequest` and writes the updates in its own wire format. Stop strings are
looked for in the answer only, not in thoughts and arguments. Whatever ends a turn early (a stop string, one call when
calls must not be parallel) aborts the engine's work at that token.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from glm5.engine.records import Delta, Grammar, SamplingParams, TokenOutput
from glm5.errors import UsageError
from glm5.server.service import Service
from glm5.server.stops import StopText
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArgumentsDelta,
    ToolCallCut,
    ToolCallEnd,
    ToolCallStart,
)
from glm5.text.markers import Generation, Marker
from glm5.text.messages import Message, Tool
from glm5.text.parser import OutputParser, State
from glm5.text.streams import TokenStream
from glm5.text.template import render_ids
from glm5.text.thinking import ThinkingOptions
from glm5.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "tool_calls", "abort", "repetition", "error"]
_NEVER = -100.0  # the logit bias that OpenAI documents as a ban


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which calls a turn may make. With `mode` "named", a call of `name` and nothing else."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A chat request that no longer shows which API it came from.

    Attributes:
        params: `max_tokens` and the grammar of tool calls are filled in here.
        max_tokens: of thought and answer; None for as many as fit.
        stop: strings that end the answer.
        whole_calls: send each call only when it is complete.
    """

    messages: list[Message]
    params: SamplingParams
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    whole_calls: bool = False


@dataclass(slots=True)
class TurnUpdate:
    """What is new in one of the n answers; the last update of each has a finish reason."""

    index: int
    events: list[Event]
    tokens: list[TokenOutput]
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far; answers are summed over all n."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted: dict[int, int] = field(default_factory=dict)  # by answer
    accepted: dict[int, int] = field(default_factory=dict)

    def add(self, delta: Delta) -> None:
        """Take over what a delta says about caching and drafts."""
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.drafted[delta.index], self.accepted[delta.index] = delta.drafted, delta.accepted

    def include(self, other: "Usage", first_answer: int) -> None:
        """Take over the caching and the drafts of another prompt, whose answers are numbered from `first_answer`."""
        self.cached_tokens += other.cached_tokens
        self.drafted |= {first_answer + index: count for index, count in other.drafted.items()}
        self.accepted |= {first_answer + index: count for index, count in other.accepted.items()}

    def to_openai(self) -> dict[str, Any]:
        """The `usage` object. Draft tokens are what OpenAI calls predicted tokens."""
        drafted, accepted = sum(self.drafted.values()), sum(self.accepted.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            },
        }


class RunningTurn(Protocol):
    """What a surface writes out: `Turn`, or a turn of a rollout (`glm5.rl.gateway`).

    Attributes:
        prompt_ids: the rendered conversation.
        usage: grows while the turn runs.
    """

    prompt_ids: list[int]
    usage: Usage

    def updates(self) -> AsyncGenerator[TurnUpdate, None]:
        """Run the turn."""


class Turn:
    """A turn of a conversation that comes whole with every request; attributes as in `RunningTurn`."""

    def __init__(self, service: Service, request: TurnRequest) -> None:
        """Render the prompt.

        Raises:
            UsageError: tools, choice and structure contradict each other, or the conversation cannot be rendered.
            ApiError: the prompt leaves no room for an answer.
        """
        self._service = service
        self._request = request
        self.prompt_ids = render_prompt(service, request.messages, request.tools, request.thinking)
        self.usage = Usage(len(self.prompt_ids))
        self._params = with_tool_choice(request, service.tokenizer).replace(
            max_tokens=service.max_tokens(self.prompt_ids, request.max_tokens)
        )

    async def updates(self) -> AsyncGenerator[TurnUpdate, None]:
        """Run the turn. Raises as `Service.stream` does."""
        tokenizer, generation = self._service.tokenizer, self._service.settings.generation
        answers = [Answer(self._request, tokenizer, generation) for _ in range(self._params.n)]
        measured = self._service.metrics.request(len(self.prompt_ids), len(answers))
        deltas = self._service.stream(self.prompt_ids, self._params, measured)
        async with aclosing(deltas):
            async for delta in deltas:
                answer = answers[delta.index]
                if answer.finish_reason is not None:
                    continue
                self.usage.add(delta)
                events, tokens = answer.feed(delta)
                self.usage.completion_tokens += len(tokens)
                self.usage.reasoning_tokens += answer.take_reasoning_tokens()
                if answer.finish_reason is not None:
                    measured.finished(delta.index, answer.finish_reason)
                yield TurnUpdate(delta.index, merged(events), tokens, answer.finish_reason, answer.stop_sequence)
                if all(answer.finish_reason for answer in answers):
                    return


class Answer:
    """Parses one of the n answers.

    Attributes:
        finish_reason: None until the answer has ended.
    """

    def __init__(self, request: TurnRequest, tokenizer: Tokenizer, generation: Generation) -> None:
        self.finish_reason: FinishReason | None = None
        self._parser = OutputParser(request.tools, thinking=request.thinking.enable_thinking, generation=generation)
        self._stream = TokenStream(self._parser, tokenizer)
        self._ends = frozenset(tokenizer.stop_ids)
        self._stops = StopText(request.stop)
        self._one_call = not request.tool_choice.parallel
        self._whole_calls = request.whole_calls
        self._calls = 0  # that are complete
        self._held_calls: list[Event] = []
        self._reasoning_tokens = 0

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def take_reasoning_tokens(self) -> int:
        """Tokens of thought since the last call of this."""
        count, self._reasoning_tokens = self._reasoning_tokens, 0
        return count

    def feed(self, delta: Delta) -> tuple[list[Event], list[TokenOutput]]:
        """What a delta adds: events that may be shown, and the tokens that were used for them."""
        events: list[Event] = []
        for position, token in enumerate(delta.tokens):
            # End tokens are no part of the answer, neither those of the request's own choosing nor, under
            # `ignore_eos`, those in the middle of it.
            if token.token_id not in self._ends and token.token_id != delta.stop_matched:
                self._reasoning_tokens += self._parser.state is State.REASONING
                events += self._shown(self._stream.feed([token.token_id]))
            if self.finish_reason is not None:
                return events, delta.tokens[: position + 1]
        if delta.finish_reason is not None:
            events += self._shown(self._stream.finish(truncated=delta.finish_reason != "stop"))
            events += _content(self._stops.flush())
            if self.finish_reason is None:
                is_call = self._calls > 0 and delta.finish_reason == "stop"
                self.finish_reason = "tool_calls" if is_call else delta.finish_reason
        return events, delta.tokens

    def _shown(self, events: Iterable[Event]) -> list[Event]:
        """The events without what the request wants held back; sets the finish reason where they must end."""
        shown: list[Event] = []
        for event in events:
            if self.finish_reason is not None:
                break
            if isinstance(event, ContentDelta):
                shown += _content(self._stops.feed(event.text))
                if self._stops.matched is not None:
                    self.finish_reason = "stop"
                continue
            shown += _content(self._stops.flush())
            shown += self._call_events(event)
            if isinstance(event, ToolCallEnd):
                self._calls += 1
                if self._one_call:
                    self.finish_reason = "tool_calls"
        return shown

    def _call_events(self, event: Event) -> list[Event]:
        """The event itself, or nothing until its call is complete if calls are wanted whole."""
        if not self._whole_calls or not isinstance(
            event, ToolCallStart | ToolCallArgumentsDelta | ToolCallEnd | ToolCallCut
        ):
            return [event]
        if isinstance(event, ToolCallCut):
            self._held_calls = []
            return []
        self._held_calls.append(event)
        if not isinstance(event, ToolCallEnd):
            return []
        complete, self._held_calls = self._held_calls, []
        return complete


def render_prompt(
    service: Service, messages: list[Message], tools: tuple[Tool, ...], thinking: ThinkingOptions
) -> list[int]:
    """The prompt of the assistant's next turn as token ids. Raises UsageError as `render_ids` does."""
    return render_ids(
        messages,
        service.tokenizer,
        tools,
        enable_thinking=thinking.enable_thinking,
        clear_thinking=thinking.clear_thinking,
        generation=service.settings.generation,
    )


def merged(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring pieces of the same text joined, as several tokens a step make them."""
    joined: list[Event] = []
    for event in events:
        match joined[-1] if joined else None, event:
            case ReasoningDelta(before), ReasoningDelta(text):
                joined[-1] = ReasoningDelta(before + text)
            case ContentDelta(before), ContentDelta(text):
                joined[-1] = ContentDelta(before + text)
            case ToolCallArgumentsDelta(index, before), ToolCallArgumentsDelta(same, text) if index == same:
                joined[-1] = ToolCallArgumentsDelta(index, before + text)
            case _:
                joined.append(event)
    return joined


def _content(text: str) -> list[Event]:
    return [ContentDelta(text)] if text else []


def with_tool_choice(request: TurnRequest, tokenizer: Tokenizer) -> SamplingParams:
    """The request's parameters, with what the tool choice forces or forbids.

    "none" leaves the tools in the prompt, whose cached prefix stays good, and bans the token that begins a call.

    Raises:
        UsageError: tools, choice and structure contradict each other.
    """
    choice, params = request.tool_choice, request.params
    if choice.mode == "none":
        begin = tokenizer.special_ids[Marker.TOOL_CALL]
        return params.replace(logit_bias={**params.logit_bias, begin: _NEVER})
    if params.grammar is not None and request.tools:
        raise UsageError("a response format leaves no way to call tools; send tool_choice 'none' with it, or no tools")
    if choice.mode == "auto":
        return params
    tools = [tool for tool in request.tools if choice.mode == "required" or tool.name == choice.name]
    if not tools:
        known = ", ".join(tool.name for tool in request.tools) or "none"
        raise UsageError(f"tool_choice: there is no tool {choice.name!r} to call; the tools are: {known}")
    functions = [{"name": tool.name, "parameters": tool.parameters} for tool in tools]
    value = {"tools": functions, "parallel": choice.parallel and choice.mode == "required"}
    return params.replace(grammar=Grammar("tool_calls", value, after_thinking=request.thinking.enable_thinking))
