"""Token in, token out: agents speak messages, engines speak token ids, and the gateway keeps the ids of both.

    agent ── messages ──> history ── ids ──> engine ── ids, log-probs, versions ──> Turn in the trajectory
      ^                                                     │
      └────────────────────── message ◄── parser ◄──────────┘

What is trained on is what was sampled: text is encoded once, when it first comes in, and never again (GLM-5 report
§4.1.2). An agent talks to its rollout through `GatewayEndpoint`, or over HTTP through `glm5.rl.gateway_http`.

How a rollout is sampled is the recipe's decision: nothing is truncated, penalised or cut short by a thinking budget,
because the log-probabilities that are trained on are those of the whole distribution. A temperature that an agent sets
is respected, and so is what its tool choice and response format demand; its top_p, penalties and seed are not used.

The gateway belongs to one event loop and needs no lock.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from glm5.agents.endpoint import EndpointError, Reply
from glm5.engine.records import Delta, SamplingParams, TokenOutput
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation
from glm5.rl.engines.pool import EnginePool
from glm5.rl.gateway_history import History
from glm5.rl.records import Trajectory, Turn
from glm5.server.turn import Answer, TurnRequest, TurnUpdate, Usage, merged, with_tool_choice
from glm5.text.events import ReasoningRetracted, collect
from glm5.text.markers import GENERATIONS
from glm5.text.markers import Generation as ChatLayout
from glm5.text.messages import Message, Tool
from glm5.text.thinking import ThinkingOptions
from glm5.text.tokenizer import Tokenizer

_REMEMBERED = 1 << 16  # closed rollouts that are still told from unknown ones


class UnknownRollout(UsageError):
    """No rollout with this id was opened."""


class ClosedRollout(UsageError):
    """The rollout has ended; what its agent still asks for comes too late."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How rollouts are sampled.

    Attributes:
        context_length: tokens of prompt and reply together; a turn that reaches it ends with "length".
        max_tokens: of one reply; agents may ask for less.
        temperature: where the agent sets none.
        enable_thinking, clear_thinking: where the agent says nothing. Thoughts of earlier turns are kept, so that every
            prompt extends the one before.
    """

    context_length: int
    max_tokens: int
    temperature: float = 1.0
    enable_thinking: bool = True
    clear_thinking: bool = False

    def __post_init__(self) -> None:
        if self.context_length < 2 or self.max_tokens < 1:
            raise UsageError(
                f"gateway: context_length = {self.context_length} must be at least 2 and max_tokens = "
                f"{self.max_tokens} at least 1"
            )
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"gateway: temperature = {self.temperature} must be a finite number, 0 or more")

    @property
    def thinking(self) -> ThinkingOptions:
        """What holds where the agent says nothing."""
        return ThinkingOptions(self.enable_thinking, self.clear_thinking)


@dataclass(slots=True)
class Rollout:
    """An open rollout.

    Attributes:
        temperature: that holds for it in place of the settings'.
        seed: of its first turn; the following ones count up. None leaves the draw to the engine.
        reused_tokens: of all prompts so far, taken over without encoding.
    """

    trajectory: Trajectory
    history: History
    temperature: float
    seed: int | None
    turns_begun: int = 0
    reused_tokens: int = 0


class Gateway:
    """One conversation store for every rollout.

    Attributes:
        settings: of all rollouts.
        tokenizer, generation: which decide how messages become tokens.
    """

    def __init__(
        self, engines: EnginePool, tokenizer: Tokenizer, generation: ChatLayout, settings: GatewaySettings
    ) -> None:
        """Serve rollouts with `engines`. Raises UsageError for an unknown chat layout."""
        if generation not in GENERATIONS:
            raise UsageError(f"generation {generation!r}: choose one of {', '.join(GENERATIONS)}")
        self.settings = settings
        self.tokenizer = tokenizer
        self.generation = generation
        self._engines = engines
        self._open: dict[str, Rollout] = {}
        self._closed: dict[str, None] = {}  # in order of closing

    def open(self, trajectory: Trajectory, *, seed: int | None = None, temperature: float | None = None) -> None:
        """Begin a rollout: what is sampled for it becomes turns of `trajectory`.

        Args:
            seed: makes its draws repeatable. temperature: in place of the settings', such as 0 for an evaluation.

        Raises:
            UsageError: its id is open already.
        """
        name = trajectory.rollout_id
        if name in self._open:
            raise UsageError(f"rollout {name} is open already; a rollout id is used once")
        self._closed.pop(name, None)
        self._open[name] = Rollout(
            trajectory,
            History(self.tokenizer, self.generation),
            self.settings.temperature if temperature is None else temperature,
            seed,
        )

    def close(self, rollout_id: str) -> Trajectory:
        """End a rollout; replies that are under way are no part of it any more.

        Raises:
            UsageError: it is not open.
        """
        trajectory = self.rollout(rollout_id).trajectory
        del self._open[rollout_id]
        self._engines.release(rollout_id)
        self._closed[rollout_id] = None
        if len(self._closed) > _REMEMBERED:
            del self._closed[next(iter(self._closed))]
        return trajectory

    def rollout(self, rollout_id: str) -> Rollout:
        """An open rollout. Raises UnknownRollout or ClosedRollout (both UsageError)."""
        if rollout_id in self._open:
            return self._open[rollout_id]
        if rollout_id in self._closed:
            raise ClosedRollout(f"rollout {rollout_id} is closed: its result has been taken")
        raise UnknownRollout(f"there is no rollout {rollout_id}; open it before its agent starts")

    def turn(self, rollout_id: str, request: TurnRequest, temperature: float | None = None) -> "GatewayTurn":
        """The next turn of a rollout, ready to run. Of `request.params` only the grammar is used.

        Raises:
            UsageError: the rollout is not open, or the request cannot be served as asked.
        """
        return GatewayTurn(self, rollout_id, request, temperature)

    async def chat(
        self,
        rollout_id: str,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        thinking: bool | None = None,
        stop: tuple[str, ...] = (),
    ) -> Reply:
        """One turn as a record; None means the rollout's settings.

        Raises:
            UsageError: as `turn`. GLM5Error: the engine failed.
        """
        options = self.settings.thinking
        request = TurnRequest(
            messages=list(messages),
            params=SamplingParams(),
            tools=tuple(tools),
            thinking=options if thinking is None else replace(options, enable_thinking=thinking),
            max_tokens=max_tokens,
            stop=stop,
        )
        turn = self.turn(rollout_id, request, temperature)
        [update] = [update async for update in turn.updates()]
        return Reply(
            collect(update.events),
            update.finish_reason or "error",
            turn.usage.prompt_tokens,
            turn.usage.completion_tokens,
            turn.usage.cached_tokens,
        )

    async def sample(self, rollout_id: str, prompt_ids: list[int], params: SamplingParams) -> tuple[str, Generation]:
        """What the rollout's engine makes of a prompt, and its name. Raises as `EnginePool.generate`."""
        return await self._engines.generate(rollout_id, prompt_ids, params)


class GatewayTurn:
    """One turn of a rollout, as the server's surfaces write it out (`glm5.server.turn.RunningTurn`)."""

    def __init__(self, gateway: Gateway, rollout_id: str, request: TurnRequest, temperature: float | None) -> None:
        if request.params.n != 1:
            raise UsageError("n: a turn of a rollout has one answer")
        self._gateway = gateway
        self._rollout_id = rollout_id
        # What a client puts together from a stream has to be what is stored, so no half of a call is ever sent.
        self._request = replace(request, whole_calls=True)
        self._rollout = rollout = gateway.rollout(rollout_id)
        self._prompt = rollout.history.prompt(request.messages, request.tools, request.thinking)
        self.prompt_ids = self._prompt.ids
        self.usage = Usage(len(self.prompt_ids))
        settings = gateway.settings
        self._room = min(
            request.max_tokens or settings.max_tokens,
            settings.max_tokens,
            settings.context_length - len(self.prompt_ids),
        )
        sampling = SamplingParams(
            max_tokens=max(self._room, 1),
            temperature=rollout.temperature if temperature is None else temperature,
            stop_ids=gateway.tokenizer.stop_ids,
            logprobs=0,
            seed=None if rollout.seed is None else rollout.seed + rollout.turns_begun,
            grammar=request.params.grammar,
        )
        self._params = with_tool_choice(replace(self._request, params=sampling), gateway.tokenizer)
        rollout.turns_begun += 1
        rollout.reused_tokens += self._prompt.reused_tokens

    async def updates(self) -> AsyncGenerator[TurnUpdate, None]:
        """Sample, record, and say it all at once. A context that is full gives an empty reply, cut by "length".

        Raises:
            UsageError: the engine cannot do what the request asks for, or the rollout was closed meanwhile.
            GLM5Error: the engine failed.
        """
        if self._room < 1:
            yield TurnUpdate(0, [], [], "length")
            return
        engine, made = await self._gateway.sample(self._rollout_id, self.prompt_ids, self._params)
        answer = Answer(self._request, self._gateway.tokenizer, self._gateway.generation)
        tokens = [
            TokenOutput(token_id, logprob, version=version)
            for token_id, logprob, version in zip(made.ids, made.logprobs, made.versions, strict=True)
        ]
        delta = Delta("", 0, tokens, made.finish_reason, len(self.prompt_ids), made.cached_tokens)
        events, used = answer.feed(delta)
        self.usage.add(delta)
        self.usage.completion_tokens = len(used)
        self.usage.reasoning_tokens = answer.take_reasoning_tokens()
        update = TurnUpdate(0, merged(events), used, answer.finish_reason, answer.stop_sequence)
        self._record(update, engine, made)
        yield update

    def _record(self, update: TurnUpdate, engine: str, made: Generation) -> None:
        """Keep the turn, up to the token at which a stop string or a call ended it."""
        if self._gateway.rollout(self._rollout_id) is not self._rollout:
            raise ClosedRollout(f"rollout {self._rollout_id} was closed and opened again while this reply was made")
        count = len(update.tokens)
        if count == 0:
            return
        turn = Turn(
            self.prompt_ids,
            made.ids[:count],
            made.logprobs[:count],
            made.versions[:count],
            update.finish_reason or "error",
            engine,
        )
        self._rollout.trajectory.turns.append(turn)
        # In a stream a thought that turned out to be the answer cannot be taken back.
        streamed = collect(event for event in update.events if not isinstance(event, ReasoningRetracted))
        self._rollout.history.add(self._prompt, (streamed, collect(update.events)), turn)


class GatewayEndpoint:
    """`glm5.agents.endpoint.Endpoint` for one rollout, in process."""

    def __init__(self, gateway: Gateway, rollout_id: str) -> None:
        self._gateway = gateway
        self._rollout_id = rollout_id

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
        """One turn; None means the rollout's settings.

        Raises:
            EndpointError: the engine failed, the rollout is over, or the conversation cannot be rendered.
        """
        try:
            return await self._gateway.chat(
                self._rollout_id,
                messages,
                tools,
                max_tokens=max_tokens,
                temperature=temperature,
                thinking=thinking,
                stop=stop,
            )
        except GLM5Error as error:
            raise EndpointError(str(error)) from error
