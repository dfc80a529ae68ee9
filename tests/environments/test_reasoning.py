"""Mathematics, reasoning-gym, code and tool-integrated reasoning: the gold answer, wrong ones, and hostile ones."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.agents.endpoint import ScriptedEndpoint
from glm5.environments.base import EnvironmentFailure
from glm5.environments.code import Code
from glm5.environments.gym import ReasoningGym
from glm5.environments.maths import Maths, last_box
from glm5.environments.tir import ToolIntegratedReasoning
from glm5.errors import UsageError
from glm5.sandbox import SandboxError
from glm5.text.messages import Message, ToolCall


def rewards(environment, pairs):
    """The rewards of (task, what the model answers) in one event loop; the environment is closed."""

    async def go():
        try:
            return [
                await environment.run(task, ScriptedEndpoint(said if callable(said) else lambda *_, said=said: said))
                for task, said in pairs
            ]
        finally:
            await environment.close()

    return asyncio.run(go())


@pytest.mark.parametrize("make", [Maths, Code, ToolIntegratedReasoning])
def test_tasks_repeat_and_splits_are_disjoint(make):
    prompts = {
        split: {make().task(split, index).messages[0].content for index in range(60)} for split in ("train", "held_out")
    }
    assert prompts["train"].isdisjoint(prompts["held_out"])
    assert len(prompts["train"]) > 30
    assert make().task("train", 7) == make().task("train", 7)
    assert json.loads(json.dumps(dict(make().task("train", 7).hidden))) == make().task("train", 7).hidden


def test_mathematics_is_compared_as_mathematics():
    environment = Maths(timeout=8)
    tasks = [environment.task("train", index) for index in range(8)]
    two = replace(tasks[0], hidden={"answer": "2"})
    right = [(task, f"So it is \\boxed{{{task.hidden['answer']}}}.") for task in tasks]
    right += [(two, "\\boxed{\\frac{4}{2}}"), (two, "\\boxed{1}, no: \\boxed{x = 2.0}")]
    wrong = [(task, f"\\boxed{{{answer}}}") for task in tasks[:4] for answer in ("77", "no")]
    wrong += [(two, f"\\boxed{{{a}}}") for a in ("1, 2", "1 \\text{ or } 2", "\\{1, 2\\}", "9^{9^{9^{9}}}", "x")]
    fault = [(two, said) for said in ("2", "", "\\boxed{}", "\\boxed{2", "\\boxed{2} or \\boxed{}")]
    graded = rewards(environment, right + wrong + fault)
    assert [r.value for r in graded] == [1.0] * len(right) + [0.0] * (len(wrong) + len(fault))
    assert all(r.parts["format"] == 0 for r in graded[-len(fault) :])


@given(st.text(alphabet="ab{}", max_size=12))
def test_the_box_is_balanced(inside):
    depth = lowest = 0
    for letter in inside:
        depth += (letter == "{") - (letter == "}")
        lowest = min(lowest, depth)
    if depth == 0 and lowest == 0:
        assert last_box(f"a \\boxed{{0}} and \\boxed{{{inside}}} end") == (inside or None)


def test_mathematics_from_a_file_with_an_answer_that_is_none(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(json.dumps({"problem": f"Say {n}.", "answer": str(n)}) for n in range(40)))
    environment = Maths(path=path)
    task = environment.task("held_out", 0)
    number = task.hidden["answer"]
    assert task.messages[0].content.startswith(f"Say {number}.")
    unreadable = replace(task, hidden={"answer": " "})
    assert [r.value for r in rewards(environment, [(task, f"\\boxed{{{number}}}")])] == [1.0]
    with pytest.raises(EnvironmentFailure, match="no LaTeX"):
        rewards(environment, [(unreadable, "\\boxed{1}")])


def test_reasoning_gym_scores_by_its_own_scorer():
    environment = ReasoningGym(datasets=["leg_counting", "lcm"], settings={"lcm": {"max_value": 30}})
    tasks = [environment.task("train", index) for index in range(4)]
    held_out = {environment.task("held_out", index).messages for index in range(10)}
    assert held_out.isdisjoint({environment.task("train", index).messages for index in range(10)})
    assert tasks[1] == environment.task("train", 1)
    assert [task.kind for task in tasks] == ["leg_counting", "lcm"] * 2
    graded = rewards(environment, [(t, s) for t in tasks for s in (f" {t.hidden['answer']}\n", "no idea", "")])
    assert [r.value == 1 for r in graded] == [True, False, False] * 4
    assert [r.value for r in graded[2::3]] == [0.0] * 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "datasets"),
        ({"datasets": ["leg_count"]}, "did you mean one of: leg_counting"),
        ({"datasets": ["lcm"], "settings": {"lcm": {"largest": 3}}}, "does not take the settings"),
        ({"datasets": ["lcm"], "settings": {"gcd": {}}}, "which it does not draw from"),
    ],
)
def test_wrong_options_of_reasoning_gym(options, told):
    with pytest.raises(UsageError, match=told):
        ReasoningGym(**options)


HOSTILE = [
    "import sys; sys.exit(0)",
    "import os; os._exit(0)",
    "print('all 8 tests passed')",
    "while True: pass",
    "def {f}(xs): raise SystemExit(0)",
    "def {f}(xs):\n    class Same(int):\n        __eq__ = lambda *_: True\n    return Same(0)",
    "import json\njson.dumps = lambda *_: 'true'\ndef {f}(xs): return 1",
    "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'true\\n' * 9)\n    except OSError: pass",
]


def test_code_is_judged_by_its_results():
    environment = Code(timeout=1.0)
    tasks = [environment.task("train", index) for index in range(6)]
    block = "Here:\n```python\n{}\n```\n".format
    right = [(task, block(task.hidden["solution"])) for task in tasks]
    noisy = (tasks[0], block("print('hello')\n" + tasks[0].hidden["solution"]))
    wrong = [(tasks[0], block(code.replace("{f}", tasks[0].hidden["function"]))) for code in HOSTILE]
    fault = [(tasks[0], said) for said in ("", "no code", "```python\nunfinished")]
    graded = rewards(environment, [*right, noisy, *wrong, *fault])
    assert [r.value for r in graded] == [1.0] * 7 + [0.0] * (len(wrong) + len(fault)), [r.evidence for r in graded]
    assert "ended (time)" in graded[7 + 3].evidence
    assert all(r.parts["format"] == 0 for r in graded[-3:])


def test_code_from_a_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    tests = [{"arguments": [1, 2], "expected": {"sum": 3.0}}, {"arguments": [0, 0], "expected": {"sum": 0}}]
    rows = [{"prompt": f"Add, way {n}.", "function": "add", "tests": tests} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    environment = Code(path=path)
    task = environment.task("held_out", 3)
    said = ["return {'sum': a + b}", "return {'sum': a - b}", "return {'sum': True}", "return a + b", "return {b'x'}"]
    graded = rewards(environment, [(task, f"```\ndef add(a, b): {code}\n```") for code in said])
    assert [r.value for r in graded] == [1, 0, 0, 0, 0]
    path.write_text(json.dumps({"prompt": "p", "function": "f", "tests": [{"arguments": 3}]}))
    with pytest.raises(UsageError, match="should be"):
        Code(path=path)


def call(code: str) -> Message:
    return Message("assistant", "", "I compute.", (ToolCall("python", {"code": code}, "c1"),))


def test_reasoning_with_a_tool():
    environment = ToolIntegratedReasoning(max_turns=3, output_characters=100, timeout=2)
    tasks = [environment.task("train", index) for index in range(3)]
    seen = []

    def compute(task):
        def play(messages, tools):
            assert [tool.name for tool in tools] == ["python"]
            if messages[-1].role == "user":
                return call(f"print({task.hidden['answer']})")
            seen.append(messages[-1])
            return f"\\boxed{{{messages[-1].content}}}"

        return play

    def show(code):
        def play(messages, tools):
            if messages[-1].role == "user":
                return call(code)
            seen.append(messages[-1])
            return "\\boxed{none}"

        return play

    task = tasks[0]
    undefined = Message("assistant", "", None, (ToolCall("shell", {"code": "ls"}),))
    script = [(t, compute(t)) for t in tasks]
    script += [(task, show(code)) for code in ("1 / 0", "while True: pass", "print('x' * 999)", "pass")]
    script += [(task, lambda *_: call("print(1)")), (task, lambda *_: undefined), (task, lambda *_: "<tool_call>py")]
    graded = rewards(environment, script)
    assert [r.value for r in graded] == [1.0] * 3 + [0.0] * 7
    assert all(message.tool_call_id == "c1" for message in seen)
    errors, ended, long, silent = (message.content for message in seen[3:])
    assert "ZeroDivisionError" in errors
    assert "[ended: time]" in ended
    assert "characters left out" in long
    assert len(long) < 150
    assert silent == "[no output]"
    assert [r.evidence.split(",")[0] for r in graded[7:]] == [
        "no answer after 3 turns",
        "a call of 'shell'",
        "a malformed tool call: '<tool_call>py'",
    ]


def test_a_broken_sandbox_is_no_zero(monkeypatch):
    environment = Code()
    task = environment.task("train", 0)
    monkeypatch.setenv("PATH", "/nowhere")  # there is no bubblewrap
    with pytest.raises(EnvironmentFailure, match="sandbox") as failure:
        rewards(environment, [(task, "```python\npass\n```")])
    assert isinstance(failure.value.__cause__, SandboxError)
