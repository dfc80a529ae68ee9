"""What people and programs see: the terminal, JSON events and exit codes, the page, and the formats of others."""

import asyncio
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from glm5.agents.coding.command import Writing, view
from glm5.agents.coding.page import page
from glm5.agents.coding.scripted import Program, serve
from glm5.agents.coding.session import open_session
from glm5.agents.coding.terminal import interactive
from glm5.agents.endpoint import EndpointError, HttpEndpoint, ScriptedEndpoint
from glm5.agents.events import Ended, Observed, Replied, Said
from glm5.agents.formats.atif import from_atif, to_atif
from glm5.agents.formats.mini import from_mini, to_mini
from glm5.agents.view import View
from glm5.errors import UsageError
from glm5.text.messages import Message
from tests.agents.code.conftest import REPAIR, TEST, Project, call
from tests.agents.test_endpoint import answering


def glm5(project: Project, *words: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "glm5", *map(str, words)]
    known = {**os.environ, "XDG_STATE_HOME": str(project.aside / "state"), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=known, check=False, timeout=60)


def test_headless_over_http(project):
    with serve(Program(REPAIR)) as url:
        ended = glm5(project, "code", "repair add", "--root", project.root, "--url", url, "--test", TEST, "--json")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["status"], said["changed"], said["audit"]) == ("verified", ["M calc.py"], [])


def test_a_script_and_events(project):
    steps = [{"tool": "finish", "arguments": {"done": True, "summary": "nothing to do"}, "reasoning": "hm"}]
    (project.aside / "steps.json").write_text(json.dumps(steps))
    ended = glm5(
        project, "code", "x", "--root", project.root, "--script", project.aside / "steps.json", "--events",
        "--session", project.aside / "session",
    )  # fmt: skip
    assert ended.returncode == 3
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["kind"] for event in events] == ["started", "said", "said", "replied", "observed", "ended", "audited"]
    shown = glm5(project, "view", project.aside / "session")
    assert "unverified: nothing to do" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--mode", "yolo"], 2, "no mode 'yolo'"),
        (["--url", "nowhere"], 2, "must begin with http"),
        (["--policy", "/no/such"], 2, "cannot be read"),
        (["--script", "/no/such"], 2, "no list of steps"),
        (["--root", "/no/such"], 2, "not a folder"),
        (["--context", "all"], 2, "no context manager"),
        (["--thinking", "hard"], 2, "no rule 'hard'"),
    ],
)
def test_mistakes_are_told_in_one_line(project, words, code, message):
    base = [] if "--root" in words else ["--root", project.root]
    ended = glm5(project, "code", "x", *base, *words, "--json")
    assert (ended.returncode, message in ended.stderr) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_person_at_the_terminal(project):
    answers = iter(["y", "no, leave it", "/diff", "/undo", "/status", "thanks", "/quit"])
    steps = [REPAIR[2], call("shell", command="touch x"), REPAIR[4], call("finish", done=False, summary="ok")]
    screen = io.StringIO()
    console = Console(file=screen, width=100)
    settings = project.settings(mode="ask")
    ask = lambda prompt: next(answers)  # noqa: E731
    asyncio.run(interactive(settings, ScriptedEndpoint(Program(steps)), console, ask))
    text = screen.getvalue()
    assert "+    return a + b" in text
    assert "The person says: no, leave it" in text
    assert (project.root / "calc.py").read_text() == "def add(a, b):\n    return a - b\n"
    assert [said.message.content for said in project.events(Said) if said.by == "person"][-1] == "thanks"


def test_rewind_takes_files_and_words_back(project):
    answers = iter(["/rewind 2", "again", "/quit"])
    asyncio.run(
        interactive(
            project.settings(), ScriptedEndpoint(Program(REPAIR)), Console(file=io.StringIO()), lambda p: next(answers)
        )
    )
    roles = [shown.message.role for shown in View(project.entries).shown[:4]]
    assert roles == ["system", "user", "user", "assistant"]
    assert [ended.status for ended in project.events(Ended)] == ["verified", "verified"]


class _Checker(HTMLParser):
    """Every tag closed, and nothing from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        assert tag != "script"

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_everything(project):
    evil = "</pre><script>alert(1)</script>"
    steps = [Message("assistant", evil, evil, (call("shell", command=f"echo '{evil}'"),)), *REPAIR]
    project.run(steps, task=evil)
    html = page(project.entries)
    checker = _Checker()
    checker.feed(html)
    assert (checker.open, checker.loaded) == ([], [])
    assert "<script" not in html
    assert "<ins>+a + b" in html
    [written] = view(project.aside / "session", Writing(html=project.aside / "log.html"))
    assert written.read_text() == html


@pytest.mark.parametrize("name", ["atif", "mini"])
def test_view_writes_and_reads_them(project, name):
    project.run(REPAIR)
    file = project.aside / "other.json"
    assert glm5(project, "view", project.aside / "session", f"--{name}", file).returncode == 0
    assert "verified: add adds" in glm5(project, "view", file).stdout


def test_a_log_that_is_not_there(project):
    with pytest.raises(UsageError, match="cannot be read"):
        view(project.aside / "nothing", Writing())


@pytest.mark.parametrize(
    "there_and_back",
    [
        lambda log: from_atif(json.loads(json.dumps(to_atif(log, "x")))),
        lambda log: from_mini(json.loads(json.dumps(to_mini(log)))),
    ],
    ids=["atif", "mini"],
)
def test_formats_of_others_keep_the_conversation(project, there_and_back):
    steps = [Message("assistant", "I look.", "Where?", (REPAIR[0],)), [REPAIR[1], REPAIR[2]], *REPAIR[3:]]
    project.run(steps)
    again = there_and_back(project.entries)
    assert View(again).messages == View(project.entries).messages
    seen = [(e.event.name, e.event.status, e.event.exit_code) for e in again if isinstance(e.event, Observed)]
    assert seen == [(o.name, o.status, o.exit_code) for o in project.events(Observed)]
    assert again[-1].event.status == "verified"
    assert page(again)


@pytest.mark.parametrize("read", [from_atif, from_mini])
def test_a_file_of_another_format(read):
    with pytest.raises(UsageError, match="this is no"):
        read({"schema_version": "2"})


def stream(url: str) -> tuple[object, list[tuple[str, str]]]:
    heard: list[tuple[str, str]] = []

    async def go():
        async with HttpEndpoint(url, "m", on_delta=lambda kind, text: heard.append((kind, text))) as endpoint:
            return await endpoint.chat([Message("user", "hello")])

    return asyncio.run(go()), heard


def test_streaming_puts_the_same_answer_together(project):
    step = Message("assistant", "I look.", "Where?", (REPAIR[0], REPAIR[1]))
    with serve(Program([step])) as url:
        reply, heard = stream(url)
    assert (reply.message.content, reply.message.reasoning_content) == ("I look.", "Where?")
    assert [c.arguments for c in reply.message.tool_calls] == [REPAIR[0].arguments, REPAIR[1].arguments]
    assert ("content", "I look.") in heard


def test_an_endpoint_that_dies_in_the_middle_is_asked_again():
    half = 'data: {"choices": [{"delta": {"content": "I will del"}}]}\n\n'
    whole = half + 'data: {"choices": [{"delta": {"content": "iver"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    with answering((200, {}, half), (200, {}, whole)) as (url, times):
        reply, heard = stream(url)
    assert reply.message.content == "I will deliver"
    assert heard.count(("again", "")) == 1
    assert len(times) == 2


def test_a_wrong_key_is_told_at_once():
    with answering((401, {}, '{"error": {"message": "no such key"}}')) as (url, times):
        with pytest.raises(EndpointError, match="no such key"):
            stream(url)
        assert len(times) == 1


def test_it_starts_quickly_and_without_torch():
    code = (
        "import sys, time; began = time.process_time(); sys.modules['torch'] = None\n"
        "import glm5.agents.coding.command; print(time.process_time() - began)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 0.5


def test_thoughts_are_sent_back_exactly(project):
    asked: list[list[Message]] = []

    def script(messages, tools):
        asked.append(list(messages))
        if len(asked) == 1:
            return Message("assistant", "", " odd  spaces \n", (call("shell", command="ls"),))
        return Message("assistant", tool_calls=(call("finish", done=False, summary=""),))

    project.run(script)
    assert asked[1][2].reasoning_content == " odd  spaces \n"
    assert project.events(Replied)[0].thinking is None


def test_thinking_by_rule(project):
    switches: list[bool | None] = []

    class Endpoint(ScriptedEndpoint):
        async def chat(self, messages, tools=(), **options):
            switches.append(options["thinking"])
            return await super().chat(messages, tools, **options)

    steps = [REPAIR[1], REPAIR[2], REPAIR[3], call("finish", done=False, summary="")]

    async def go() -> None:
        async with open_session(project.settings(thinking="auto"), Endpoint(Program(steps))) as session:
            await session.run()

    asyncio.run(go())
    assert switches == [True, False, True, True]
