"""Letters and sums: right by an independent solver, disjoint, repeatable, short."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.environments.base import Task
from glm5.environments.letters import KINDS, Letters
from glm5.environments.splits import split_of
from glm5.errors import UsageError
from glm5.text.messages import Message, conversation_from_openai
from glm5.text.template import render_ids

INDEX = st.integers(0, 2**32)
KIND = st.sampled_from(KINDS)


def solve(kind: str, prompt: str) -> str:
    """The answer, found from the prompt alone."""
    name, *lines = prompt.split("\n")
    assert name == kind
    items = lines[-1].split(",")
    match kind:
        case "reverse":
            return ",".join(items[::-1])
        case "sort":
            return ",".join(sorted(items))
        case "count":
            return str(Counter(items)[lines[0]])
        case _:
            return str(sum(map(int, items)))


@given(index=INDEX, split=st.sampled_from(["train", "held_out"]))
def test_the_hidden_answer_is_right_and_the_task_stays_the_same(index, split):
    environment = Letters()
    task = environment.task(split, index)
    assert task.hidden["answer"] == solve(task.kind, task.messages[0].content)
    assert task == Letters().task(split, index)
    assert task.id == f"letters/{split}/{index}"
    assert task.kind == KINDS[index % len(KINDS)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_problem_is_in_both_splits(kind):
    environment = Letters(kinds=[kind])

    def prompts(split):
        tasks = (environment.task(split, index).messages[0].content for index in range(400))
        return {canonical(kind, prompt) for prompt in tasks}

    def canonical(kind, prompt):
        head, _, items = prompt.rpartition("\n")
        return head + "".join(sorted(items.split(","))) if kind in ("sort", "add") else prompt

    train, held_out = prompts("train"), prompts("held_out")
    assert len(train) > 100
    assert len(held_out) > 50
    assert train.isdisjoint(held_out)


@given(st.text())
def test_a_split_is_decided_by_the_content_alone(content):
    assert split_of(content) in ("train", "held_out")
    assert split_of(content) == split_of(str(content))


@given(index=INDEX, kind=KIND, lengths=st.tuples(st.integers(2, 9), st.integers(2, 9)).map(sorted))
def test_lengths_are_kept(index, kind, lengths):
    task = Letters(kinds=[kind], lengths=lengths, digits=lengths).task("train", index)
    items = task.messages[0].content.split("\n")[-1].split(",")
    sizes = [len(item) for item in items] if kind == "add" else [len(items)]
    assert all(lengths[0] <= size <= lengths[1] for size in sizes)


def test_rewards(grade):
    environment = Letters()
    for conversation in environment.demonstrations("train", 200, 3, 0.5):
        asked, answered = conversation_from_openai(conversation["messages"])
        task = Task("x", "letters", (asked,), hidden={"answer": solve(conversation["kind"], asked.content)})
        reward = grade(environment, task, lambda messages, tools, answered=answered: answered)
        assert reward.value == float(conversation["correct"]), reward.evidence


def test_white_space_is_free_and_everything_else_is_not(grade):
    environment = Letters(kinds=["sort"])
    task = environment.task("train", 0)
    answer = task.hidden["answer"]
    assert grade(environment, task, f" {answer.replace(',', ' , ')}\n").value == 1
    for wrong in (answer[:-2], f"{answer},a", answer.upper(), f"It is {answer}", answer[::-1]):
        assert grade(environment, task, wrong).value == 0
    for nothing in ("", " \n", Message("assistant", "", answer)):
        reward = grade(environment, task, nothing if isinstance(nothing, str) else lambda *_, n=nothing: n)
        assert (reward.value, reward.parts["format"], reward.evidence) == (0, 0, "no answer")


@given(seed=st.integers(0, 99), quality=st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=20, deadline=None)
def test_demonstrations_are_wrong_in_strategy_and_never_in_a_step(seed, quality):
    shown = list(Letters().demonstrations("train", 60, seed, quality))
    assert shown == list(Letters().demonstrations("train", 60, seed, quality))
    assert [c["kind"] for c in shown] == list(KINDS) * 15
    for conversation in shown:
        user, assistant = conversation["messages"]
        right = solve(conversation["kind"], user["content"])
        assert conversation["correct"] == (assistant["content"] == right)
        whole = full_thought(conversation["kind"], user["content"])
        assert whole.startswith(assistant["reasoning_content"])
        if conversation["correct"]:
            assert assistant["reasoning_content"] == whole
    share = sum(c["correct"] for c in shown) / len(shown)
    assert abs(share - quality) <= (0.25 if 0 < quality < 1 else 0)


def full_thought(kind: str, prompt: str) -> str:
    """The scratchpad, by another way than the environment's."""
    lines = prompt.split("\n")
    items = lines[-1].split(",")
    if kind == "add":
        width = max(map(len, items))
        a, b = (item.zfill(width) for item in items)
        columns = []
        for place in range(1, width + 1):
            carry = (int(a[len(a) - place + 1 :] or 0) + int(b[len(b) - place + 1 :] or 0)) // 10 ** (place - 1)
            columns.append(f"{a[-place]}{b[-place]}{carry}{int(a[-place]) + int(b[-place]) + carry:02d}")
        return " ".join(columns)
    if kind == "count":
        return "".join(f"{item}{items[: n + 1].count(lines[1])}" for n, item in enumerate(items))
    return "".join(f"{n}{item}" for n, item in enumerate(sorted(items) if kind == "sort" else items, 1))


def test_a_rollout_is_short_and_every_letter_is_one_token(small_tokenizer):
    lengths = []
    for conversation in Letters().demonstrations("train", 400, 0, 1.0):
        messages = conversation_from_openai(conversation["messages"])
        ids = render_ids(messages, small_tokenizer, add_generation_prompt=False)
        lengths.append(len(ids))
        text = messages[1].content + (messages[1].reasoning_content or "")
        assert len(small_tokenizer.encode(text)) == len(text)
    assert max(lengths) <= 60
    assert 25 <= sum(lengths) / len(lengths) <= 60


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": ["sort"]}, "has no option 'kind'; it has: kinds, lengths, digits"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["multiply"]}, "'reverse', 'sort', 'count' or 'add'"),
        ({"lengths": [7, 4]}, "from <= to"),
        ({"lengths": 4}, "lengths"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(UsageError, match=told):
        Letters(**options)


def test_wrong_demonstrations():
    with pytest.raises(UsageError, match="0 to 1"):
        next(Letters().demonstrations("train", 1, 0, 1.5))
