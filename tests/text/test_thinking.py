from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.text.thinking import ThinkingBudget, ThinkingOptions
from glm5.text.tokenizer import Tokenizer, special_tokens


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, ThinkingOptions(True, True, None)),
        ({"thinking": None, "chat_template_kwargs": None}, ThinkingOptions()),
        ({"thinking": {"type": "disabled"}}, ThinkingOptions(enable_thinking=False)),
        ({"thinking": {"type": "enabled", "clear_thinking": False}}, ThinkingOptions(clear_thinking=False)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ThinkingOptions(enable_thinking=False)),
        ({"chat_template_kwargs": {"clear_thinking": False}}, ThinkingOptions(clear_thinking=False)),
        (
            {"thinking": {"clear_thinking": False}, "chat_template_kwargs": {"enable_thinking": False}},
            ThinkingOptions(enable_thinking=False, clear_thinking=False),
        ),
        ({"thinking_token_budget": 0}, ThinkingOptions(budget=0)),
    ],
)
def test_both_spellings_of_the_switches(body: dict, options: ThinkingOptions) -> None:
    assert ThinkingOptions.from_request(body) == options


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"thinking": True}, "must be an object"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"clear_thinking": "no"}}, "clear_thinking must be true or false"),
        ({"chat_template_kwargs": {"enable_thinking": 0}}, "enable_thinking must be true or false"),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": {"enable_thinking": False}}, "contradict"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"thinking_token_budget": True}, "thinking_token_budget"),
    ],
)
def test_malformed_switches_are_refused(body: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        ThinkingOptions.from_request(body)


@given(
    limit=st.integers(0, 5),
    thinking=st.booleans(),
    wishes=st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "a", "b"]), max_size=30),
)
def test_no_turn_thinks_longer_than_its_budget(limit: int, thinking: bool, wishes: list[str]) -> None:
    budget = ThinkingBudget(limit, tokenizer(), thinking=thinking)
    names = {token_id: name for name, token_id in tokenizer().special_ids.items()}
    is_thinking, thought = thinking, 0
    for wish in wishes:
        token_id = budget.forced if budget.forced is not None else tokenizer().encode(wish, allow_special=True)[0]
        # A token is only ever forced where the budget is spent, and then it ends the thought.
        assert (budget.forced is not None) == (is_thinking and thought == limit)
        budget.observe(token_id)
        name = names.get(token_id)
        if name == "<think>":
            is_thinking = True
        elif name in ("</think>", "<tool_call>"):
            is_thinking = False
        else:
            thought += is_thinking
    assert thought <= limit


def test_a_budget_that_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="0 or more"):
        ThinkingBudget(-1, tokenizer())
