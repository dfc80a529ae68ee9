"""The rule of the gateway, for any stream of tokens whatever: a faithful history extends what was sampled."""

import asyncio
import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.text.markers import STOP_TOKENS, Marker
from glm5.text.messages import Message, ToolCall, conversation_from_openai
from glm5.text.template import render
from tests.rl.gateway_helpers import TOOLS, scripted, through_json, tokenizer, written

# Fragments that make well-formed and broken calls likely, special tokens of other roles, and ids without a token.
FRAGMENTS = ("f", "g", "s", "n", "5", "2.0", "null", '{"b": 1.0, "a": 2}', " x\n", '"\\', "<|assistant|>")
PIECES = [
    *[written(text) for text in (*Marker, *FRAGMENTS)],
    written("Hm.</think>ok<tool_call>f<arg_key>n</arg_key><arg_value>2.0</arg_value></tool_call>"),
    written("Hm.</think><tool_call>g</tool_call><tool_call>f</tool_call>"),
    tokenizer().encode("🙂é")[:3],
    [400],
    [tokenizer().vocab_size],
]  # fmt: skip
SAMPLED = st.tuples(
    st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: [i for piece in pieces for i in piece]),
    st.sampled_from([*STOP_TOKENS, STOP_TOKENS[1]]).map(written),
).map(lambda parts: parts[0] + parts[1])
TURNS = st.lists(st.tuples(SAMPLED, st.integers(1, 40), st.booleans()), min_size=2, max_size=5)


@settings(max_examples=300, deadline=None)
@given(TURNS)
def test_a_faithful_history_extends_what_was_sampled(turns: list[tuple[list[int], int, bool]]) -> None:
    gateway, _ = scripted([ids for ids, _, _ in turns])
    history = [Message("user", "Begin.")]

    async def agent() -> None:
        for number, (_, max_tokens, thinking) in enumerate(turns):
            reply = await gateway.chat("r", history, TOOLS, max_tokens=max_tokens, thinking=thinking)
            results = [Message("tool", f"result {number}", tool_call_id=call.id) for call in reply.message.tool_calls]
            sent = [*history, reply.message, *(results or [Message("user", f"more {number}")])]
            history[:] = conversation_from_openai(through_json(sent))

    asyncio.run(agent())
    made = gateway.close("r").turns
    assert len(made) == len(turns)
    for earlier, later in pairwise(made):
        held = earlier.prompt_ids + earlier.ids
        assert later.prompt_ids[: len(held)] == held
        assert len(later.prompt_ids) > len(held)
    for turn, (ids, max_tokens, _) in zip(made, turns, strict=True):
        assert turn.ids == ids[:max_tokens]


TEXT = st.text("ab é🙂<>|\n{}", max_size=12)
ARGUMENTS = {"s": TEXT, "n": st.integers() | st.floats(-5, 5), "u": st.just({"b": [1, "x"]})}
CALLS = st.just(ToolCall("g")) | st.builds(ToolCall, st.just("f"), st.fixed_dictionaries({}, optional=ARGUMENTS))
REPLIES = st.builds(
    lambda content, thought, calls: Message("assistant", content.strip(), thought.strip(), tuple(calls)),
    TEXT, TEXT, st.lists(CALLS, max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(REPLIES, TEXT), min_size=1, max_size=4))
def test_well_formed_turns_read_as_the_template_writes_them(turns: list[tuple[Message, str]]) -> None:
    gateway, engine = scripted([reply for reply, _ in turns])
    history = [Message("system", "<|user|> is no marker here"), Message("user", "Begin.")]

    async def agent() -> None:
        for reply, answer in turns:
            got = await gateway.chat("r", history, TOOLS)
            prompt = engine.script.requests[-1].prompt_ids
            assert tokenizer().decode(prompt) == render(history, TOOLS, clear_thinking=False)
            assert render([got.message]) == render([reply])
            results = [Message("tool", answer, tool_call_id=call.id) for call in got.message.tool_calls]
            sent = [*history, got.message, *(results or [Message("user", answer)])]
            history[:] = conversation_from_openai(json.loads(json.dumps([each.to_openai() for each in sent])))

    asyncio.run(agent())
