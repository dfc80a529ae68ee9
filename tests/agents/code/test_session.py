"""Whole sessions with a scripted model in the real sandbox: what is claimed, what is limited, what is remembered."""

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from glm5.agents.coding.page import page
from glm5.agents.coding.scripted import Program, serve
from glm5.agents.coding.session import SessionSettings, open_session
from glm5.agents.coding.show import show_log
from glm5.agents.endpoint import EndpointError, HttpEndpoint
from glm5.agents.events import Ended, EventLog, Observed, Said, Saved, read_log
from glm5.agents.limits import Limits
from glm5.agents.outcomes import Status
from glm5.errors import GLM5Error, UsageError
from glm5.text.messages import Message
from tests.agents.code.conftest import REPAIR, TEST, call

DONE = call("finish", done=True, summary="done", test_command=TEST)


def test_a_bug_is_repaired_and_shown_to_be(project):
    ending = project.run(REPAIR)
    assert ending.status == Status.VERIFIED
    assert (ending.exit_code, ending.changed) == (0, ["M calc.py"])
    assert "+    return a + b" in project.patch
    assert project.findings == []
    assert (project.root / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("steps", "doubt"),
    [
        ([call("finish", done=True, summary="done")], "no test command"),
        ([DONE], "never run"),
        ([call("shell", command=TEST), DONE], "never run"),
        ([call("run_tests", command=TEST), DONE], "exit code 1"),
        ([*REPAIR[2:4], call("write", path="calc.py", content="add = sum"), DONE], "changed after"),
        (
            [call("run_tests", command="echo ok"), call("finish", done=True, summary="", test_command="echo ok")],
            "succeeds whatever",
        ),
        (
            [
                call("run_tests", command=f"{TEST} || true"),
                call("finish", done=True, summary="", test_command=f"{TEST} || true"),
            ],
            "succeeds whatever",
        ),
        (
            [call("write", path="tests/test_calc.py", content="print(1)"), call("run_tests", command=TEST), DONE],
            "tests that were there before",
        ),
    ],
)
def test_a_claim_that_nothing_shows_is_unverified(project, steps, doubt):
    ending = project.run(steps)
    assert ending.status == Status.UNVERIFIED
    assert doubt in ending.evidence
    assert any("unverified" in finding for finding in project.findings)


def test_only_the_persons_test_command_counts_where_there_is_one(project):
    other = "python3 -c 'import calc'"
    steps = [call("run_tests", command=other), call("finish", done=True, summary="", test_command=other)]
    assert project.run(steps, test_command=TEST).status == Status.UNVERIFIED


def test_giving_up_is_an_ending_too(project):
    assert project.run([call("finish", done=False, summary="cannot")]).status == Status.GAVE_UP


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (Limits(steps=3), Status.STEP_LIMIT),
        (Limits(seconds=0.2), Status.TIME_LIMIT),
    ],
)
def test_limits(project, limits, status):
    steps = [call("shell", command=f"sleep 0.{number}") for number in range(9)]
    ending = project.run(steps, limits=limits)
    assert ending.status == status


def test_circles_are_told_then_ended(project):
    ending = project.run([call("shell", command="ls")])
    assert ending.status == Status.STUCK
    [nudge] = [said for said in project.events(Said) if said.reason == "stuck"]
    assert "same call" in nudge.message.content


def test_declared_waiting_is_no_circle(project):
    steps = [call("process", action="start", command="sleep 0.6"), *[call("process", action="log", name="p1")] * 7]
    assert project.run([*steps, call("finish", done=False, summary="")]).status == Status.GAVE_UP


def test_words_without_a_call_end_as_stuck(project):
    assert project.run([Message("assistant", "I could fix it.")]).status == Status.STUCK


def test_an_endpoint_that_fails_is_a_status_of_its_own(project):
    def dies(messages, tools):
        raise EndpointError("gone")

    assert project.run(dies).status == Status.ENDPOINT_FAILED
    assert project.events(Ended)[0].summary == "gone"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (call("fly"), "there is no tool"),
        (call("read"), "path is missing"),
        (call("read", path=7), "must be a string"),
        (call("read", path="calc.py", colour=1), "no argument colour"),
        (call("read", path="nowhere.py"), "cannot be read"),
        (call("edit", path="calc.py", old="    return a * b", new=""), "nearest is at line"),
        (call("edit", path="calc.py", old="a", new="x"), "occurs"),
        (call("write", path="../beside.py", content=""), "outside"),
        (call("search", pattern="("), "no regular expression"),
        (call("process", action="log", name="p9"), "no process"),
        (call("shell", command="sleep 9", timeout=0.2), "its time limit"),
    ],
)
def test_mistakes_come_back_as_words(project, step, words):
    project.run([step, call("finish", done=False, summary="")])
    assert words in project.events(Observed)[0].content


def test_line_ends_and_odd_bytes_survive_an_edit(project):
    project.put({"dos.txt": b"one\r\ntwo \xff\r\nthree\r\n"})
    project.run([call("edit", path="dos.txt", old="one\ntwo", new="1\n2"), call("finish", done=False, summary="")])
    assert (project.root / "dos.txt").read_bytes() == b"1\r\n2 \xff\r\nthree\r\n"


def test_big_outputs_are_shortened_with_a_handle(project):
    steps = [
        call("shell", command="seq 100000"),
        call("read", path="output:1", first_line=50000, lines=2),
        call("finish", done=False, summary=""),
    ]
    project.run(steps)
    first, second, _ = project.events(Observed)
    assert len(first.content) < 13000
    assert first.handle == "output:1"
    assert second.content.splitlines()[0].split() == ["50000", "50000"]


def test_several_medium_outputs_of_one_step_are_bounded_together(project):
    project.run([[call("shell", command="seq 2000")] * 6, call("finish", done=False, summary="")])
    assert sum(len(seen.content) for seen in project.events(Observed)) < 36_000


def test_what_failed_is_told_and_not_repeated_unawares(project):
    wrong = call("edit", path="calc.py", old="a - b", new="a * b")
    memory = project.aside / "memory"
    project.run([wrong, DONE], memory=memory)
    (project.root / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    project.run([wrong, wrong, DONE], memory=memory, folder=project.aside / "again", task="repair add again")
    again = [entry.event for entry in read_log(project.aside / "again" / "events.jsonl")]
    assert "What failed here before" in next(e for e in again if isinstance(e, Said)).message.content
    first, second, *_ = (e for e in again if isinstance(e, Observed))
    assert first.status == "refused"
    assert "very same edit" in first.content
    assert second.status == "ok"


def test_wrong_wishes_are_told(project):
    with pytest.raises(UsageError, match="no mode"):
        project.settings(mode="yolo")
    with pytest.raises(UsageError, match="empty"):
        project.settings(task=" ")
    with pytest.raises(UsageError, match="must not lie in the project"):
        SessionSettings(project.root, "x", project.root / "session")
    with pytest.raises(UsageError, match="too much"):
        project.run(REPAIR, root=Path("/usr"))


def test_a_session_is_open_once(project):
    def opens_again(messages, tools):
        with pytest.raises(GLM5Error, match="another process"):
            EventLog(project.aside / "session" / "events.jsonl")
        return Message("assistant", tool_calls=(call("finish", done=False, summary=""),))

    project.run(opens_again)


def test_names_and_words_that_utf8_cannot_hold(project):
    steps = [
        call("shell", command=r"touch $'odd\xff'; printf '\xff\n'"),
        Message("assistant", "half a pair: \ud83d", tool_calls=(call("shell", command="ls"),)),
        call("finish", done=False, summary="\udcff"),
    ]
    with serve(Program(steps)) as url:

        async def go():
            endpoint = HttpEndpoint(url, "m")
            async with endpoint, open_session(project.settings(), endpoint) as session:
                return await session.run()

        assert asyncio.run(go()).status == Status.GAVE_UP
    assert read_log(project.aside / "session" / "events.jsonl") == project.entries
    assert "A odd\udcff" in project.events(Saved)[0].changed
    assert page(project.entries)
    show_log(project.entries, Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8")))
