"""Opening environments: built in, by dotted path, from one file of the user's; splits, files, replies, the worker."""

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from glm5.agents.endpoint import EndpointError, Reply, ScriptedEndpoint
from glm5.data.conversations import Conversation, read_lines, read_record
from glm5.environments.base import BUILT_IN, EnvironmentFailure, load_environment
from glm5.environments.demonstrate import write_demonstrations
from glm5.environments.letters import Letters
from glm5.environments.problems import ProblemFile
from glm5.environments.replies import format_error
from glm5.environments.splits import draw, split_of
from glm5.environments.worker import Worker, WorkerTimeout
from glm5.errors import UsageError
from glm5.text.messages import Message, Tool, ToolCall

MINE = """
from dataclasses import dataclass

from glm5.environments.base import Reward, Task
from glm5.text.messages import Message


@dataclass
class Parity:
    limit: int = 10
    name: str = "parity"

    def task(self, split, index):
        return Task(f"parity/{split}/{index}", "parity", (Message("user", f"Is {index % self.limit} even?"),))

    async def run(self, task, endpoint):
        reply = await endpoint.chat(task.messages)
        return Reward(float(reply.message.content == "yes"))

    async def close(self):
        pass


class Half:
    name = "half"
"""


def test_an_environment_in_one_file(tmp_path, grade):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    environment = load_environment(f"{path}:Parity", {"limit": 2})
    assert grade(environment, environment.task("train", 4), "yes").value == 1
    assert grade(environment, environment.task("train", 4), "no").value == 0


@pytest.mark.parametrize(
    ("spec", "options", "told"),
    [
        ("lettres", {}, "there is no environment 'lettres'; built in are: letters"),
        ("nowhere.at_all:Thing", {}, "no module 'nowhere'"),
        ("glm5.environments.letters:Nothing", {}, "no class 'Nothing'"),
        ("{folder}/none.py:Parity", {}, "no file"),
        ("{folder}/broken.py:Parity", {}, "ZeroDivisionError"),
        ("{folder}/mine.py:Parity", {"limits": 3}, "does not take the options"),
        ("{folder}/mine.py:Half", {}, "has no task, run, close"),
        ("letters", {"colour": 1}, "has no option 'colour'"),
    ],
)
def test_what_cannot_be_opened(tmp_path, spec, options, told):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=told):
        load_environment(spec.format(folder=tmp_path), options)


def test_built_in_and_dotted_are_the_same():
    assert isinstance(load_environment("letters", {}), Letters)
    assert isinstance(load_environment(BUILT_IN["letters"], {"kinds": ["sort"]}), Letters)


def test_opening_one_needs_no_torch_and_nothing_heavy():
    heavy = ("torch", "httpx", "sympy", "reasoning_gym", "math_verify", "numpy")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from glm5.environments.base import load_environment\n"
        "for name in ('letters', 'math', 'code', 'tir'): load_environment(name, {}).task('train', 0)\n"
        "import glm5.environments.gym, glm5.environments.demonstrate, glm5.agents.endpoint\n"
        f"print([name for name in {heavy} if sys.modules.get(name)])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_a_draw_that_cannot_succeed_says_so():
    lonely = next(text for text in map(str, range(99)) if split_of(text) == "train")
    assert draw("train", 0, lambda rng: lonely, str) == lonely
    with pytest.raises(UsageError, match="too few different problems"):
        draw("held_out", 0, lambda rng: lonely, str)


def test_a_problem_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(json.dumps({"problem": f"p{n}", "answer": "1"}) for n in range(100)))
    file = ProblemFile(path, {"problem": str, "answer": str}, "problem")
    train = {file.row("train", index)["problem"] for index in range(200)}
    held_out = {file.row("held_out", index)["problem"] for index in range(200)}
    assert train | held_out == {f"p{n}" for n in range(100)}
    assert train.isdisjoint(held_out)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no problems"),
        ('{"problem": "a", "answer": "1"}\n{"problem": "b"}', ":2: needs 'answer'"),
        ("[1]", ":1: a problem is an object"),
        ("{", ":1: not JSON"),
        ('{"problem": "", "answer": "1"}', "needs 'problem'"),
    ],
)
def test_a_broken_problem_file(tmp_path, text, told):
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        ProblemFile(path, {"problem": str, "answer": str}, "problem")
    with pytest.raises(UsageError, match="cannot be read"):
        ProblemFile(tmp_path / "none", {}, "problem")


def test_an_empty_split_says_so(tmp_path):
    path = tmp_path / "problems.jsonl"
    text = next(f"p{n}" for n in range(99) if split_of(f"p{n}") == "train")
    path.write_text(json.dumps({"problem": text}))
    with pytest.raises(UsageError, match="falls into the split 'held_out'"):
        ProblemFile(path, {"problem": str}, "problem").row("held_out", 0)


LOOK = Tool("look", parameters={"type": "object", "properties": {"where": {}}, "required": ["where"]})


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(Message("assistant", "yes"), "stop"), None),
        (Reply(Message("assistant", "", None, (ToolCall("look", {"where": 1}),)), "tool_calls"), None),
        (Reply(Message("assistant", " "), "stop"), "no answer"),
        (Reply(Message("assistant", "ye"), "length", completion_tokens=7), "cut after 7 tokens"),
        (Reply(Message("assistant", "yes"), "repetition"), "in circles"),
        (Reply(Message("assistant", "<tool_call>look<arg"), "stop"), "malformed tool call"),
        (Reply(Message("assistant", "", None, (ToolCall("find"),)), "tool_calls"), "the tools are: look"),
        (Reply(Message("assistant", "", None, (ToolCall("look"),)), "tool_calls"), "without where"),
    ],
)
def test_the_form_of_a_reply(reply, told):
    found = format_error(reply, [LOOK])
    assert found is None if told is None else told in (found or "")


def test_a_reply_that_was_given_up_is_not_the_models_fault():
    with pytest.raises(EndpointError, match="abort"):
        format_error(Reply(Message("assistant", "y"), "abort"))


def test_the_worker_outlives_whatever_happens_in_it():
    sleepy = Worker("time", 0.3)
    begun = time.monotonic()
    with pytest.raises(WorkerTimeout, match=r"longer than 0\.3 s"):
        sleepy.call("sleep", 60)
    assert time.monotonic() - begun < 20
    assert sleepy.call("sleep", 0) is None
    sleepy.close()
    calculator = Worker("operator", 20)
    with pytest.raises(EnvironmentFailure, match="ZeroDivisionError"):
        calculator.call("truediv", 1, 0)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: calculator.call("mul", n, n), range(40))) == [n * n for n in range(40)]
    calculator.close()
    dying = Worker("os", 20)
    with pytest.raises(EnvironmentFailure, match="exit code 3"):
        dying.call("_exit", 3)
    assert dying.call("getpid") > 0
    dying.close()


def test_written_demonstrations_can_be_read_for_training(tmp_path):
    path = tmp_path / "deep" / "letters.jsonl"
    assert write_demonstrations(Letters(), path, 20, 0, 0.7) == 20
    records = [read_record(line) for line in read_lines(path)]
    assert len(records) == 20
    assert all(isinstance(record, Conversation) and any(record.learned) for record in records)
    assert [file.name for file in path.parent.iterdir()] == ["letters.jsonl"]
    with pytest.raises(UsageError, match="at least 1"):
        write_demonstrations(Letters(), path, 0, 0, 0.7)
    with pytest.raises(UsageError, match="no demonstrations"):
        write_demonstrations(load_environment("code", {}), path, 1, 0, 0.7)


def test_an_endpoint_that_fails_is_no_reward():
    def broken(messages, tools):
        raise EndpointError("gone")

    with pytest.raises(EndpointError, match="gone"):
        asyncio.run(Letters().run(Letters().task("train", 0), ScriptedEndpoint(broken)))
