import json
import subprocess
import sys
import tempfile
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from glm5.errors import UsageError
from glm5.text.events import collect
from glm5.text.markers import GENERATIONS, Generation, Marker
from glm5.text.messages import Message, Tool, ToolCall
from glm5.text.parser import OutputParser
from glm5.text.streams import TextStream, TokenStream
from glm5.text.template import render, render_ids, render_segments, template_source
from glm5.text.tokenizer import Tokenizer, special_tokens

TOOL = Tool("f", "Does f.", {"type": "object", "properties": {"s": {"type": "string"}, "é": {"type": "array"}}})
AGENT_TURNS = [
    Message("system", "Be brief."),
    Message("user", " hi "),
    Message("assistant", " Looking. ", " hm ", (ToolCall("f", {"s": " 5 ", "é": [1, "漢"]}), ToolCall("now"))),
    Message("tool", "one"),
    Message("tool", "two"),
    Message("assistant", "Done."),
    Message("user", "thanks"),
]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


# The layouts, written out -------------------------------------------------------------------------------------------


def test_the_layout_of_glm_5() -> None:
    assert render(AGENT_TURNS, clear_thinking=False) == (
        "[gMASK]<sop><|system|>Be brief.<|user|> hi "
        "<|assistant|><think>hm</think>Looking."
        "<tool_call>f<arg_key>s</arg_key><arg_value> 5 </arg_value>"
        '<arg_key>é</arg_key><arg_value>[1, "漢"]</arg_value></tool_call><tool_call>now</tool_call>'
        "<|observation|><tool_response>one</tool_response><tool_response>two</tool_response>"
        "<|assistant|></think>Done.<|user|>thanks<|assistant|><think>"
    )


def test_the_layout_of_glm_4_5() -> None:
    assert render(AGENT_TURNS[:-1], generation="glm-4.5") == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\n hi "
        "<|assistant|>\n<think>hm</think>\nLooking."
        "\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value> 5 </arg_value>"
        '\n<arg_key>é</arg_key>\n<arg_value>[1, "漢"]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>'
        "<|observation|>\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
        "<|assistant|>\n<think></think>\nDone.<|assistant|>"
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tools_come_first_one_schema_a_line(generation: Generation) -> None:
    text = render([Message("system", "Be brief."), Message("user", "hi")], [TOOL, Tool("now")], generation=generation)
    assert text.startswith("[gMASK]<sop><|system|>\n# Tools\n")
    block = text[text.index("<tools>\n") + len("<tools>\n") : text.index("\n</tools>")]
    assert [Tool.from_openai(json.loads(line)) for line in block.splitlines()] == [TOOL, Tool("now")]
    assert "é" in block
    assert text.index("</tool_call><|system|>") < text.index("Be brief.")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_example_call_in_the_tools_block_is_one_the_parser_reads(generation: Generation) -> None:
    text = render([Message("user", "hi")], [TOOL], generation=generation)
    example = text[text.index("<tool_call>") : text.index("<|user|>")]
    stream = TextStream(OutputParser(thinking=False, generation=generation))
    (call,) = collect([*stream.feed(example), *stream.finish()]).tool_calls
    assert (call.name, call.arguments) == ("name", {"key": "value"})


# Thinking modes -------------------------------------------------------------------------------------------------------


def test_interleaved_thoughts_last_until_the_next_user_message() -> None:
    assert "<think>hm</think>" in render(AGENT_TURNS[:-1])
    assert "hm" not in render(AGENT_TURNS)
    assert "<|assistant|></think>Looking." in render(AGENT_TURNS)
    assert "hm" not in render(AGENT_TURNS, generation="glm-4.5")


def test_a_thought_without_a_user_message_is_kept() -> None:
    assert "<think>r</think>" in render([Message("system", "s"), Message("assistant", "a", "r")])


def test_turn_level_thinking_decides_how_the_next_turn_begins() -> None:
    assert render(AGENT_TURNS).endswith("<|assistant|><think>")
    assert render(AGENT_TURNS, enable_thinking=False).endswith("<|assistant|></think>")
    assert render(AGENT_TURNS, generation="glm-4.5").endswith("<|assistant|>")
    off = render(AGENT_TURNS, enable_thinking=False, generation="glm-4.5")
    assert off.endswith("thanks/nothink<|assistant|>\n<think></think>")
    already = [Message("user", "hi /nothink")]
    assert render(already, enable_thinking=False, generation="glm-4.5").count("/nothink") == 1


def test_an_empty_thought_is_not_no_thought() -> None:
    assert render([Message("assistant", "a", "")], add_generation_prompt=False).endswith("<think></think>a")
    assert render([Message("assistant", "a", None)], add_generation_prompt=False).endswith("<|assistant|></think>a")


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("content", ["<think>r</think>c</think>d", "r</think>c</think>d"])
def test_a_thought_inside_the_content_is_found(content: str, generation: Generation) -> None:
    inside = render([Message("assistant", content)], generation=generation)
    assert inside == render([Message("assistant", "c</think>d", "r")], generation=generation)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_preserved_thinking_is_refused_where_there_is_none() -> None:
    with pytest.raises(UsageError, match=r"GLM-4\.5 cannot keep"):
        render(AGENT_TURNS, clear_thinking=False, generation="glm-4.5")


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        render([])
    with pytest.raises(UsageError, match=r"choose one of glm-4\.5, glm-5"):
        render(AGENT_TURNS, generation="glm-6")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"messages\[1\]: tool message"):
        render([Message("user", "hi"), Message("tool", "r")])
    with pytest.raises(UsageError, match="unknown role critic"):
        render([Message("critic", "hm")])  # type: ignore[arg-type]


def test_the_text_package_never_imports_torch() -> None:
    modules = "template, messages, parser, streams, thinking, values, events, markers, tokenizer"
    code = f"import sys; from glm5.text import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Properties over any conversation -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a <b> c\n", " 5 ", "null", "漢🙂"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
# One function that takes a string, an integer, an object and a list; each may be missing.
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "s": TEXT,
        "n": st.integers(),
        "o": st.dictionaries(TEXT, JSON, max_size=2),
        "l": st.lists(JSON, max_size=2),
    },
)
TYPED = Tool(
    "act.on-it",
    parameters={
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "integer"},
            "o": {"type": "object"},
            "l": {"type": "array"},
        },
    },
)
CALLS = st.lists(st.builds(ToolCall, st.just(TYPED.name), ARGUMENTS) | st.just(ToolCall("now")), max_size=3).map(tuple)
ASSISTANTS = st.builds(
    Message,
    st.just("assistant"),
    TEXT.map(str.strip),
    st.none() | TEXT.map(str.strip),
    CALLS,
)
USERS = st.builds(Message, st.just("user"), TEXT)


@st.composite
def agent_steps(draw: st.DrawFn) -> list[Message]:
    assistant = draw(ASSISTANTS)
    return [assistant, *(Message("tool", draw(TEXT)) for _ in assistant.tool_calls)]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(draw(USERS))
        for _ in range(draw(st.integers(0, 2))):
            messages += draw(agent_steps())
    return messages


TOOLS = st.sampled_from([None, [TYPED, Tool("now")]])


@cache
def transformers_tokenizer() -> PreTrainedTokenizerFast:
    """The repository's own tokenizer file in the class that `transformers` gives it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer().save(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)


@given(conversations(), TOOLS, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(GENERATIONS))
def test_transformers_renders_the_same_text(
    messages: list[Message],
    tools: list[Tool] | None,
    add_generation_prompt: bool,
    enable_thinking: bool,
    clear_thinking: bool,
    generation: Generation,
) -> None:
    assume(clear_thinking or generation == "glm-5")
    raw = [message.to_openai() for message in messages]
    for message in raw:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    theirs = transformers_tokenizer().apply_chat_template(
        raw,
        tools=[tool.to_openai() for tool in tools] if tools else None,
        chat_template=template_source(generation),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
    )
    assert theirs == render(
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
        generation=generation,
    )


def test_the_switches_have_the_same_defaults_in_transformers() -> None:
    raw = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": None}]
    for generation in GENERATIONS:
        theirs = transformers_tokenizer().apply_chat_template(
            raw, chat_template=template_source(generation), tokenize=False, add_generation_prompt=True
        )
        ours = render([Message("user", "hi"), Message("assistant")], generation=generation)
        assert theirs == ours


@given(conversations(), TOOLS)
def test_preserved_thinking_only_ever_extends_the_prompt(messages: list[Message], tools: list[Tool] | None) -> None:
    def prefix(turns: int, prompt: bool = False, enable_thinking: bool = True) -> str:
        return render(
            messages[:turns],
            tools,
            add_generation_prompt=prompt,
            enable_thinking=enable_thinking,
            clear_thinking=False,
        )

    for n in range(1, len(messages)):
        longer = prefix(n + 1)
        assert longer.startswith(prefix(n))
        if messages[n].role == "assistant":
            assert longer.startswith(prefix(n, prompt=True, enable_thinking=messages[n].reasoning_content is not None))


@given(conversations(), ASSISTANTS, TOOLS, st.sampled_from(GENERATIONS))
def test_what_is_rendered_is_parsed_back(
    messages: list[Message], answer: Message, tools: list[Tool] | None, generation: Generation
) -> None:
    thinking = answer.reasoning_content is not None
    prompt = render_ids(messages, tokenizer(), tools, enable_thinking=thinking, generation=generation)
    whole = render_ids(
        [*messages, answer],
        tokenizer(),
        tools,
        add_generation_prompt=False,
        enable_thinking=thinking,
        generation=generation,
    )
    assert whole[: len(prompt)] == prompt
    parser = OutputParser([TYPED], thinking=thinking, generation=generation, make_call_id=lambda: "")
    stream = TokenStream(parser, tokenizer())
    assert collect([*stream.feed(whole[len(prompt) :]), *stream.finish()]) == answer


# No smuggling ---------------------------------------------------------------------------------------------------------

HOSTILE = st.lists(st.sampled_from([*(name for name, _ in special_tokens()), "hi"]), max_size=5).map("".join)


@given(HOSTILE, HOSTILE, HOSTILE, st.sampled_from(GENERATIONS))
def test_written_text_never_becomes_a_special_token(user: str, key: str, other: str, generation: Generation) -> None:
    def tokens(user: str, key: str, other: str) -> list[int]:
        tool = Tool(f"t{other}", other, {"properties": {key: {"description": other}}})
        messages = [
            Message("system", other),
            Message("user", user),
            Message("assistant", other, user, (ToolCall(f"t{other}", {f"k{key}": other, "n": [other]}),)),
            Message("tool", other),
        ]
        return render_ids(messages, tokenizer(), [tool], generation=generation)

    special = set(tokenizer().special_ids.values())
    hostile = tokens(user, key, other)
    assert [i for i in hostile if i in special] == [i for i in tokens("hi", "hi", "hi") if i in special]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_marker_of_the_layout_is_a_special_token(generation: Generation) -> None:
    ids = render_ids(AGENT_TURNS[:-1], tokenizer(), [TOOL], generation=generation)
    names = {token_id: name for name, token_id in tokenizer().special_ids.items()}
    seen = {names[i] for i in ids if i in names}
    roles = {"[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"}
    assert seen == {*Marker, *roles, "<tool_response>", "</tool_response>"}


@given(conversations(), TOOLS, st.sampled_from(GENERATIONS))
def test_ids_spell_the_text(messages: list[Message], tools: list[Tool] | None, generation: Generation) -> None:
    ids = render_ids(messages, tokenizer(), tools, generation=generation)
    assert tokenizer().decode(ids) == render(messages, tools, generation=generation)


def test_segments_tell_template_text_from_written_text() -> None:
    segments = render_segments(
        [Message("user", "<|user|>")],
        add_generation_prompt=True,
        enable_thinking=True,
        clear_thinking=True,
        generation="glm-5",
    )
    assert [(s.text, s.is_template) for s in segments] == [
        ("[gMASK]<sop><|user|>", True),
        ("<|user|>", False),
        ("<|assistant|><think>", True),
    ]
