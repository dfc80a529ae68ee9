"""The tokens of a conversation, found again by its messages: what was sampled or sent once is never encoded again.

    request:  m0 m1 A m2 A' m3      A' is known: prompt ids and sampled ids of its turn
    prompt:   [ids of A' turn] + [ids of m3 and of the beginning of the next turn]

An agent sends its whole history with every request. The longest beginning of it that ends with a reply of ours gives
the ids up to there, exactly as the engine had and made them; only what comes behind is rendered and encoded. A history
that does not extend a known one (a new context, a sub-agent, an edited or shortened history, dropped thoughts) is
rendered whole, and becomes a branch of its own.

Two messages are the same when the chat template writes them alike, up to what clients cannot send back: white space
around a reply, an empty thought, the ids of calls, the order of arguments, 2.0 for 2.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from glm5.rl.records import Turn
from glm5.text.markers import Generation
from glm5.text.messages import Message, Tool, ToolCall
from glm5.text.template import Segment, render_ids, render_segments
from glm5.text.thinking import ThinkingOptions
from glm5.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine is given.

    Attributes:
        key: of the conversation so far.
        reused_tokens: of `ids`, taken from an earlier turn.
    """

    ids: list[int]
    key: bytes
    reused_tokens: int


class History:
    """Every conversation of one rollout."""

    def __init__(self, tokenizer: Tokenizer, generation: Generation) -> None:
        self._tokenizer = tokenizer
        self._generation = generation
        self._turns: dict[bytes, Turn] = {}  # by the conversation that ends with the turn's reply

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool], thinking: ThinkingOptions) -> Prompt:
        """The ids of the conversation, with the beginning of the assistant's next turn.

        Raises:
            UsageError: the conversation cannot be rendered, see `glm5.text.template.render`.
        """
        root = _key(b"", json.dumps([[tool.to_openai() for tool in tools], thinking.clear_thinking]).encode())
        keys = list(accumulate((_identity(message) for message in messages), _key, initial=root))
        turn, length = self._longest(keys)
        # Under `clear_thinking` a new user message takes the thoughts before it out of the prompt.
        dropped = thinking.clear_thinking and any(message.role == "user" for message in messages[length:])
        if turn is None or dropped:
            return Prompt(self._whole(messages, tools, thinking), keys[-1], 0)
        held = turn.prompt_ids + turn.ids
        tail = self._tail(messages[length - 1], messages[length:], thinking)
        # The token that ended the turn is the one that opens the next, unless the model expected another speaker.
        repeats = held[-1] == tail[0] and held[-1] in self._tokenizer.stop_ids
        return Prompt(held + tail[repeats:], keys[-1], len(held))

    def add(self, prompt: Prompt, replies: Iterable[Message], turn: Turn) -> None:
        """Remember a turn by its reply, in each form in which the agent may have got it."""
        for reply in replies:
            self._turns[_key(prompt.key, _identity(reply))] = turn

    def _longest(self, keys: Sequence[bytes]) -> tuple[Turn | None, int]:
        """The last known turn, and the number of messages up to its reply."""
        for length in range(len(keys) - 1, 0, -1):
            if (turn := self._turns.get(keys[length])) is not None:
                return turn, length
        return None, 0

    def _whole(self, messages: Sequence[Message], tools: Sequence[Tool], thinking: ThinkingOptions) -> list[int]:
        return render_ids(
            messages,
            self._tokenizer,
            tools,
            enable_thinking=thinking.enable_thinking,
            clear_thinking=thinking.clear_thinking,
            generation=self._generation,
        )

    def _tail(self, reply: Message, new: Sequence[Message], thinking: ThinkingOptions) -> list[int]:
        """The ids of what follows `reply`, of which only the names and ids of its calls matter to the template."""
        calls = tuple(ToolCall(call.name, {}, call.id) for call in reply.tool_calls)
        stub = Message("assistant", tool_calls=calls)
        before = self._segments([stub], thinking, add_generation_prompt=False)
        after = self._segments([stub, *new], thinking, add_generation_prompt=True)
        start = sum(len(segment.text) for segment in before)
        return [i for part in _behind(after, start) for i in self._tokenizer.encode(part.text, part.is_template)]

    def _segments(
        self, messages: Sequence[Message], thinking: ThinkingOptions, add_generation_prompt: bool
    ) -> list[Segment]:
        return render_segments(
            messages,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=thinking.enable_thinking,
            clear_thinking=thinking.clear_thinking,
            generation=self._generation,
        )


def _behind(segments: Iterable[Segment], start: int) -> Iterable[Segment]:
    """The same text without its first `start` characters; behind them stands a special token, so no word is cut."""
    for segment in segments:
        if len(segment.text) > start:
            yield Segment(segment.text[start:], segment.is_template)
        start = max(0, start - len(segment.text))


def _identity(message: Message) -> bytes:
    """What makes a message the same as another, see the module."""
    text = message.content
    if message.role == "assistant":
        calls = [[call.name, _normal(call.arguments)] for call in message.tool_calls]
        text = json.dumps([text.strip(), (message.reasoning_content or "").strip(), calls], sort_keys=True)
    return f"{message.role}\0{text}".encode("utf-8", "surrogatepass")


def _normal(value: Any) -> Any:
    """The JSON value with whole floats as integers, as JavaScript writes them."""
    match value:
        case dict():
            return {key: _normal(item) for key, item in value.items()}
        case list():
            return [_normal(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def _key(before: bytes, added: bytes) -> bytes:
    """The key of a conversation that continues that of `before`; equal only for equal conversations."""
    return hashlib.blake2b(before + added, digest_size=16).digest()
