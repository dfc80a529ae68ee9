"""What the model keeps seeing: the view is a function of the log, and context managers make it shorter, exactly."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.agents.context import DiscardAll, Hybrid, KeepRecent, Summary
from glm5.agents.endpoint import ScriptedEndpoint
from glm5.agents.events import Entry, Folded, Observed, Replied, Rewound, Said
from glm5.agents.limits import Budget, Limits, Prices
from glm5.agents.outcomes import Status
from glm5.agents.stuck import is_degenerate
from glm5.agents.view import LEFT_OUT, View
from glm5.errors import UsageError
from glm5.text.messages import Message, ToolCall
from tests.agents.code.conftest import call


def log(rounds: int, prompt_tokens: int = 0) -> list[Entry]:
    events = [Said(Message("system", "s"), "system"), Said(Message("user", "task"), "person")]
    for n in range(rounds):
        events.append(
            Replied(Message("assistant", "", f"t{n}", (ToolCall("read", {}, f"c{n}"),)), "tool_calls", prompt_tokens)
        )
        events.append(Observed(f"c{n}", "read", f"result {n}"))
    return [Entry(number, 0.0, event) for number, event in enumerate(events)]


def fold(manager, view: View) -> Folded | None:
    folded = asyncio.run(manager.fold(view))
    if folded is not None:
        view.apply(Entry(10_000, 0.0, folded))
    return folded


def test_keep_recent_leaves_thoughts_and_calls():
    view = View(log(9))
    assert fold(KeepRecent(5, 4), view) is not None
    contents = [m.content for m in view.messages if m.role == "tool"]
    assert contents == [LEFT_OUT] * 4 + [f"result {n}" for n in range(4, 9)]
    assert [m.reasoning_content for m in view.messages if m.role == "assistant"] == [f"t{n}" for n in range(9)]
    assert fold(KeepRecent(5, 4), view) is None


@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 6))
def test_between_k_and_k_plus_batch_rounds_are_whole(rounds, k, batch):
    view = View(log(rounds))
    fold(KeepRecent(k, batch), view)
    whole = sum(m.role == "tool" and m.content != LEFT_OUT for m in view.messages)
    assert whole == (rounds if rounds < k + batch else k)


def test_discard_all_keeps_system_and_task_only():
    view = View(log(3, prompt_tokens=50_000))
    assert fold(DiscardAll(60_000), view) is None
    assert fold(DiscardAll(32_000), view).restart
    assert [m.content for m in view.messages] == ["s", "task"]
    assert view.tokens < 32_000
    assert fold(DiscardAll(32_000), view) is None


def test_hybrid_folds_first_and_restarts_when_that_is_not_enough():
    view = View(log(9, prompt_tokens=50_000))
    manager = Hybrid(KeepRecent(5, 4), DiscardAll(32_000))
    assert not fold(manager, view).restart
    assert fold(manager, view).restart


def test_a_summary_is_written_by_the_model():
    view = View(log(3, prompt_tokens=50_000))
    fold(Summary(ScriptedEndpoint(lambda m, t: "the file is x.py"), 32_000), view)
    assert view.messages[-1].content.endswith("the file is x.py")


@given(st.lists(st.sampled_from(["turn", "fold", "restart", "rewind", "words"]), max_size=25))
def test_the_view_of_a_whole_log_is_the_view_that_followed_it(acts):
    view, entries = View(), []

    def add(event) -> None:
        entries.append(Entry(len(entries), 0.0, event))
        view.apply(entries[-1])

    for entry in log(1):
        add(entry.event)
    for act in acts:
        number = len(entries)
        match act:
            case "turn":
                add(Replied(Message("assistant", "", None, (ToolCall("read", {}, f"c{number}"),)), "tool_calls"))
                add(Observed(f"c{number}", "read", "result"))
            case "fold":
                add(Folded("keep-recent", [s.number for s in view.shown if s.message.role == "tool"]))
            case "restart":
                add(Folded("discard-all", restart=True, summary="notes"))
            case "rewind":
                add(Rewound(number // 2))
            case "words":
                add(Said(Message("user", "words"), "person"))
    read = [Entry.from_json(json.loads(json.dumps(entry.to_json()))) for entry in entries]
    assert read == entries
    again = View(read)
    assert (again.messages, again.open_calls) == (view.messages, view.open_calls)


def test_after_a_restart_the_model_is_told_what_still_holds(project):
    turns = iter(range(100))

    def script(messages, tools):
        n = next(turns)
        if n == 0:
            return Message("assistant", tool_calls=(call("plan", steps="1. look"),))
        if n == 1:
            return Message("assistant", tool_calls=(call("shell", command="git push"),))
        if n == 2:
            return Message("assistant", tool_calls=(call("shell", command="seq 9000; echo x > new"),))
        assert "1. look" in messages[-1].content
        assert "git push" in messages[-1].content
        assert "A new" in messages[-1].content
        return Message("assistant", tool_calls=(call("finish", done=False, summary=""),))

    assert project.run(script, context="discard-all", threshold=2000).status == Status.GAVE_UP


def test_restarting_without_progress_ends(project):
    turns = iter(range(100))
    ending = project.run(
        lambda m, t: Message("assistant", tool_calls=(call("shell", command=f"seq {next(turns)} 9000"),)),
        context="discard-all",
        threshold=2000,
    )
    assert ending.status == Status.CONTEXT_FULL


def test_budgets_nest():
    batch = Budget(Limits(tokens=100))
    first, second = Budget(Limits(steps=2), parent=batch), Budget(Limits(), parent=batch)
    first.spend(60, 20, 10)
    assert (first.tokens, batch.tokens, first.exceeded()) == (50, 50, None)
    second.spend(50, 0, 0)
    assert first.exceeded()[0] == second.exceeded()[0] == Status.TOKEN_LIMIT
    assert "batch" in second.exceeded()[1]


def test_money_needs_prices():
    with pytest.raises(UsageError, match="prices"):
        Budget(Limits(money=1.0))
    budget = Budget(Limits(money=1.0), Prices(prompt=1e6))
    budget.spend(1, 0, 0)
    assert budget.exceeded()[0] == Status.MONEY_LIMIT


def test_only_repetition_is_degenerate():
    assert is_degenerate("I will fix it now. " * 500)
    assert is_degenerate("0" * 5000)
    assert not is_degenerate("0" * 500)
    with open(__file__) as file:
        assert not is_degenerate(file.read())
