"""One state machine for everything a model writes in its turn: thought, answer and tool calls.

    REASONING ──</think>──> CONTENT ──<tool_call>──> NAME ──<arg_key>──> KEY ──</arg_key>──> AFTER_KEY
        └───────<tool_call>────^──────────────────────┘  ^                                       │ <arg_value>
                               └──</tool_call>── ARGUMENTS ──<arg_key>──> KEY                  VALUE
                                                     ^──────────────</arg_value>─────────────────┘

It is fed text and markers by a stream (`streams.py`), which knows markers by their token ids or finds them in text.
Each state heeds only the markers listed for it in `HEEDED`; any other marker is literal text there, so the value of an
argument may contain everything but `</arg_value>`. What turns out not to be part of a well-formed call goes back to
where it came from. Nothing is lost except white space between the tags of a call and, in GLM-4.5's layout, the one
newline that the layout puts before and after a block.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from enum import Enum, auto

from glm5.text.arguments import ArgumentsWriter
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ReasoningRetracted,
    ToolCallArgumentsDelta,
    ToolCallCut,
    ToolCallEnd,
    ToolCallStart,
)
from glm5.text.markers import Generation, Marker
from glm5.text.messages import Tool


class State(Enum):
    """What the next text belongs to."""

    REASONING = auto()
    CONTENT = auto()
    NAME = auto()  # behind <tool_call>; nothing is sent before the name is known to be one
    ARGUMENTS = auto()  # inside a call, between its pairs
    KEY = auto()
    AFTER_KEY = auto()
    VALUE = auto()


HEEDED: dict[State, tuple[Marker, ...]] = {
    State.REASONING: (Marker.THINK, Marker.END_THINK, Marker.TOOL_CALL),
    State.CONTENT: (Marker.THINK, Marker.END_THINK, Marker.TOOL_CALL),
    State.NAME: (Marker.ARG_KEY, Marker.END_TOOL_CALL),
    State.ARGUMENTS: (Marker.ARG_KEY, Marker.END_TOOL_CALL, Marker.TOOL_CALL),
    State.KEY: (Marker.END_ARG_KEY,),
    State.AFTER_KEY: (Marker.ARG_VALUE,),
    State.VALUE: (Marker.END_ARG_VALUE,),
}

# As much of a name as can have come so far. The bounds keep prose that mentions <tool_call> from being held back long.
_NAME_SO_FAR = re.compile(r"\A\s{0,2}[\w.:/-]{0,256}\s{0,2}")


def new_call_id() -> str:
    """An id for a tool call, unique across turns and conversations."""
    return f"call_{secrets.token_hex(12)}"


class OutputParser:
    """Turns the text and markers of one assistant turn into events."""

    def __init__(
        self,
        tools: Sequence[Tool] | None = None,
        *,
        thinking: bool = True,
        generation: Generation = "glm-5",
        make_call_id: Callable[[], str] = new_call_id,
    ) -> None:
        """Start a turn.

        Args:
            tools: their schemas decide what the arguments are; calls of other functions are parsed as well.
            thinking: whether the prompt has opened a thought (`enable_thinking`; GLM-4.5's prompt never does).
            generation: the layout of the prompt, see `Generation`.
            make_call_id: gives each call its id.
        """
        self.state = State.REASONING if thinking and generation == "glm-5" else State.CONTENT
        self._parameters = {tool.name: tool.parameters for tool in tools or ()}
        self._make_call_id = make_call_id
        self._events: list[Event] = []
        self._thought: list[str] = []  # of the thought that is open or was open last
        self._answered = False  # the turn has content, a call or a closed thought
        # GLM-4.5's layout: one newline after a thought and one before each call belong to neither.
        self._has_newlines = generation == "glm-4.5"
        self._skip_newline = self._has_newlines
        self._held_newline = ""
        # The call being read.
        self._index = -1
        self._origin = State.CONTENT  # where its <tool_call> stood
        self._name = ""
        self._key = ""
        self._arguments = ArgumentsWriter({})
        self._is_stray = False  # text between the pairs of a call that is not white space

    def text(self, text: str) -> str:
        """Take text; returns the part to be looked at again, because the state changed before it."""
        match self.state:
            case State.REASONING:
                self._add_reasoning(text)
            case State.CONTENT:
                self._add_content(text)
            case State.NAME:
                rest = _NAME_SO_FAR.sub("", self._name + text)
                self._name += text.removesuffix(rest)
                if rest:
                    self._give_back()
                return rest
            case State.ARGUMENTS:
                text = text if self._is_stray else text.lstrip()
                self._is_stray = self._is_stray or bool(text)
                self._add_content(text)
            case State.KEY:
                self._key += text
            case State.AFTER_KEY:
                rest = text.lstrip()
                if rest:
                    self._give_back()
                return rest
            case State.VALUE:
                self._add_arguments(self._arguments.add(text))
        return ""

    def marker(self, marker: Marker) -> None:
        """Take a marker: a step of the machine where the state heeds it, literal text elsewhere."""
        is_nameless = self.state is State.NAME and not self._name.strip()
        if is_nameless or (marker not in HEEDED[self.state] and self.state in (State.NAME, State.AFTER_KEY)):
            self._give_back()
        if marker not in HEEDED[self.state] or (
            marker is Marker.THINK and self.state is State.REASONING and self._thought
        ):
            self.text(marker.value)
            return
        match marker:
            case Marker.THINK:
                self._open_thought()
            case Marker.END_THINK:
                self._close_thought()
            case Marker.TOOL_CALL:
                self._open_call()
            case Marker.END_TOOL_CALL:
                self._start_call()
                self._end_call()
            case Marker.ARG_KEY:
                self._start_call()
                self._key = ""
                self.state = State.KEY
            case Marker.END_ARG_KEY:
                self.state = State.AFTER_KEY
            case Marker.ARG_VALUE:
                self._add_arguments(self._arguments.open_value(self._key.strip()))
                self.state = State.VALUE
            case Marker.END_ARG_VALUE:
                self._add_arguments(self._arguments.close_value())
                self._is_stray = False
                self.state = State.ARGUMENTS

    def finish(self, *, truncated: bool) -> None:
        """End the turn: `truncated` when it was cut by a length limit, else the model stopped by itself.

        A model that stops by itself without having closed its thought has skipped thinking: its text is the answer.
        """
        if self.state is State.NAME:
            self._give_back()
        if self.state is State.REASONING and not truncated and not self._answered and "".join(self._thought).strip():
            self._events += [ReasoningRetracted(), ContentDelta("".join(self._thought))]
        self._release_newline()
        if self.state in (State.ARGUMENTS, State.KEY, State.AFTER_KEY, State.VALUE):
            self._events.append(ToolCallCut(self._index, self._unsent()))

    def take_events(self) -> list[Event]:
        """The events since the last call of this."""
        events, self._events = self._events, []
        return events

    def _add_reasoning(self, text: str) -> None:
        if text:
            self._thought.append(text)
            self._events.append(ReasoningDelta(text))

    def _open_thought(self) -> None:
        if self.state is State.CONTENT:
            self._release_newline()
            self._thought = []
            self.state = State.REASONING

    def _close_thought(self) -> None:
        """`</think>`, or a call that begins inside the thought. A `</think>` behind a thought means nothing."""
        if self.state is State.REASONING:
            if not self._thought:
                self._events.append(ReasoningDelta(""))
            self._answered = True
            self._skip_newline = self._has_newlines
            self.state = State.CONTENT

    def _add_content(self, text: str) -> None:
        if not text:
            return
        if self._skip_newline:
            self._skip_newline = False
            text = text.removeprefix("\n")
        text = self._held_newline + text
        holds = self._has_newlines and text.endswith("\n")
        self._held_newline = "\n" if holds else ""
        text = text[:-1] if holds else text
        if text:
            self._answered = True
            self._events.append(ContentDelta(text))

    def _release_newline(self) -> None:
        if self._held_newline:
            self._events.append(ContentDelta("\n"))
            self._held_newline = ""

    def _open_call(self) -> None:
        if self.state is State.ARGUMENTS:  # the call before has all its pairs and lacks only its </tool_call>
            self._end_call()
        self._origin = self.state
        self._name = ""
        self.state = State.NAME

    def _start_call(self) -> None:
        """The name is complete, unless the call has started already."""
        if self.state is not State.NAME:
            return
        self.state = self._origin
        self._close_thought()
        self._held_newline = ""
        self._answered = True
        self._name = self._name.strip()
        self._index += 1
        self._arguments = ArgumentsWriter(self._parameters.get(self._name, {}))
        self._is_stray = False
        self._events.append(ToolCallStart(self._index, self._make_call_id(), self._name))

    def _end_call(self) -> None:
        self._add_arguments(self._arguments.end())
        self._events.append(ToolCallEnd(self._index))
        self._skip_newline = False
        self.state = State.CONTENT

    def _add_arguments(self, fragment: str) -> None:
        if fragment:
            self._events.append(ToolCallArgumentsDelta(self._index, fragment))

    def _give_back(self) -> None:
        """What looked like a call, or like a pair of one, is none: its text goes back to where it stood."""
        if self.state is State.NAME:
            literal, self.state = Marker.TOOL_CALL + self._name, self._origin
        else:
            literal, self.state = self._unsent(), State.ARGUMENTS
        self.text(literal)

    def _unsent(self) -> str:
        """What was read of the open call and is in no fragment yet, as it stood."""
        match self.state:
            case State.KEY:
                return Marker.ARG_KEY + self._key
            case State.AFTER_KEY:
                return Marker.ARG_KEY + self._key + Marker.END_ARG_KEY
            case _:
                return self._arguments.take_held()
