"""An engine without a network: it answers with what it was told to, as the tokens a model would have written.

For testing an agent or a client against the real server: every surface, the parser and the streams behave as they do
with a model, only the words are known beforehand. `requests` holds what the engine was asked.

    call = Message("assistant", tool_calls=(ToolCall("look", {"where": "here"}),))
    engine = ScriptedEngine(tokenizer, [call, Message("assistant", "It is here.")])
    app = create_app(engine, tokenizer, ServerSettings(("glm-5",), context_length=4096))
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from glm5.engine.records import Delta, EngineStats, SamplingParams, TokenOutput
from glm5.errors import UsageError
from glm5.text.markers import Generation, Marker
from glm5.text.messages import Message
from glm5.text.template import render_ids
from glm5.text.tokenizer import Tokenizer

Reply = Message | Sequence[int]
"""What to answer: a message, or the very tokens."""


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What the engine was asked."""

    prompt_ids: list[int]
    params: SamplingParams


class ScriptedEngine:
    """Answers requests with `replies`, one after the other.

    Attributes:
        requests: all requests so far.
        version: of the weights, for there is always one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        replies: Iterable[Reply],
        *,
        generation: Generation = "glm-5",
        tokens_per_step: int = 1,
        seconds_per_step: float = 0.0,
    ) -> None:
        """Take the script.

        Args:
            replies: may be endless (`itertools.cycle`). A message is cut to what the request allows: without its
                thought when thinking is switched off.
            tokens_per_step: several come at once when drafts are accepted.
            seconds_per_step: how long a step takes.
        """
        self.requests: list[ScriptedRequest] = []
        self.version = 0
        self._tokenizer = tokenizer
        self._replies = iter(replies)
        self._generation = generation
        self._tokens_per_step = tokens_per_step
        self._seconds_per_step = seconds_per_step
        self._stats = EngineStats()
        self._last_ids: list[int] = []  # of the last request that was answered, for cached_tokens

    def stats(self) -> EngineStats:
        """Counters; there are no pages."""
        return self._stats

    async def stream(self, prompt_ids: list[int], params: SamplingParams, /) -> AsyncGenerator[Delta, None]:
        """The next `params.n` replies. `cached_tokens` is what the prompt shares with the last request.

        Raises:
            UsageError: the script is at its end.
        """
        self.requests.append(ScriptedRequest(prompt_ids, params))
        name = f"request-{len(self.requests)}"
        cached = _common_prefix(prompt_ids, self._last_ids)
        replies = [self._next_reply(prompt_ids, params) for _ in range(params.n)]
        self._stats.prompt_tokens += len(prompt_ids)
        self._stats.cached_tokens += cached
        self._stats.running += params.n
        running = set(range(params.n))
        try:
            for start in range(0, params.max_tokens, self._tokens_per_step):
                await asyncio.sleep(self._seconds_per_step)
                for index in sorted(running):
                    ids = replies[index][start : min(start + self._tokens_per_step, params.max_tokens)]
                    is_cut = start + len(ids) == params.max_tokens and len(replies[index]) > params.max_tokens
                    is_last = is_cut or start + len(ids) == len(replies[index])
                    if is_last:
                        running.discard(index)
                        self._stats.running -= 1
                    self._stats.generated_tokens += len(ids)
                    stopped = is_last and not is_cut
                    yield Delta(
                        name,
                        index,
                        [self._token(token_id, params) for token_id in ids],
                        finish_reason=("length" if is_cut else "stop") if is_last else None,
                        prompt_tokens=len(prompt_ids),
                        cached_tokens=cached,
                        stop_matched=ids[-1] if stopped and ids[-1] in params.stop_ids else None,
                    )
                if not running:
                    break
        finally:
            self._last_ids = [*prompt_ids, *replies[0][: params.max_tokens]]
            self._stats.running -= len(running)

    def _next_reply(self, prompt_ids: list[int], params: SamplingParams) -> list[int]:
        reply = next(self._replies, None)
        if reply is None:
            raise UsageError(f"the script has {len(self.requests) - 1} replies, and this request needs one more")
        ids = self._message_ids(prompt_ids, reply) if isinstance(reply, Message) else list(reply)
        if not ids:
            raise UsageError("a scripted reply needs at least one token")
        return ids

    def _message_ids(self, prompt_ids: list[int], message: Message) -> list[int]:
        """What a model that wants to say `message` writes behind the prompt, with the stop token."""
        special = self._tokenizer.special_ids
        think, end_think = special[Marker.THINK], special[Marker.END_THINK]
        opening = [prompt_ids[-1]] if prompt_ids[-1:] in ([think], [end_think]) else []
        if opening == [end_think]:
            message = Message("assistant", message.content, None, message.tool_calls)
        history = [Message("user", "")]
        before = render_ids(history, self._tokenizer, add_generation_prompt=False, generation=self._generation)
        after = render_ids(
            [*history, message], self._tokenizer, add_generation_prompt=False, generation=self._generation
        )
        turn = after[len(before) + 1 :]  # without <|assistant|>
        if opening and turn[:1] == opening:
            turn = turn[1:]
        return [*turn, special["<|observation|>" if message.tool_calls else "<|user|>"]]

    def _token(self, token_id: int, params: SamplingParams) -> TokenOutput:
        if params.logprobs is None:
            return TokenOutput(token_id, version=self.version)
        return TokenOutput(token_id, 0.0, [(token_id, 0.0)][: params.logprobs], self.version)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
