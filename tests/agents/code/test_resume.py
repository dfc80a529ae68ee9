"""A session killed without warning at every step in turn goes on in a new process, and ends with the same diff."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from glm5.agents.coding.resume import INTERRUPTED
from glm5.agents.coding.scripted import Program, serve
from glm5.agents.events import EventLog, Observed, Replied, Reverted
from glm5.agents.limits import Limits
from glm5.agents.outcomes import Status
from glm5.agents.view import View
from glm5.errors import UsageError
from tests.agents.code.conftest import CALC, REPAIR, TEST, Project, call, hand_over

# Steps that would go wrong if they ran twice on the same tree, or not at all.
FRAGILE = [
    call("shell", command="echo '# touched' >> calc.py"),
    call("edit", path="calc.py", old="a - b", new="a + b"),
    call("shell", command="mkdir extra && mv calc.py extra/ && mv extra/calc.py calc.py && rmdir extra && echo 1 > n"),
    call("run_tests", command=TEST),
    call("finish", done=True, summary="done", test_command=TEST),
]


def start(project: Project, url: str) -> subprocess.Popen:
    words = [
        sys.executable,
        "-m",
        "glm5",
        "code",
        "--root",
        project.root,
        "--url",
        url,
        "--context",
        "none",
        "--events",
    ]
    words += ["--session", project.aside / "session"]
    if not (project.aside / "session" / "events.jsonl").exists():
        words.append("repair add")
    environment = {**os.environ, "XDG_STATE_HOME": str(project.aside / "state")}
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True, env=environment)


def kill_at_new_point(process: subprocess.Popen, seen: set[tuple[str, int]], answered: int) -> bool:
    """Kill it at the first kind of event, of the step it is at, at which none was killed before."""
    for line in process.stdout:
        event = json.loads(line)
        point = (event["kind"], answered)
        answered += event["kind"] == "observed"
        if event["kind"] in ("started", "said", "replied", "saved", "observed", "ended") and point not in seen:
            seen.add(point)
            process.kill()
            process.stdout.read()
            break
    return process.wait() == -signal.SIGKILL


def test_killed_at_every_step(project):
    seen: set[tuple[str, int]] = set()
    with serve(Program(FRAGILE)) as url:
        while not seen or project.entries[-1].event.kind not in ("audited", "ended"):
            answered = len(project.events(Observed)) if seen else 0
            kill_at_new_point(start(project, url), seen, answered)
    assert {step for _, step in seen} >= set(range(len(FRAGILE)))  # a fast process may outrun a kill, never a step
    assert len(seen) >= 2 * len(FRAGILE)
    broken = {path.name: path.read_bytes() for path in project.root.iterdir() if path.is_file()}
    shutil.rmtree(project.root)
    shutil.rmtree(project.aside / "session")
    project.root.mkdir()
    project.put(CALC)
    assert project.run(FRAGILE).status == Status.VERIFIED
    assert {path.name: path.read_bytes() for path in project.root.iterdir() if path.is_file()} == broken


def test_cut_off_in_the_middle_of_a_call(project):
    """The command has changed the tree when the process dies: that is set back, and the call begins anew."""
    marker = project.root / "half"
    slow = call("shell", command="test -e calc.bak && exit 7; cp calc.py calc.bak; echo x > half; sleep 2")
    with serve(Program([slow, *REPAIR[2:]])) as url:
        process = start(project, url)
        deadline = time.monotonic() + 30
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert start(project, url).wait(60) == 0
    [reverted] = project.events(Reverted)
    assert sorted(reverted.changed) == ["D calc.bak", "D half"]
    assert project.events(Observed)[0].exit_code == 0


def test_unconfined_calls_are_not_repeated(project):
    cut_off(project, REPAIR[0], mode="full")
    ending = project.run(REPAIR, mode="full", task="")
    assert ending.status == Status.VERIFIED
    assert project.events(Observed)[0].content == INTERRUPTED


def cut_off(project: Project, step, mode: str) -> None:
    """A session that ended right after the model had made a call."""
    project.run([step], mode=mode)
    log = project.aside / "session" / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "replied")
    log.write_text("".join(lines[: first + 1]))


def test_new_words_answer_an_open_call_as_interrupted(project):
    cut_off(project, REPAIR[0], mode="auto")
    project.run(REPAIR, task="and now this")
    roles = [shown.message.role for shown in View(project.entries).shown[:5]]
    assert roles == ["system", "user", "assistant", "tool", "user"]


def test_a_line_that_was_never_finished_is_cut_off(project):
    project.run([REPAIR[0], call("finish", done=False, summary="")])
    log = project.aside / "session" / "events.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"number": 99, "time": 1, "ki')
    EventLog(log).close()
    assert log.read_bytes() == whole


def test_a_dirty_tree_is_never_lost(project):
    """What a person changed between two runs stays, and what resuming replaces can be found again."""
    cut_off(project, call("read", path="calc.py"), mode="auto")
    (project.root / "mine.txt").write_text("by hand")
    hand_over(project.root)
    project.run(REPAIR, task="")
    [reverted] = project.events(Reverted)
    git = ["git", f"--git-dir={project.aside}/session/shadow.git", "show", f"{reverted.replaced}:mine.txt"]
    assert subprocess.run(git, capture_output=True, text=True, check=True).stdout == "by hand"


def test_budget_and_evidence_go_on(project):
    steps = [*REPAIR[2:4], call("shell", command="ls"), REPAIR[4]]
    project.run(steps, limits=Limits(steps=3))
    ending = project.run(steps, task="")
    assert ending.status == Status.VERIFIED
    assert len(project.events(Replied)) == 4


@pytest.mark.parametrize("words", ["not json\n", '{"number": 0}\n'])
def test_a_log_that_is_none(project, words):
    (project.aside / "session").mkdir()
    (project.aside / "session" / "events.jsonl").write_text(words)
    with pytest.raises(UsageError, match="line 1"):
        project.run(REPAIR)
