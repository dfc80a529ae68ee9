"""Repairs in the real sandbox: gold is 1, nothing is 0, tricks are 0; demonstrations say what the tests say."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.agents.endpoint import Reply, ScriptedEndpoint
from glm5.environments.base import Environment, Reward, Task, load_environment
from glm5.environments.repair import TOOLS, Repair
from glm5.environments.splits import split_of
from glm5.errors import UsageError
from glm5.text.messages import Message, ToolCall, conversation_from_openai
from glm5.text.template import render_ids

Calls = list[ToolCall]
FINISH = ToolCall("finish")
TEST = ToolCall("run_tests")


@pytest.fixture(scope="module")
def play() -> Iterator[Callable[..., Any]]:
    """Runs coroutines on one loop, with one environment and its sandbox for the module."""
    with asyncio.Runner() as runner:
        environment = Repair(timeout=5.0, workers=2)

        def run(work: Callable[[Repair], Coroutine[Any, Any, Any]]) -> Any:
            return runner.run(work(environment))

        yield run
        runner.run(environment.close())


def scripted(*turns: Calls | Message | Reply) -> ScriptedEndpoint:
    """A model that makes these turns, one after the other."""
    waiting = iter(turns)

    def answer(messages: Any, tools: Any) -> Message | Reply:
        turn = next(waiting)
        return Message("assistant", tool_calls=tuple(turn)) if isinstance(turn, list) else turn

    return ScriptedEndpoint(answer)


def edit(line: int | str, text: str) -> ToolCall:
    return ToolCall("edit", {"line": line, "text": text})


def gold(task: Task) -> Calls:
    pairs = enumerate(zip(task.hidden["broken"], task.hidden["solution"]), start=1)
    return [edit(number, right.strip()) for number, (broken, right) in pairs if broken != right]


def graded(play: Callable[..., Any], task: Task, *turns: Calls | Message | Reply) -> Reward:
    return play(lambda environment: environment.run(task, scripted(*turns)))


def test_gold_is_one_and_nothing_is_zero_over_500_tasks(play: Callable[..., Any]) -> None:
    async def all_of(environment: Repair) -> tuple[list[float], list[float]]:
        tasks = [environment.task("train", index) for index in range(500)]
        fixed = await asyncio.gather(*(environment.run(t, scripted([*gold(t), FINISH])) for t in tasks))
        idle = await asyncio.gather(*(environment.run(t, scripted([FINISH])) for t in tasks))
        return [reward.value for reward in fixed], [reward.value for reward in idle]

    fixed, idle = play(all_of)
    assert fixed == [1.0] * 500
    assert idle == [0.0] * 500


def test_a_repair_turn_by_turn(play: Callable[..., Any]) -> None:
    environment = Repair()
    task = environment.task("held_out", 3)
    endpoint = scripted([TEST], gold(task), [TEST, ToolCall("read")], [FINISH])
    reward = play(lambda environment: environment.run(task, endpoint))
    assert reward == Reward(1.0, {"format": 1.0, "finish": 1.0, "tests": 1.0}, "pass")
    said = [message.content for message in endpoint.requests[-1] if message.role == "tool"]
    assert said[0].startswith("fail (")
    assert " gave " in said[0]
    assert said[1:3] == ["ok", "pass"]
    assert said[3] == "\n".join(f"{n} {line}" for n, line in enumerate(task.hidden["solution"], start=1))
    assert task.messages[0].content.startswith(f"fix\n1 # {task.hidden['solution'][0][2:]}\n2 def ")


def test_passing_without_finish_is_zero(play: Callable[..., Any]) -> None:
    task = Repair().task("train", 0)
    reward = graded(play, task, gold(task), *[[TEST]] * 7)
    assert reward.value == 0
    assert reward.evidence == "not finished after 8 turns"


@pytest.mark.parametrize(
    "turn",
    [
        Message("assistant", "It is fixed."),
        Message("assistant", "<tool_call>finish"),
        [ToolCall("submit")],
        [ToolCall("edit", {"line": 3})],
        Reply(Message("assistant", tool_calls=(FINISH,)), "length"),
    ],
    ids=["text", "malformed call", "unknown tool", "missing argument", "cut"],
)
def test_a_format_error_ends_the_trace(play: Callable[..., Any], turn: Any) -> None:
    task = Repair().task("train", 1)
    reward = graded(play, task, gold(task), turn)
    assert reward.value == 0
    assert reward.parts["format"] == 0
    assert reward.evidence


def test_edits_that_cannot_be(play: Callable[..., Any]) -> None:
    task = Repair().task("train", 2)
    bad = [edit(0, "x"), edit(99, "x"), edit("two", "x"), edit(3, "a\nb"), edit("3", "pass")]
    endpoint = scripted(bad, [FINISH])
    play(lambda environment: environment.run(task, endpoint))
    said = [message.content for message in endpoint.requests[-1] if message.role == "tool"]
    assert said == ["no line 0", "no line 99", "no line 0", "one line only", "ok"]


TRICKS = {
    "leave": "import sys; sys.exit(0)",
    "leave hard": "import os; os._exit(0)",
    "print": "print('pass'); return None",
    "print results": "import os; [os.write(n, b'{\"value\": 0}\\n' * 8) for n in range(1, 9)]",
    "endless": "while True: pass",
    "patch the harness": "import json; json.dumps = lambda *a, **k: '{\"value\": 0}'",
    "patch main": "import __main__; __main__.call_all = lambda *a: [{'value': 0}] * 8",
    "equal to all": "return type('E', (dict,), {'__eq__': lambda *a: True})()",
    "raise": "raise SystemExit('pass')",
    "read memory": "import gc, sys; return [o for o in gc.get_objects() if type(o) is dict and 'expected' in o]",
    "kill": "import os, signal; os.kill(os.getppid(), 9); os.kill(0, 9)",
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_tricks_score_nothing(play: Callable[..., Any], trick: str) -> None:
    """In the body, and at the level of the module."""
    task = next(t for t in (Repair().task("train", n) for n in range(50)) if t.hidden["tests"][0][1] not in (0, None))
    assert graded(play, task, [edit(3, trick), FINISH]).value == 0
    assert graded(play, task, [edit(1, trick.replace("return ", "x = ")), FINISH]).value == 0
    assert graded(play, task, [*gold(task), FINISH]).value == 1


def test_results_are_remembered_by_code_and_tests(play: Callable[..., Any]) -> None:
    async def twice(environment: Repair) -> int:
        task = environment.task("train", 7)
        await environment.run(task, scripted([TEST], [TEST], [FINISH]))
        before = len(environment._results)
        await environment.run(task, scripted([TEST], [FINISH]))
        return len(environment._results) - before

    assert play(twice) == 0


@given(st.integers(0, 2**32), st.sampled_from(["train", "held_out"]), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_tasks_are_what_they_claim(index: int, split: Any, difficulty: int) -> None:
    environment = Repair(difficulty=difficulty)
    task = environment.task(split, index)
    assert task == Repair(difficulty=difficulty).task(split, index)
    assert task.id == f"repair/{split}/{index}"
    assert split_of("\n".join(task.hidden["solution"])) == split
    assert len(gold(task)) == (2 if difficulty == 3 else 1)
    assert json.loads(json.dumps(task.hidden)) == task.hidden
    assert task.tools == ()
    assert "@" not in task.messages[0].content
    assert "$" not in task.messages[0].content


def test_tasks_differ_and_every_kind_is_there() -> None:
    tasks = [Repair().task("train", index) for index in range(500)]
    assert len({task.messages[0].content for task in tasks}) > 480
    kinds = Counter(task.kind for task in tasks)
    assert set(kinds) == {"operator", "comparison", "constant", "variable"}
    assert min(kinds.values()) > 50


def test_options() -> None:
    assert load_environment("repair", {"announce_tools": True}).task("train", 0).tools == TOOLS
    with pytest.raises(UsageError, match="difficulty"):
        Repair(difficulty=4)
    with pytest.raises(UsageError, match="quality"):
        list(Repair().demonstrations("train", 1, 0, 1.5))


def test_the_mix_of_demonstrations() -> None:
    rows = list(Repair().demonstrations("train", 400, 5, 0.4))
    assert rows[:20] == list(Repair().demonstrations("train", 20, 5, 0.4))
    share = Counter(row["strategy"] for row in rows)
    wanted = {"fix": 100, "fix again": 60, "hasty": 80, "give up": 60, "bad edit": 60, "two wrong": 40}
    assert all(abs(share[name] - count) < 30 for name, count in wanted.items())
    assert all(row["correct"] == (row["strategy"] in ("fix", "fix again")) for row in rows)
    assert all(row["correct"] for row in Repair().demonstrations("train", 50, 1, 1.0))
    assert not any(row["correct"] for row in Repair().demonstrations("train", 50, 1, 0.0))


def test_demonstrations_say_what_the_environment_says(play: Callable[..., Any]) -> None:
    """Every demonstration, replayed: the same answers of the tools, and the reward it claims."""

    async def replay(environment: Repair) -> None:
        for row in environment.demonstrations("train", 40, 3, 0.4):
            conversation = conversation_from_openai(row["messages"])
            lines = [line.partition(" ")[2] for line in conversation[0].content.splitlines()[1:]]
            problem = next(p for p in environment_problems(environment, 3) if list(p.broken) == lines)
            task = Task(
                "replay",
                "repair",
                tuple(conversation[:1]),
                hidden={
                    "function": problem.function,
                    "broken": lines,
                    "tests": [[test.arguments, test.expected] for test in problem.tests],
                },
            )
            endpoint = scripted(*(turn for turn in conversation if turn.role == "assistant"))
            reward = await environment.run(task, endpoint)
            assert reward.value == float(row["correct"])
            assert endpoint.requests[-1] == conversation[:-1]

    play(replay)


def environment_problems(environment: Repair, seed: int) -> Iterator[Any]:
    """The problems that `demonstrations` draws with this seed."""
    from random import Random

    from glm5.environments.repair_demonstrations import choose, demonstrate

    rng = Random(f"demonstrations/train/{seed}")
    while True:
        problem = environment._problem("train", rng.randrange(2**32))
        demonstrate(problem, choose(rng, 0.4), rng, False)
        yield problem


def test_wrong_steps_can_be_masked() -> None:
    rows = list(Repair(mask_errors=True).demonstrations("train", 200, 0, 0.4))
    for row in rows:
        names = [turn["tool_calls"][0]["function"]["name"] for turn in row["messages"] if turn.get("train") is False]
        expected = {
            "fix": [],
            "fix again": ["edit"],
            "hasty": ["edit", "finish"],
            "give up": ["finish"],
            "bad edit": ["edit", "finish"],
            "two wrong": ["edit", "edit", "finish"],
        }
        assert names == expected[row["strategy"]]
    unmasked = Repair().demonstrations("train", 200, 0, 0.4)
    assert not any("train" in turn for row in unmasked for turn in row["messages"])


def test_a_rollout_is_short(small_tokenizer: Any) -> None:
    """In tokens of a vocabulary of 1024, which is what makes the task learnable by a nano model."""
    lengths = []
    for row in Repair().demonstrations("train", 200, 0, 0.4):
        messages = conversation_from_openai(row["messages"])
        lengths.append(len(render_ids(messages, small_tokenizer, enable_thinking=False, add_generation_prompt=False)))
    assert 100 < sum(lengths) / len(lengths) < 250
    assert max(lengths) < 450


def test_it_is_an_environment() -> None:
    environment: Environment = Repair()
    assert environment.name == "repair"
