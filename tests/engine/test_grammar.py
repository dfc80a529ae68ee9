"""Structured output: whatever the network would like, the text fits."""

import json
import re
from typing import Any, Literal

import pytest
import torch

from glm5.engine.core import EngineCore
from glm5.engine.records import Grammar, SamplingParams
from glm5.errors import UsageError
from glm5.text.markers import Marker
from glm5.text.tokenizer import Tokenizer
from tests.engine.lone import SMALL, run
from tests.model.shapes import perturbed, tiny_config

TOKENIZER = Tokenizer.train([json.dumps({"name": "the cat sat on the mat", "n": 12}) * 20 + "yes no hello " * 20], 300)
SEEDS = range(4)
WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["days", "unit"],
    },
}
NO_ARGUMENTS = {"name": "list_files", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def core() -> EngineCore:
    model = perturbed(tiny_config(vocab_size=TOKENIZER.vocab_size, eos_token_id=TOKENIZER.stop_ids))
    with torch.no_grad():  # a network that likes quotes and ends: otherwise strings ramble on
        model.lm_head.weight *= 0.5
    return EngineCore(model, SMALL, TOKENIZER)


def texts(core: EngineCore, grammar: Grammar, prompt: str = "hello", **how: Any) -> list[tuple[str, list[int]]]:
    """What comes out for some seeds, the stop token removed; all must have stopped by themselves."""
    ids = TOKENIZER.encode(prompt, allow_special=True)
    bias = {TOKENIZER.encode('"')[0]: 6.0, TOKENIZER.special_ids[Marker.END_ARG_VALUE]: 6.0}
    outs = []
    for seed in SEEDS:
        params = SamplingParams(max_tokens=300, seed=seed, grammar=grammar, logit_bias=bias, **how)
        [[out]] = run(core, [ids], params)
        assert out.finish_reason == "stop"
        assert out.ids[-1] in TOKENIZER.stop_ids
        outs.append((TOKENIZER.decode(out.ids[:-1]), out.ids[:-1]))
    return outs


def test_json_schema(core: EngineCore) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": {"type": "string", "maxLength": 5}},
        "required": ["a", "b", "c"],
        "additionalProperties": False,
    }
    for text, ids in texts(core, Grammar("json_schema", schema)):
        value = json.loads(text)
        assert isinstance(value["a"], int)
        assert value["b"] in ("x", "y")
        assert len(value["c"]) <= 5
        assert not set(ids) & set(TOKENIZER.special_ids.values())


def test_regex_choice_and_ebnf(core: EngineCore) -> None:
    for text, _ in texts(core, Grammar("regex", r"[a-c]{3}-[0-9]{1,4}")):
        assert re.fullmatch(r"[a-c]{3}-[0-9]{1,4}", text)
    for text, _ in texts(core, Grammar("choice", ["yes", 'no "quoted"', "ünï"])):
        assert text in ("yes", 'no "quoted"', "ünï")
    for text, _ in texts(core, Grammar("ebnf", 'root ::= "<" [a-z] ">"')):
        assert re.fullmatch("<[a-z]>", text)


def test_a_tool_call_is_made_of_special_tokens(core: EngineCore) -> None:
    special = TOKENIZER.special_ids
    for text, ids in texts(core, Grammar("tool_calls", {"tools": [WEATHER], "parallel": False})):
        assert ids[0] == special[Marker.TOOL_CALL]
        assert ids[-1] == special[Marker.END_TOOL_CALL]
        assert ids.count(special[Marker.TOOL_CALL]) == 1
        form = (
            r"<tool_call>get_weather(<arg_key>city</arg_key><arg_value>.*</arg_value>)?"
            r"<arg_key>days</arg_key><arg_value>-?\d+</arg_value><arg_key>unit</arg_key><arg_value>[CF]</arg_value></tool_call>"
        )
        assert re.fullmatch(form, text, re.DOTALL)
        assert ids.count(special[Marker.ARG_KEY]) == text.count("<arg_key>")


def test_one_of_several_tools_or_several_calls(core: EngineCore) -> None:
    one = Grammar("tool_calls", {"tools": [WEATHER, NO_ARGUMENTS], "parallel": False})
    many = Grammar("tool_calls", {"tools": [NO_ARGUMENTS], "parallel": True})
    for text, _ in texts(core, one):
        assert text.startswith(("<tool_call>get_weather<arg_key>", "<tool_call>list_files</tool_call>"))
    for text, _ in texts(core, many):
        assert re.fullmatch("(<tool_call>list_files</tool_call>)+", text)


def test_it_is_armed_behind_the_thought(core: EngineCore) -> None:
    grammar = Grammar("choice", ["yes", "no"], after_thinking=True)
    for text, _ in texts(core, grammar, prompt="hello<think>", thinking_budget=5, min_tokens=7):
        thought, _, answer = text.partition("</think>")
        assert thought
        assert answer in ("yes", "no")
    for text, _ in texts(core, grammar, prompt="hello</think>"):
        assert text in ("yes", "no")


@pytest.mark.parametrize("kind", ["choice", "tool_calls"])
def test_the_thought_is_no_way_around_it(core: EngineCore, kind: Literal["choice", "tool_calls"]) -> None:
    """A network that wants nothing but to end the turn or to call a tool inside the thought."""
    value = ["yes", "no"] if kind == "choice" else {"tools": [NO_ARGUMENTS]}
    grammar = Grammar(kind, value, after_thinking=True)
    escapes = [*TOKENIZER.stop_ids, TOKENIZER.special_ids[Marker.TOOL_CALL]]
    ids = TOKENIZER.encode("hello<think>", allow_special=True)
    for seed in SEEDS:
        params = SamplingParams(
            max_tokens=60, seed=seed, grammar=grammar, thinking_budget=5, logit_bias=dict.fromkeys(escapes, 100.0)
        )
        [[out]] = run(core, [ids], params)
        thought, _, answer = TOKENIZER.decode(out.ids[:-1]).partition("</think>")
        assert not set(TOKENIZER.encode(thought, allow_special=True)) & set(escapes)
        assert TOKENIZER.special_ids[Marker.END_THINK] in out.ids
        assert answer in (("yes", "no") if kind == "choice" else ("<tool_call>list_files</tool_call>",))


def test_what_does_not_compile_is_refused(core: EngineCore) -> None:
    for grammar in (
        Grammar("json_schema", {"type": "nonsense"}),
        Grammar("regex", "[a-"),
        Grammar("ebnf", "root ::= nowhere"),
        Grammar("choice", []),
        Grammar("tool_calls", {"tools": []}),
    ):
        with pytest.raises(UsageError, match=f"{grammar.kind} grammar cannot be compiled"):
            core.prepare("x", [1], SamplingParams(grammar=grammar))
