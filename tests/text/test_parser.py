from collections.abc import Callable
from functools import cache
from itertools import count

import pytest

from glm5.errors import GLM5Error
from glm5.text.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ReasoningRetracted,
    ToolCallArgumentsDelta,
    ToolCallCut,
    ToolCallEnd,
    ToolCallStart,
    collect,
)
from glm5.text.markers import Generation
from glm5.text.messages import Message, Tool, ToolCall
from glm5.text.parser import OutputParser
from glm5.text.streams import TextStream, TokenStream, parse
from glm5.text.tokenizer import Tokenizer, special_tokens

TOOLS = [
    Tool(
        "write",
        parameters={
            "type": "object",
            "properties": {"path": {"type": "string"}, "mode": {"type": "integer"}, "lines": {"type": "array"}},
        },
    ),
    Tool("now"),
]
TWO_CALLS = (
    "I need the time 🙂 first.</think>One moment, «é».<tool_call>now</tool_call>"
    '<tool_call>write<arg_key>path</arg_key><arg_value>a "b" \\ <c>\nd</arg></arg_value>'
    '<arg_key>mode</arg_key><arg_value>7</arg_value><arg_key>lines</arg_key><arg_value>[{"x": ["漢"]}]</arg_value>'
    "</tool_call>"
)
TWO_CALLS_MESSAGE = Message(
    "assistant",
    "One moment, «é».",
    "I need the time 🙂 first.",
    (
        ToolCall("now", {}, "call_0"),
        ToolCall("write", {"path": 'a "b" \\ <c>\nd</arg>', "mode": 7, "lines": [{"x": ["漢"]}]}, "call_1"),
    ),
)


@cache
def tokenizer() -> Tokenizer:
    """One byte a token, so that every character beyond ASCII is split between tokens."""
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


def parser(thinking: bool = True, generation: Generation = "glm-5") -> OutputParser:
    numbers = count()
    return OutputParser(TOOLS, thinking=thinking, generation=generation, make_call_id=lambda: f"call_{next(numbers)}")


def from_text(*chunks: str, thinking: bool = True, truncated: bool = False) -> list[Event]:
    stream = TextStream(parser(thinking))
    events = [event for chunk in chunks for event in stream.feed(chunk)]
    return events + stream.finish(truncated=truncated)


def from_ids(text: str, thinking: bool = True, truncated: bool = False) -> list[Event]:
    stream = TokenStream(parser(thinking), tokenizer())
    return stream.feed(tokenizer().encode(text, allow_special=True)) + stream.finish(truncated=truncated)


Reader = Callable[..., list[Event]]
BOTH_STREAMS = pytest.mark.parametrize("read", [from_text, from_ids])


# Every cut of the stream ------------------------------------------------------------------------------------------


def test_every_split_of_a_two_call_answer_gives_the_same_message() -> None:
    for cut in range(len(TWO_CALLS) + 1):
        assert collect(from_text(TWO_CALLS[:cut], TWO_CALLS[cut:])) == TWO_CALLS_MESSAGE
    assert collect(from_text(*TWO_CALLS)) == TWO_CALLS_MESSAGE


def test_any_number_of_tokens_a_step_gives_the_same_message() -> None:
    ids = tokenizer().encode(TWO_CALLS, allow_special=True)
    for step in (1, 2, 3, 7, len(ids)):
        stream = TokenStream(parser(), tokenizer())
        events = [event for start in range(0, len(ids), step) for event in stream.feed(ids[start : start + step])]
        assert collect(events + stream.finish()) == TWO_CALLS_MESSAGE


def test_events_come_in_openai_order_and_arguments_stream() -> None:
    stream = TextStream(parser())
    assert stream.feed("hm</think><tool_call>write<arg_key>path</arg_key>") == [
        ReasoningDelta("hm"),
        ToolCallStart(0, "call_0", "write"),
    ]
    assert stream.feed("<arg_value>a") == [
        ToolCallArgumentsDelta(0, '{"path": "'),
        ToolCallArgumentsDelta(0, "a"),
    ]
    assert stream.feed('"') == [ToolCallArgumentsDelta(0, '\\"')]
    assert stream.feed("</arg_value></tool_call>") == [
        ToolCallArgumentsDelta(0, '"'),
        ToolCallArgumentsDelta(0, "}"),
        ToolCallEnd(0),
    ]
    assert stream.finish() == []


# Nothing is held back longer than needed ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", "a < b", "a <", "</p>", "<tool", "x</think", "<arg_value>"])
def test_only_a_possible_marker_is_held_back(text: str) -> None:
    stream = TextStream(parser())
    sent = "".join(event.text for event in stream.feed(text) if isinstance(event, ReasoningDelta))
    held = text[len(sent) :]
    assert sent + held == text
    assert not held or "</think>".startswith(held) or "<tool_call>".startswith(held)
    assert bool(held) == text.endswith(("<", "<tool", "</think"))


def test_half_a_character_is_held_back_and_shown_as_broken_at_the_end() -> None:
    first, *rest = tokenizer().encode("🙂")
    stream = TokenStream(parser(), tokenizer())
    assert stream.feed([first]) == []
    assert stream.feed(rest) == [ReasoningDelta("🙂")]
    assert stream.feed([first]) == []
    assert stream.finish(truncated=True) == [ReasoningDelta("\ufffd")]


def test_half_a_character_before_a_marker_stays_on_its_side() -> None:
    first, *_ = tokenizer().encode("🙂")
    stream = TokenStream(parser(), tokenizer())
    events = stream.feed([first, *tokenizer().encode("</think>c", allow_special=True)])
    assert collect(events + stream.finish()) == Message("assistant", "c", "\ufffd")


def test_prose_about_the_marker_is_given_back_as_soon_as_it_is_no_name() -> None:
    stream = TextStream(parser())
    assert stream.feed("write <tool_call> ") == [ReasoningDelta("write ")]
    assert stream.feed("then") == []
    assert stream.feed(" a") == [ReasoningDelta("<tool_call> then "), ReasoningDelta("a")]
    assert stream.feed(" name") == [ReasoningDelta(" name")]


# Thought and answer -----------------------------------------------------------------------------------------------


@BOTH_STREAMS
@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("r</think>c", True, "r", "c"),
        ("<think>r</think>c", True, "r", "c"),
        (" \n r \n</think> \n c \n", True, " \n r \n", " \n c \n"),
        ("</think>c", True, "", "c"),
        ("c", False, None, "c"),
        ("<think>r</think>c", False, "r", "c"),
        ("c</think>d", False, None, "cd"),
        ("r</think>c</think>d", True, "r", "cd"),
        ("a<think>b</think>c", True, "a<think>b", "c"),
        ("r</think>c<think>s</think>d", True, "rs", "cd"),
        ("</arg_value>r<arg_key></think>c</tool_call>", True, "</arg_value>r<arg_key>", "c</tool_call>"),
        ("", True, None, ""),
    ],
)
def test_thought_and_answer(read: Reader, text: str, thinking: bool, reasoning: str | None, content: str) -> None:
    assert collect(read(text, thinking=thinking)) == Message("assistant", content, reasoning)


@BOTH_STREAMS
def test_a_thought_that_never_closed_is_the_answer_when_the_model_stopped(read: Reader) -> None:
    events = read("The answer is 4.")
    assert events[-2:] == [ReasoningRetracted(), ContentDelta("The answer is 4.")]
    assert collect(events) == Message("assistant", "The answer is 4.")


@BOTH_STREAMS
def test_a_thought_cut_by_length_stays_a_thought(read: Reader) -> None:
    assert collect(read("The answer", truncated=True)) == Message("assistant", "", "The answer")


@BOTH_STREAMS
def test_a_second_thought_is_not_retracted(read: Reader) -> None:
    assert collect(read("a</think>b<think>c")) == Message("assistant", "b", "ac")
    after_a_call = collect(read("<tool_call>now</tool_call><think>c", thinking=False))
    assert (after_a_call.content, after_a_call.reasoning_content) == ("", "c")


# Calls --------------------------------------------------------------------------------------------------------------


@BOTH_STREAMS
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool_call>now</tool_call>", [("now", {})]),
        ("<tool_call>now\n</tool_call>", [("now", {})]),
        ("<tool_call>now</tool_call><tool_call>now</tool_call>", [("now", {}), ("now", {})]),
        ("<tool_call>now<tool_call>", []),
        (
            "<tool_call>write\n<arg_key>path</arg_key>\n<arg_value> 5 \n</arg_value>\n</tool_call>",
            [("write", {"path": " 5 \n"})],
        ),
        ("<tool_call>write<arg_key>mode</arg_key><arg_value>'x</arg_value></tool_call>", [("write", {"mode": "'x"})]),
        (
            "<tool_call>fly_to.moon<arg_key>n</arg_key><arg_value>5</arg_value>"
            "<arg_key>s</arg_key><arg_value>slow</arg_value></tool_call>",
            [("fly_to.moon", {"n": 5, "s": "slow"})],
        ),
        (
            "<tool_call>write<arg_key>path</arg_key><arg_value></tool_call></think><arg_key>a</arg_value></tool_call>",
            [("write", {"path": "</tool_call></think><arg_key>a"})],
        ),
        (
            "<tool_call>write<arg_key>mode</arg_key><arg_value>1</arg_value><tool_call>now</tool_call>",
            [("write", {"mode": 1}), ("now", {})],
        ),
    ],
)
def test_calls(read: Reader, text: str, calls: list[tuple[str, dict]]) -> None:
    message = collect(read(text, thinking=False))
    assert [(call.name, call.arguments) for call in message.tool_calls] == calls
    assert [call.id for call in message.tool_calls] == [f"call_{i}" for i in range(len(calls))]


@BOTH_STREAMS
def test_a_call_inside_the_thought_ends_the_thought(read: Reader) -> None:
    message = collect(read("I should look.<tool_call>now</tool_call></think>So"))
    assert message == Message("assistant", "So", "I should look.", (ToolCall("now", {}, "call_0"),))


@BOTH_STREAMS
def test_text_before_between_and_after_calls_is_content(read: Reader) -> None:
    message = collect(read("a<tool_call>now</tool_call>b <tool_call>now</tool_call> c", thinking=False))
    assert message.content == "ab  c"
    assert len(message.tool_calls) == 2


@BOTH_STREAMS
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call> is how a call begins",
        "<tool_call></tool_call>",
        "<tool_call><arg_key>a</arg_key>",
        '<tool_call>{"name": "now"}</tool_call>',
        "<tool_call>now",
        "x < y <tool_ca",
        f"<tool_call>{'a' * 300}</tool_call>",
    ],
)
def test_what_is_no_call_goes_back_to_the_text(read: Reader, text: str) -> None:
    assert collect(read(text, thinking=False)) == Message("assistant", text)
    assert collect(read(text, truncated=True)) == Message("assistant", "", text)


@BOTH_STREAMS
def test_what_is_no_pair_goes_to_the_content(read: Reader) -> None:
    text = "<tool_call>write oops<arg_key>"
    assert collect(read(text, thinking=False)).content == text
    text = "<tool_call>write<arg_key>path</arg_key> x<arg_key>mode</arg_key><arg_value>1</arg_value> y </tool_call>z"
    message = collect(read(text, thinking=False))
    assert message.content == "<arg_key>path</arg_key>x" + "y z"
    assert message.tool_calls == (ToolCall("write", {"mode": 1}, "call_0"),)


@BOTH_STREAMS
@pytest.mark.parametrize(
    ("rest", "unsent"),
    [
        ("<arg_key>pa", "<arg_key>pa"),
        ("<arg_key>path</arg_key>", "<arg_key>path</arg_key>"),
        ("<arg_key>path</arg_key><arg_value>hal", ""),
        ("<arg_key>mode</arg_key><arg_value>12", "12"),
        ("<arg_key>mode</arg_key><arg_value>12</arg_value>", ""),
    ],
)
@pytest.mark.parametrize("truncated", [True, False])
def test_a_half_call_is_never_passed_on(read: Reader, rest: str, unsent: str, truncated: bool) -> None:
    events = read(f"a<tool_call>now</tool_call><tool_call>write{rest}", thinking=False, truncated=truncated)
    assert events[-1] == ToolCallCut(1, unsent)
    assert ToolCallEnd(1) not in events
    assert [call.name for call in collect(events).tool_calls] == ["now"]


# Token ids ----------------------------------------------------------------------------------------------------------


def test_text_that_looks_like_a_marker_is_text_when_there_are_ids() -> None:
    spelled = "</think><tool_call>now</tool_call>"
    stream = TokenStream(parser(), tokenizer())
    events = stream.feed(tokenizer().encode(spelled))
    events += stream.feed(tokenizer().encode("</think>", allow_special=True) + tokenizer().encode(spelled))
    assert collect(events + stream.finish()) == Message("assistant", spelled, spelled)


@pytest.mark.parametrize("stop", ["<|user|>", "<|observation|>", "<|endoftext|>"])
def test_a_stop_token_ends_the_turn_without_text(stop: str) -> None:
    stream = TokenStream(parser(), tokenizer())
    events = stream.feed(tokenizer().encode(f"r</think>c{stop}", allow_special=True))
    with pytest.raises(GLM5Error, match="after the token that ended the turn"):
        stream.feed(tokenizer().encode("more"))
    assert collect(events + stream.finish()) == Message("assistant", "c", "r")


def test_a_tokenizer_without_markers_is_refused() -> None:
    class Plain:
        special_ids = {"<think>": 1}  # noqa: RUF012

    with pytest.raises(GLM5Error, match="no special token for </think>, <tool_call>"):
        TokenStream(parser(), Plain())  # type: ignore[arg-type]


# GLM-4.5's newlines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<think>r</think>\nc", Message("assistant", "c", "r")),
        ("\n<think>r</think>\n\nc\n", Message("assistant", "\nc\n", "r")),
        ("\nc\n\n", Message("assistant", "c\n\n")),
        ("c", Message("assistant", "c")),
        (
            "\nc\n<tool_call>now\n</tool_call>\n<tool_call>now\n</tool_call>\nd",
            Message("assistant", "c\nd", None, (ToolCall("now", {}, "call_0"), ToolCall("now", {}, "call_1"))),
        ),
        ("\n<think>r\n<tool_call>now\n</tool_call>", Message("assistant", "", "r\n", (ToolCall("now", {}, "call_0"),))),
        (
            "\n<think>r<tool_call>now\n</tool_call>\nc",
            Message("assistant", "\nc", "r", (ToolCall("now", {}, "call_0"),)),
        ),
        ("\nc\n<tool_call> is a marker\n", Message("assistant", "c\n<tool_call> is a marker\n")),
    ],
)
def test_the_newlines_of_the_older_layout_belong_to_no_text(text: str, message: Message) -> None:
    for cut in range(len(text) + 1):
        stream = TextStream(parser(generation="glm-4.5"))
        assert collect([*stream.feed(text[:cut]), *stream.feed(text[cut:]), *stream.finish()]) == message


def test_the_newer_layout_keeps_every_newline() -> None:
    assert parse("\nr\n</think>\nc\n<tool_call>now</tool_call>").content == "\nc\n"


def test_calls_get_unique_ids() -> None:
    calls = parse("<tool_call>now</tool_call>" * 3, thinking=False).tool_calls
    assert len({call.id for call in calls}) == 3


def test_an_id_without_a_token_shows_as_a_replacement() -> None:
    stream = TokenStream(parser(), tokenizer())
    ids = tokenizer().encode("a</think>b", allow_special=True)
    beyond = tokenizer().vocab_size + 7
    half = tokenizer().encode("é")[:1]
    message = collect(stream.feed([*ids, beyond, *half, beyond]) + stream.finish())
    assert (message.reasoning_content, message.content) == ("a", "b" + "\ufffd" * 3)
