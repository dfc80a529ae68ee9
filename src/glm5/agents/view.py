"""What the model is shown: a view of the log, and nothing else.

The view follows the log event by event, and building it anew from the whole log gives the same messages: that is what
makes a run resumable, and why shortening the context loses nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from glm5.agents.events import Entry, Folded, Observed, Replied, Rewound, Said
from glm5.text.messages import Message, ToolCall

LEFT_OUT = "[this older result was left out to save space; call the tool again if you need it]"
CHARACTERS_PER_TOKEN = 3.5  # of code and English; only until the endpoint counts
LONGEST_TURN = 20_000  # characters of one turn that the model is shown again


@dataclass(frozen=True, slots=True)
class Shown:
    """A message of the view, and the event that it shows."""

    number: int
    message: Message


class View:
    """The conversation as the model sees it.

    Attributes:
        shown: the messages, with the numbers of their events.
        open_calls: calls of the last turn that have no result yet.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.shown: list[Shown] = []
        self.open_calls: list[ToolCall] = []
        self._entries: list[Entry] = []  # needed to go back
        self._counted = 0  # tokens of the prompt of the last turn, as the endpoint counted them
        self._uncounted = 0  # characters that came after it
        for entry in entries:
            self.apply(entry)

    @property
    def messages(self) -> list[Message]:
        """For the endpoint."""
        return [shown.message for shown in self.shown]

    @property
    def tokens(self) -> int:
        """About how long the next prompt is."""
        return self._counted + int(self._uncounted / CHARACTERS_PER_TOKEN)

    @property
    def head(self) -> int:
        """How many messages stand before the first turn of the model: never folded."""
        return next((i for i, shown in enumerate(self.shown) if shown.message.role == "assistant"), len(self.shown))

    def rounds(self) -> list[list[Shown]]:
        """The results of each turn of the model that made calls, oldest first."""
        rounds: list[list[Shown]] = []
        for shown in self.shown:
            if shown.message.tool_calls:
                rounds.append([])
            elif shown.message.role == "tool" and rounds:
                rounds[-1].append(shown)
        return rounds

    def apply(self, entry: Entry) -> None:
        """Take in the next event."""
        self._entries.append(entry)
        match entry.event:
            case Said(message=message):
                self._add(entry.number, message)
            case Replied() as reply:
                self._counted = reply.prompt_tokens or self.tokens
                self._uncounted = 0
                self._add(entry.number, _shortened(reply.message))
                self.open_calls = list(reply.message.tool_calls)
            case Observed() as observed:
                self._add(entry.number, Message("tool", observed.content, tool_call_id=observed.call_id or None))
                self.open_calls = [call for call in self.open_calls if call.id != observed.call_id]
            case Folded() as folded:
                self._fold(entry.number, folded)
            case Rewound(to=to):
                kept = [earlier for earlier in self._entries if earlier.number <= to]
                self.__init__(kept)  # type: ignore[misc]

    def _add(self, number: int, message: Message) -> None:
        self.shown.append(Shown(number, message))
        calls = sum(len(str(call.arguments)) for call in message.tool_calls)
        self._uncounted += len(message.content) + len(message.reasoning_content or "") + calls

    def _fold(self, number: int, folded: Folded) -> None:
        before = self._length()
        if folded.restart:
            self.shown = self.shown[: self.head]
            if folded.summary:
                self.shown.append(Shown(number, Message("user", folded.summary)))
        chosen = set(folded.observations)
        self.shown = [
            replace(shown, message=replace(shown.message, content=LEFT_OUT)) if shown.number in chosen else shown
            for shown in self.shown
        ]
        if before:  # scale the estimate; the endpoint counts again with the next turn
            self._counted, self._uncounted = int(self.tokens * self._length() / before), 0

    def _length(self) -> int:
        return sum(
            len(s.message.content) + len(s.message.reasoning_content or "") + len(str(s.message.tool_calls))
            for s in self.shown
        )


def _shortened(message: Message) -> Message:
    """A turn that ran away is in the log as it came, but the model is not shown all of it again."""
    content, thought = message.content, message.reasoning_content
    if len(content) > LONGEST_TURN:
        content = f"{content[: LONGEST_TURN // 4]}\n[{len(content) - LONGEST_TURN // 4} characters left out]"
    if thought is not None and len(thought) > 4 * LONGEST_TURN:
        thought = f"{thought[:LONGEST_TURN]}\n[{len(thought) - LONGEST_TURN} characters left out]"
    return replace(message, content=content, reasoning_content=thought)
