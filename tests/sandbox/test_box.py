"""The everyday of a sandbox: programs, files, background processes, snapshots, errors that say what to do."""

import asyncio
import hashlib
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.sandbox import Mount, PythonPool, SandboxError, SandboxSpec, open_sandbox
from glm5.sandbox.inside.frames import Decoder, encode
from glm5.sandbox.inside.server import Capture
from glm5.sandbox.remedies import remedy
from tests.sandbox.conftest import Running

EVERYDAY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_program(running: Running) -> None:
    script = "read line; echo $line $WORD $(pwd); echo trouble >&2; exit 3"
    result = running.exec("sh", "-c", script, stdin=b"hello\n", env={"WORD": "world"}, cwd="/tmp")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "hello world /tmp\n", "trouble\n")
    assert not result.timed_out
    assert not result.truncated
    assert result.killed_for == ""
    assert 0 < result.seconds < 5


def test_how_a_program_can_end(running: Running) -> None:
    assert running.exec("no-such-program").exit_code == 127
    assert "No such file" in running.exec("no-such-program").stderr
    assert running.exec("sh", "-c", "kill -SEGV $$").exit_code == 128 + 11
    late = running.exec("sleep", "60", timeout=0.2)
    assert (late.exit_code, late.timed_out, late.killed_for) == (None, True, "time")
    assert late.seconds < 5


def test_what_was_said_before_the_limit_is_kept(running: Running) -> None:
    assert running.exec("sh", "-c", "echo early; sleep 60", timeout=0.3).stdout == "early\n"


def test_standard_input_that_nobody_reads(running: Running) -> None:
    assert running.exec("true", stdin=bytes(10 << 20)).exit_code == 0


@EVERYDAY
@given(content=st.binary(max_size=100_000), name=st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.bin", fullmatch=True))
def test_files_come_back_as_they_went(running: Running, content: bytes, name: str) -> None:
    running.wait(running.box.write(name, content))
    assert running.wait(running.box.read(name)) == content
    assert name in running.wait(running.box.list())
    running.exec("sh", "-c", "rm -rf ./*")


@EVERYDAY
@given(st.binary(max_size=300_000))
def test_standard_input_reaches_the_program(running: Running, data: bytes) -> None:
    code = "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    assert running.pooled(code, stdin=data).stdout.strip() == hashlib.sha256(data).hexdigest()


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary())), st.integers(1, 50))
def test_frames_survive_any_cut(frames: list[tuple[dict[str, int], bytes]], piece: int) -> None:
    stream = b"".join(encode(header, body) for header, body in frames)
    decoder = Decoder()
    found = [f for at in range(0, len(stream), piece) for f in decoder.feed(stream[at : at + piece])]
    assert found == frames


@given(st.lists(st.binary(max_size=60)), st.integers(1, 40).map(lambda half: 2 * half))
def test_what_is_kept_of_an_output(pieces: list[bytes], limit: int) -> None:
    """All of it up to the limit; beyond, the first and the last half, and the number of bytes between them."""
    capture = Capture(limit)
    for piece in pieces:
        capture.add(piece)
    whole, half = b"".join(pieces), limit // 2
    if len(whole) <= limit:
        assert (capture.value(), capture.dropped) == (whole, 0)
    else:
        note = f"\n[... {len(whole) - limit} bytes left out ...]\n".encode()
        assert capture.value() == whole[:half] + note + whole[-half:]


def test_a_missing_file_says_so(running: Running) -> None:
    with pytest.raises(SandboxError, match=r"read 'absent' failed: .*No such file"):
        running.wait(running.box.read("absent"))
    with pytest.raises(SandboxError, match=r"is not a folder"):
        running.wait(running.box.list("absent"))


def test_snapshot_and_restore(running: Running) -> None:
    running.exec("sh", "-c", "mkdir -p d; echo one > d/a; ln -s d/a link; chmod 700 d/a")
    before = running.wait(running.box.snapshot())
    running.exec("sh", "-c", "echo two > d/a; echo new > b; rm link; mkdir e")
    running.wait(running.box.restore(before))
    assert running.wait(running.box.list()) == ["d/", "d/a", "link"]
    assert running.exec("sh", "-c", "cat link; stat -c %a d/a; readlink link").stdout == "one\n700\nd/a\n"
    running.exec("sh", "-c", "rm -rf ./*")


def test_background_process(running: Running) -> None:
    """Its log can be read while it runs, other programs reach it over the loop-back, stopping ends its children."""
    server = "import http.server as h; print('up', flush=True); h.ThreadingHTTPServer(('127.0.0.1', 8123), \
h.SimpleHTTPRequestHandler).serve_forever()"
    running.wait(running.box.write("page.txt", "hello"))
    process = running.wait(running.box.start(["sh", "-c", 'python3 -c "$0"; true', server]))
    for _ in range(100):
        if running.wait(process.log())[0] == "up\n":
            break
        time.sleep(0.05)
    time.sleep(0.2)
    assert process.status() is None
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8123/page.txt').read().decode())"
    assert running.python(fetch).stdout == "hello\n"
    ended = running.wait(process.stop())
    assert ended.killed_for == "stop"
    assert process.status() == ended
    assert "GET /page.txt" in running.wait(process.log())[1]
    assert running.python(fetch).exit_code != 0
    running.exec("sh", "-c", "rm -rf ./*")


def test_programs_side_by_side(running: Running) -> None:
    async def all_at_once() -> list[str]:
        results = await asyncio.gather(*(running.box.exec(["sh", "-c", f"sleep 0.3; echo {n}"]) for n in range(6)))
        return [result.stdout for result in results]

    began = time.monotonic()
    assert running.wait(all_at_once()) == [f"{n}\n" for n in range(6)]
    assert time.monotonic() - began < 1.5


def test_a_cancelled_program_ends(running: Running) -> None:
    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await running.box.exec(["sh", "-c", "while true; do date > alive; sleep 0.05; done"])

    running.wait(cancel())
    time.sleep(0.3)
    assert running.exec("sh", "-c", "cp alive before; sleep 0.3; cmp alive before").exit_code == 0
    running.exec("sh", "-c", "rm -rf ./*")


def test_python_in_the_pool(running: Running) -> None:
    files = {
        "main.py": "from pkg.tools import double\nprint(double(int(input())))",
        "pkg/tools.py": "double = (2).__mul__",
    }
    assert running.pooled(files, stdin=b"21\n").stdout == "42\n"
    failed = running.pooled("def f():\n    return 1 / 0\nf()")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[:3] == [
        "Traceback (most recent call last):",
        '  File "main.py", line 3, in <module>',
        "    f()",
    ]
    assert running.pooled("raise SystemExit(5)").exit_code == 5
    assert running.pooled("import sys; sys.exit('no')").stderr == "no\n"
    assert running.pooled("import atexit; atexit.register(print, 'bye')").stdout == "bye\n"
    assert running.pooled("import threading as t; t.Timer(0.1, print, ['late']).start()").stdout == "late\n"
    assert "SyntaxError" in running.pooled("def").stderr
    assert running.pooled("while True: pass", timeout=0.2).killed_for == "time"
    assert running.pooled("x = bytearray(100 << 20)", memory=50 << 20).exit_code == 1
    with pytest.raises(UsageError, match=r"main\.py is missing"):
        running.pooled({"other.py": ""})


def test_hundreds_of_executions_leak_nothing(running: Running) -> None:
    check_leaks(running, 200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_executions_leak_nothing(running: Running) -> None:
    check_leaks(running, 20_000)


def check_leaks(running: Running, count: int) -> None:
    """Processes of the machine below this one, descriptors of both ends, memory of the server, temporary files."""

    def state() -> tuple[int, int, int, int]:
        servers = [p for p in Path("/proc").glob("[0-9]*") if "inside\0--namespaces" in command(p)]
        mine = [p for p in servers if not command(p).startswith("bwrap")]
        open_files = sum(len(os.listdir(p / "fd")) for p in mine)
        return len(mine), open_files, len(os.listdir("/proc/self/fd")), len(list(Path("/tmp").glob("glm5-sandbox-*")))

    running.pooled("pass")
    before = state()
    for n in range(count):
        code = (
            "import os\nif os.fork() == 0: os.setsid(); open('/tmp/x', 'w').write('x')" if n % 20 == 0 else "print(1)"
        )
        assert running.pooled(code).exit_code == 0
    assert state() == before


def command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_broken_worker_is_replaced(running: Running) -> None:
    """The sandbox of a worker dies in the middle of a program: that run is an error, the next one works."""

    async def break_it() -> str:
        async with PythonPool(1) as pool:
            work = asyncio.ensure_future(pool.run("import time; time.sleep(30)"))
            await asyncio.sleep(0.3)
            worker = next(p for p in Path("/proc").glob("[0-9]*") if is_child(p) and p.name not in old)
            os.kill(int(worker.name), signal.SIGKILL)
            with pytest.raises(SandboxError, match="sandbox ended"):
                await work
            return (await pool.run("print('again')")).stdout

    old = {p.name for p in Path("/proc").glob("[0-9]*") if is_child(p)}
    assert running.wait(break_it()) == "again\n"


def is_child(process: Path) -> bool:
    try:
        stat = (process / "stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[1] == str(os.getpid()) and "(bwrap)" in stat


def test_mounts(running: Running, tmp_path: Path) -> None:
    source = Path("/var/tmp") / f"glm5-mount-{os.getpid()}"
    source.mkdir(mode=0o755)
    (source / "data.txt").write_text("shown", encoding="utf-8")

    async def use() -> tuple[str, int | None]:
        spec = SandboxSpec(mounts=(Mount(source, "/data"),))
        async with open_sandbox(spec) as box:
            shown = await box.exec(["cat", "/data/data.txt"])
            return shown.stdout, (await box.exec(["sh", "-c", "echo changed > /data/data.txt"])).exit_code

    try:
        stdout, code = running.wait(use())
    finally:
        (source / "data.txt").unlink()
        source.rmdir()
    assert stdout == "shown"
    assert code not in (0, None)


def test_a_local_sandbox_only_when_asked_for(running: Running) -> None:
    with pytest.raises(UsageError, match="allow_unconfined=True"):
        SandboxSpec(backend="local")

    async def use() -> tuple[str, str, float, bool]:
        async with open_sandbox(SandboxSpec(backend="local", allow_unconfined=True)) as box:
            await box.write("a.py", "print('local')")
            said = (await box.exec([sys.executable, "a.py"])).stdout
            began = time.monotonic()
            await box.exec(
                ["sh", "-c", "setsid sh -c 'trap \"\" TERM; while true; do sleep 0.1; done' glm5-local & sleep 9"],
                timeout=0.5,
            )
            seconds = time.monotonic() - began
            listed = (await box.exec(["ps", "axo", "args"])).stdout
            return said, listed, seconds, Path(box.work).exists()

    said, listed, seconds, existed = running.wait(use())
    assert said == "local\n"
    assert "glm5-local" not in listed
    assert seconds < 5
    assert existed
    assert not list(Path("/tmp").glob("glm5-sandbox-*"))


def test_a_missing_program_names_its_package(running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def start(spec: SandboxSpec) -> None:
        async with open_sandbox(spec):
            pass

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        running.wait(start(SandboxSpec()))
    with pytest.raises(SandboxError, match="podman, which is not installed"):
        running.wait(start(SandboxSpec(backend="podman", image="python:3.12-slim")))


def test_a_sandbox_that_cannot_start_is_an_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bubblewrap that fails as it does where user namespaces are forbidden: its words, a remedy, no fallback."""
    script = Path("/var/tmp") / f"glm5-bwrap-{os.getpid()}"
    folder = script / "bin"
    folder.mkdir(parents=True)
    program = folder / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    async def start() -> None:
        async with open_sandbox(SandboxSpec()):
            pass

    try:
        with pytest.raises(SandboxError, match=r"(?s)sandbox ended: bwrap: setting up uid map.*\n\w"):
            running.wait(start())
    finally:
        shutil.rmtree(script)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock", "Start the docker daemon"),
        ("bwrap: No permissions to create new namespace", "namespaces"),
        ("something else", "^$"),
    ],
)
def test_remedies(said: str, words: str) -> None:
    assert re.search(words, remedy(said))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "vm"}, "known are bubblewrap"),
        ({"backend": "docker"}, "need one"),
        ({"image": "python"}, "others have none"),
        ({"timeout": 0}, "timeout is 0"),
        ({"mounts": (Mount(Path("/no/such"), "/x"),)}, "no such file"),
        ({"mounts": (Mount(Path("/usr"), "x"),)}, "absolute path"),
    ],
)
def test_impossible_specs(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SandboxSpec(**settings)  # type: ignore[arg-type]


def test_argv_is_a_list(running: Running) -> None:
    with pytest.raises(UsageError, match="must be a list"):
        running.wait(running.box.exec("ls -l"))
