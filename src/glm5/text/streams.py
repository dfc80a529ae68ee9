"""The two ways into the parser: token ids, where a marker is one special token, and text, where it must be found.

Ids are the better way: `<tool_call>` that a model spells out in ordinary tokens, say to explain it, is ordinary text
there. In text the look-alike cannot be told from the marker. Both ways give the same events for every way of cutting
the stream into chunks (up to how the deltas are cut), and both hold back as little as they can: half a UTF-8 character,
or a tail that could be the beginning of a marker which matters at this point.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from glm5.errors import GLM5Error
from glm5.text.events import Event, collect
from glm5.text.markers import STOP_TOKENS, Generation, Marker
from glm5.text.messages import Message, Tool
from glm5.text.parser import HEEDED, OutputParser, State

if TYPE_CHECKING:
    from glm5.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd".encode()
"""Shown for an id without a token: a network may have more rows than its tokenizer has tokens, and an untrained one
samples them too."""

_PATTERNS = {state: re.compile("|".join(map(re.escape, markers))) for state, markers in HEEDED.items()}


class TextStream:
    """Feeds a parser with text that comes in chunks."""

    def __init__(self, parser: OutputParser) -> None:
        self._parser = parser
        self._pending = ""

    def feed(self, text: str) -> list[Event]:
        """Take the next chunk; returns what became certain by it."""
        self._pending += text
        while self._pending:
            found = _PATTERNS[self._parser.state].search(self._pending)
            end = found.start() if found else _possible_marker(self._pending, self._parser.state)
            if end > 0:
                self._pending = self._parser.text(self._pending[:end]) + self._pending[end:]
            elif found:
                self._parser.marker(Marker(found.group()))
                self._pending = self._pending[found.end() :]
            else:
                break
        return self._parser.take_events()

    def finish(self, *, truncated: bool = False) -> list[Event]:
        """End the stream; `truncated` when a length limit cut it. What was held back turns out to be text."""
        while self._pending:
            self._pending = self._parser.text(self._pending)
        self._parser.finish(truncated=truncated)
        return self._parser.take_events()


class TokenStream:
    """Feeds a parser with token ids. The id of a stop token may come last; it ends the turn and adds no text."""

    def __init__(self, parser: OutputParser, tokenizer: "Tokenizer") -> None:
        """Raises GLM5Error when the tokenizer lacks a marker: its model cannot write one, so parse its text instead."""
        missing = [marker.value for marker in Marker if marker not in tokenizer.special_ids]
        if missing:
            raise GLM5Error(
                f"the tokenizer has no special token for {', '.join(missing)}; parse the text with TextStream"
            )
        self._parser = parser
        self._tokenizer = tokenizer
        self._markers = {tokenizer.special_ids[marker]: marker for marker in Marker}
        self._stops = {tokenizer.special_ids[name] for name in STOP_TOKENS if name in tokenizer.special_ids}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended = False

    def feed(self, ids: Iterable[int]) -> list[Event]:
        """Take the next tokens, as many as a step gave. Raises GLM5Error for tokens after the stop token."""
        for token_id in ids:
            if self._ended:
                raise GLM5Error(
                    f"token {token_id} comes after the token that ended the turn; start a new stream for it"
                )
            if token_id in self._stops:
                self._ended = True
            elif token_id in self._markers:
                self._text(self._decoder.decode(b"", final=True))
                self._parser.marker(self._markers[token_id])
            else:
                known = self._tokenizer.is_token(token_id)
                self._text(self._decoder.decode(self._tokenizer.token_bytes(token_id) if known else REPLACEMENT))
        return self._parser.take_events()

    def finish(self, *, truncated: bool = False) -> list[Event]:
        """End the stream; `truncated` when a length limit cut it. Half a character shows as U+FFFD."""
        self._text(self._decoder.decode(b"", final=True))
        self._parser.finish(truncated=truncated)
        return self._parser.take_events()

    def _text(self, text: str) -> None:
        while text:
            text = self._parser.text(text)


def parse(
    text: str,
    tools: Sequence[Tool] | None = None,
    *,
    thinking: bool = True,
    generation: Generation = "glm-5",
    truncated: bool = False,
) -> Message:
    """The message that the whole text of an assistant turn holds; arguments as for `OutputParser` and `finish`."""
    stream = TextStream(OutputParser(tools, thinking=thinking, generation=generation))
    return collect([*stream.feed(text), *stream.finish(truncated=truncated)])


def _possible_marker(text: str, state: State) -> int:
    """Where a tail of `text` begins that could become a marker `state` heeds; the length of `text` if none does."""
    start = text.rfind("<")
    tail = text[start:]
    return start if start >= 0 and any(marker.startswith(tail) for marker in HEEDED[state]) else len(text)
