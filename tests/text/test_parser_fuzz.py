"""What must hold for any stream whatever, well-formed or not."""

import json
from functools import cache
from itertools import count, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

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
from glm5.text.markers import GENERATIONS, Generation, Marker
from glm5.text.messages import Tool
from glm5.text.parser import OutputParser
from glm5.text.streams import TextStream, TokenStream
from glm5.text.tokenizer import Tokenizer, special_tokens

TOOLS = [
    Tool(
        "f",
        parameters={
            "properties": {"s": {"type": "string"}, "n": {"type": "integer"}, "u": {"type": ["string", "null"]}},
        },
    ),
    Tool("g"),
]
MARKERS = [marker.value for marker in Marker]
# Fragments that make well-formed and broken calls likely; x and z occur in no marker.
PIECES = [
    *MARKERS,
    *MARKERS,
    "f",
    "g",
    "s",
    "n",
    "u",
    "5",
    "null",
    "x",
    "y z",
    "\n",
    " ",
    '"\\',
    "🙂é",
    "<",
    "</",
    "<tool_ca",
]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=20)
WELL_FORMED = st.lists(
    st.sampled_from(
        [
            "x\n",
            "</think>",
            "\n<tool_call>g</tool_call>",
            "<tool_call>f<arg_key>s</arg_key><arg_value>5 <b 🙂</arg_value></tool_call>",
            "<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n</tool_call>",
            "<tool_call>f<arg_key>u</arg_key><arg_value>null</arg_value><arg_key>z</arg_key><arg_value>[1]</arg_value>",
        ]
    ),
    max_size=5,
)
SETTINGS = st.tuples(st.booleans(), st.sampled_from(GENERATIONS), st.booleans())
Settings = tuple[bool, Generation, bool]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


def parser(thinking: bool, generation: Generation) -> OutputParser:
    numbers = count()
    return OutputParser(TOOLS, thinking=thinking, generation=generation, make_call_id=lambda: str(next(numbers)))


def read_text(chunks: list[str], settings: Settings) -> list[Event]:
    thinking, generation, truncated = settings
    stream = TextStream(parser(thinking, generation))
    return merged([*(e for chunk in chunks for e in stream.feed(chunk)), *stream.finish(truncated=truncated)])


def read_ids(chunks: list[list[int]], settings: Settings) -> list[Event]:
    thinking, generation, truncated = settings
    stream = TokenStream(parser(thinking, generation), tokenizer())
    return merged([*(e for chunk in chunks for e in stream.feed(chunk)), *stream.finish(truncated=truncated)])


def merged(events: list[Event]) -> list[Event]:
    """The events with neighbouring deltas of one kind joined: all that the cutting of the stream may change."""
    joined: list[Event] = []
    for event in events:
        match joined[-1] if joined else None, event:
            case ReasoningDelta(before), ReasoningDelta(text):
                joined[-1] = ReasoningDelta(before + text)
            case ContentDelta(before), ContentDelta(text):
                joined[-1] = ContentDelta(before + text)
            case ToolCallArgumentsDelta(index, before), ToolCallArgumentsDelta(_, fragment):
                joined[-1] = ToolCallArgumentsDelta(index, before + fragment)
            case _:
                joined.append(event)
    return joined


def cut(whole: str | list[int], positions: list[int]) -> list:
    borders = [0, *sorted(p % (len(whole) + 1) for p in positions), len(whole)]
    return [whole[start:end] for start, end in pairwise(borders)]


@given(STREAMS | WELL_FORMED, SETTINGS, st.lists(st.integers(0, 500), max_size=8))
@example(["a <tool_call>f x</think>", "y"], (True, "glm-5", False), [])
def test_every_split_of_a_text_gives_the_one_shot_events(
    pieces: list[str], settings: Settings, positions: list[int]
) -> None:
    text = "".join(pieces)
    whole = read_text([text], settings)
    assert read_text(cut(text, positions), settings) == whole
    assert read_text(list(text), settings) == whole


@given(STREAMS | WELL_FORMED, SETTINGS, st.lists(st.integers(0, 500), max_size=8))
def test_every_split_of_ids_gives_the_one_shot_events(
    pieces: list[str], settings: Settings, positions: list[int]
) -> None:
    ids = [i for piece in pieces for i in tokenizer().encode(piece, allow_special=True)]
    whole = read_ids([ids], settings)
    assert read_ids(cut(ids, positions), settings) == whole
    assert read_ids([[i] for i in ids], settings) == whole


@given(STREAMS | WELL_FORMED, SETTINGS)
def test_ids_and_text_agree_where_all_markers_are_tokens(pieces: list[str], settings: Settings) -> None:
    ids = tokenizer().encode("".join(pieces), allow_special=True)
    assert read_ids([ids], settings) == read_text(["".join(pieces)], settings)


@given(st.binary(max_size=30), SETTINGS)
def test_any_bytes_come_out_as_the_text_they_are(raw: bytes, settings: Settings) -> None:
    events = read_ids([tokenizer().encode(raw)], (False, "glm-5", settings[2]))
    assert events == ([ContentDelta(raw.decode("utf-8", "replace"))] if raw else [])


@given(STREAMS | WELL_FORMED, SETTINGS)
def test_no_text_is_ever_lost(pieces: list[str], settings: Settings) -> None:
    text = "".join(pieces)
    out: list[str] = []
    for event in read_text([text], settings):
        match event:
            case ReasoningRetracted():
                out = []
            case ReasoningDelta(part) | ContentDelta(part) | ToolCallArgumentsDelta(_, part) | ToolCallCut(_, part):
                out.append(part)
            case ToolCallStart(_, _, name):
                out.append(name)
    assert [c for c in "".join(out) if c in "xz5é🙂"] == [c for c in text if c in "xz5é🙂"]


@given(STREAMS | WELL_FORMED, SETTINGS)
@example(["<tool_call>f<arg_key>n</arg_key><arg_value>5</arg_value>x\n"], (False, "glm-4.5", False))
def test_ended_calls_are_valid_json_and_only_the_last_call_may_lack_its_end(
    pieces: list[str], settings: Settings
) -> None:
    open_call: int | None = None
    fragments: list[str] = []
    cut_seen = False
    for event in read_text(["".join(pieces)], settings):
        assert not cut_seen
        match event:
            case ToolCallStart(index, call_id, name):
                assert open_call is None
                assert call_id == str(index)
                assert name
                open_call, fragments = index, []
            case ToolCallArgumentsDelta(index, fragment):
                assert index == open_call
                fragments.append(fragment)
            case ToolCallEnd(index):
                assert index == open_call
                assert isinstance(json.loads("".join(fragments)), dict)
                open_call = None
            case ToolCallCut(index, _):
                assert index == open_call
                open_call = None
                cut_seen = True
    assert open_call is None
