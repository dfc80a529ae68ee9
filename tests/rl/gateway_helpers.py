"""What the tests of the gateway share: a small tokenizer that counts, and gateways that answer by script."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from glm5.rl.engines.pool import EnginePool
from glm5.rl.engines.scripted import ScriptedRolloutEngine
from glm5.rl.gateway import Gateway, GatewaySettings
from glm5.rl.records import Trajectory
from glm5.text.messages import Message, Tool
from glm5.text.tokenizer import Tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 4, '{"a": [1, 2, 3]}\n' * 9]
TOOLS = (
    Tool(
        "f",
        "Does it.",
        {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "number"}, "u": {"type": "object"}}},
    ),
    Tool("g"),
)


class CountingTokenizer(Tokenizer):
    """Counts the characters it encodes."""

    encoded_characters = 0

    def encode(self, text: str | bytes, allow_special: bool = False) -> list[int]:
        self.encoded_characters += len(text)
        return super().encode(text, allow_special)


@cache
def tokenizer() -> CountingTokenizer:
    trained = CountingTokenizer.train(TEXTS, 312)
    assert isinstance(trained, CountingTokenizer)
    return trained


def written(text: str) -> list[int]:
    """The ids of what a model wrote, markers and end token included."""
    return tokenizer().encode(text, allow_special=True)


def trajectory(rollout_id: str = "r") -> Trajectory:
    return Trajectory(rollout_id, "task", "test", "group")


def scripted(
    replies: Iterable[Any], *, generation: Any = "glm-5", seconds: float = 0.0, **settings: Any
) -> tuple[Gateway, ScriptedRolloutEngine]:
    """A gateway with rollout "r" open, and its engine."""
    engine = ScriptedRolloutEngine("e", tokenizer(), replies, generation=generation, seconds=seconds)
    known = GatewaySettings(**{"context_length": 1 << 16, "max_tokens": 1 << 12, **settings})
    gateway = Gateway(EnginePool([engine]), tokenizer(), generation, known)
    gateway.open(trajectory())
    return gateway, engine


def through_json(messages: Iterable[Message]) -> list[Any]:
    """As an agent in another language holds its history: plain JSON, keys of arguments sorted anew."""
    raw = [message.to_openai() for message in messages]
    for message in raw:
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            call["function"]["arguments"] = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    return json.loads(json.dumps(raw))
