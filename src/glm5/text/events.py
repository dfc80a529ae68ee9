"""What a model's turn consists of while it is being written: small events, in the order in which they become certain.

The fragments of one call's arguments concatenate to their JSON. `collect` makes the finished `Message` of the events.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from glm5.text.messages import Message, ToolCall


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the thought. A thought that was closed without a word is one delta with no text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningRetracted:
    """What came as reasoning so far was the answer: the model stopped by itself and never closed a thought.

    The same text follows as one `ContentDelta`.
    """


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call whose name is complete. `index` counts the calls of this turn from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArgumentsDelta:
    """More of the JSON of the arguments of call `index`."""

    index: int
    json_fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """Call `index` is complete and its arguments are valid JSON."""

    index: int


@dataclass(frozen=True, slots=True)
class ToolCallCut:
    """The stream ended inside call `index`, which must not be executed; `text` is what was read but not yet sent."""

    index: int
    text: str


Event = (
    ReasoningDelta
    | ReasoningRetracted
    | ContentDelta
    | ToolCallStart
    | ToolCallArgumentsDelta
    | ToolCallEnd
    | ToolCallCut
)


def collect(events: Iterable[Event]) -> Message:
    """The assistant message that the events of one whole turn describe; a call that never ended is left out."""
    reasoning: list[str] | None = None
    content: list[str] = []
    starts: dict[int, ToolCallStart] = {}
    fragments: dict[int, list[str]] = {}
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case ReasoningDelta(text):
                reasoning = reasoning or []
                reasoning.append(text)
            case ReasoningRetracted():
                reasoning = None
            case ContentDelta(text):
                content.append(text)
            case ToolCallStart(index):
                starts[index], fragments[index] = event, []
            case ToolCallArgumentsDelta(index, fragment):
                fragments[index].append(fragment)
            case ToolCallEnd(index):
                start = starts[index]
                calls.append(ToolCall(start.name, json.loads("".join(fragments[index])), start.id))
    return Message(
        "assistant",
        content="".join(content),
        reasoning_content=None if reasoning is None else "".join(reasoning),
        tool_calls=tuple(calls),
    )
