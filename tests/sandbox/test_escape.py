"""Attacks on the sandbox and on the pool. Each is real code that tries; each test looks at what came of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glm5.sandbox import PythonPool, SandboxError, open_sandbox
from tests.sandbox.conftest import LIMITS, Place, Running

MIB = 1 << 20


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file of the host that anybody on the host may read and write."""
    path = Path("/var/tmp") / f"glm5-secret-{os.getpid()}"
    path.write_text("the secret", encoding="utf-8")
    path.chmod(0o666)
    yield path
    path.unlink()


def host_processes(marker: str) -> list[str]:
    """Command lines of the whole machine that hold a word."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if marker in line and str(os.getpid()) != folder.name:
                found.append(line)
    return found


def test_read_outside(place: Place, secret: Path) -> None:
    code = f"""
import os
for path in ({str(secret)!r}, "/etc/shadow", "/proc/1/root{secret}", "/root", "/home", {str(Path.home())!r}):
    try:
        print("READ", path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError as error:
        print(type(error).__name__)
"""
    lines = place.run(code).stdout.splitlines()
    assert len(lines) == 6
    assert not [line for line in lines if line.startswith("READ")]


def test_write_outside(place: Place, secret: Path) -> None:
    code = f"""
import os
for path in ({str(secret)!r}, "/usr/bin/evil", "/etc/passwd", "/evil", "/dev/evil", "/.glm5/inside/server.py",
             "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/mem", "/proc/1/oom_score_adj"):
    try:
        open(path, "r+" if os.path.exists(path) else "w").write("evil")
        print("WROTE", path)
    except OSError as error:
        print(type(error).__name__)
"""
    lines = place.run(code).stdout.splitlines()
    assert len(lines) == 10
    assert not [line for line in lines if line.startswith("WROTE")]
    assert secret.read_text(encoding="utf-8") == "the secret"
    assert not Path("/usr/bin/evil").exists()


def test_network(place: Place) -> None:
    """Neither a server of this machine, nor a name, nor an abstract Unix socket can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0glm5-test-{os.getpid()}")
        abstract.listen()
        code = f"""
import socket
tries = [lambda: socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 2),
         lambda: socket.create_connection(("192.0.2.1", 80), 2),
         lambda: socket.getaddrinfo("example.com", 80),
         lambda: socket.socket(socket.AF_UNIX).connect("\\0glm5-test-{os.getpid()}")]
for attempt in tries:
    try:
        attempt()
        print("REACHED")
    except OSError as error:
        print(type(error).__name__)
print([name for _, name in socket.if_nameindex()])
"""
        lines = place.run(code).stdout.splitlines()
    assert len(lines) == 5
    assert "REACHED" not in lines
    assert lines[-1] == "['lo']"


def test_fork_bomb(place: Place) -> None:
    """At no time are there more processes than allowed, and none is left."""
    code = """
import os, time
made = 0
while True:
    try:
        pid = os.fork()
    except OSError as error:
        print(type(error).__name__, made, flush=True)
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    made += 1
"""
    result = place.run(code, timeout=15.0)
    assert result.stdout.startswith("BlockingIOError")
    assert int(result.stdout.split()[1]) <= LIMITS.max_processes
    doubling = place.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=1.0)
    assert doubling.exit_code is None


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(4 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap\nm = mmap.mmap(-1, 4 << 30)\nfor i in range(0, 4 << 30, 4096): m[i] = 1",
        "import os\nfor _ in range(6): os.fork()\nx = bytearray(150 << 20)\nimport time; time.sleep(30)",
        "import os, ctypes\nos.memfd_create('hidden')",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.shmget(0, 1 << 30, 0o1600) < 0: raise OSError(ctypes.get_errno())",
    ],
    ids=["one allocation", "many", "shared mapping", "spread over processes", "memfd", "system v"],
)
def test_memory_bomb(place: Place, code: str) -> None:
    before = available_memory()
    result = place.run(code, timeout=15.0)
    assert result.exit_code != 0
    assert not result.timed_out
    assert before - available_memory() < 800 * MIB


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def test_a_gigabyte_of_output(place: Place) -> None:
    """The program runs to its end; the first and the last of what it said are kept, and the cut is told."""
    code = """
import os
print("first", flush=True)
block = b"x" * (1 << 20)
for _ in range(1024):
    os.write(1, block)
os.write(1, b"last")
"""
    result = place.run(code, timeout=180.0)  # a busy machine may starve it
    assert result.exit_code == 0
    assert result.truncated
    assert result.stdout.startswith("first\nxxx")
    assert result.stdout.endswith("xxxlast")
    assert "bytes left out" in result.stdout
    assert len(result.stdout) < LIMITS.max_output_bytes + 100


def test_a_grandchild_that_ignores_sigterm(place: Place) -> None:
    """It holds the pipe of standard output open; the execution ends all the same, and it with it."""
    code = """
import os, signal, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(0.1)
    os._exit(0)
time.sleep({seconds})
"""
    began = time.monotonic()
    assert place.run(code.replace("{seconds}", "0.1")).exit_code == 0
    assert place.run(code.replace("{seconds}", "60"), timeout=0.5).timed_out
    assert time.monotonic() - began < 10


def test_a_daemon_does_not_outlive_its_execution(place: Place) -> None:
    """Double fork, new session, new name; afterwards the machine has no such process."""
    marker = f"glm5-daemon-{os.getpid()}"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sh", ["{marker}", "-c", "while true; do sleep 0.1; done", "{marker}"])
    os._exit(0)
time.sleep(0.4)
others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
print(sum("{marker}" in open(f"/proc/{{p}}/cmdline").read() for p in others))
"""
    result = place.run(code)
    assert result.stdout == "1\n"
    assert not host_processes(marker)


def test_kill_everything_in_sight(place: Place) -> None:
    """An execution sees and can signal only its own processes; the first of them it cannot end."""
    code = """
import os, signal
print(sorted(int(p) for p in os.listdir("/proc") if p.isdigit()))
for target in [1, *range(3, 400)]:
    try:
        os.kill(target, signal.SIGKILL)
        print("SIGNALLED" if target > 2 else "init")
    except ProcessLookupError:
        pass
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    print("alone")
"""
    assert place.run(code).stdout == "[1, 2]\ninit\nalone\n"


def test_tracing_the_first_process(place: Place) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())
for name in ("mem", "environ", "fd/0", "root"):
    try:
        open(f"/proc/1/{name}", "rb").read(1)
        print("OPENED", name)
    except OSError as error:
        print(type(error).__name__)
"""
    lines = place.run(code).stdout.splitlines()
    assert lines == ["-1 1"] + ["PermissionError"] * 4


def test_new_namespaces_and_mounts(place: Place) -> None:
    """The ways to new rights are closed: user namespaces by each of the three calls, mounts, other namespaces."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(*call):
    ctypes.set_errno(0)
    print(libc.syscall(*call), ctypes.get_errno())
unshare, clone, clone3, setns, mount, umount = {
    "x86_64": (272, 56, 435, 308, 165, 166), "aarch64": (97, 220, 435, 268, 40, 39)}[os.uname().machine]
attempt(unshare, 0x10000000)
attempt(clone, 0x10000000 | 17, 0, 0, 0, 0)
attempt(clone3, b"\\0" * 88, 88)
attempt(setns, os.open("/proc/self/ns/user", 0), 0)
attempt(mount, b"tmpfs", b"/work", b"tmpfs", 0, None)
attempt(umount, b"/proc", 2)
"""
    lines = place.run(code).stdout.splitlines()
    assert lines == ["-1 1", "-1 1", "-1 38", "-1 1", "-1 1", "-1 1"]


def test_setuid_programs_give_nothing(place: Place) -> None:
    code = """
import subprocess
print(subprocess.run(["su", "-c", "id", "root"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout)
print([line for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs", "Seccomp:"))])
"""
    output = place.run(code).stdout
    assert "uid=0" not in output
    assert "CapEff:\\t0000000000000000" in output
    assert "NoNewPrivs:\\t1" in output
    assert "Seccomp:\\t2" in output


def test_environment_secrets(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this process's environment, in any process that can be seen."""
    monkeypatch.setenv("GLM5_TEST_SECRET", "hunter2")
    code = """
import glob, os
text = repr(dict(os.environ))
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        text += open(path).read()
    except OSError:
        pass
print(text)
"""

    async def look() -> list[str]:
        async with open_sandbox(LIMITS) as box, PythonPool(1, LIMITS) as pool:
            return [(await box.exec(["python3", "-c", code])).stdout, (await pool.run(code)).stdout]

    for output in running.wait(look()):
        assert "PATH" in output
        assert "hunter2" not in output
        assert os.environ.get("USER", "no such user") not in output


def test_symbolic_links_lead_nowhere(running: Running, secret: Path) -> None:
    """What the host reads and writes for itself follows links inside the sandbox only, and no pipe holds it up."""
    running.exec("ln", "-s", str(secret), "link")
    running.exec("ln", "-s", "/proc/1/root" + str(secret), "link2")
    for name in ("link", "link2"):
        with pytest.raises(SandboxError, match=r"No such file|Permission denied"):
            running.wait(running.box.read(name))
        with pytest.raises(SandboxError):
            running.wait(running.box.write(name, "evil"))
    assert secret.read_text(encoding="utf-8") == "the secret"
    running.exec("ln", "-s", "/dev/zero", "endless")
    with pytest.raises(SandboxError):
        running.wait(running.box.read("endless"))
    running.exec("rm", "link", "link2", "endless")


def test_filling_the_disk(place: Place) -> None:
    """Every place that can be written is full at its limit; the disk of the host does not notice."""
    code = """
import os
for folder in ("/work", "/tmp", "/dev/shm"):
    written = 0
    try:
        for n in range(1000):
            with open(f"{folder}/{n}", "wb") as file:
                for _ in range(16):
                    written += file.write(bytes(1 << 16))
                    file.flush()
    except OSError as error:
        print(folder, error.strerror, written >> 20)
    for name in os.listdir(folder):
        if name.isdigit(): os.unlink(f"{folder}/{name}")
try:
    with open("/tmp/one", "wb") as file: file.truncate(1 << 40)
except OSError as error:
    print(error.strerror)
"""
    before = os.statvfs("/").f_bavail
    lines = place.run(code).stdout.splitlines()
    limit = LIMITS.disk_bytes >> 20
    assert len(lines) == 4
    for line in lines[:3]:
        assert "No space left on device" in line
        assert int(line.split()[-1]) in (limit - 1, limit)
    assert lines[3] == "File too large"
    assert (before - os.statvfs("/").f_bavail) * os.statvfs("/").f_frsize < 64 * MIB


def test_filling_the_disk_with_names(place: Place) -> None:
    """Names cost memory that no limit in bytes counts."""
    most = {"sandbox": 200_000, "pool": 16_384}[place.name]
    code = "import os; print(*(os.statvfs(f).f_files for f in ('/work', '/tmp', '/dev/shm')))"
    assert place.run(code).stdout == f"{most} {most} {most}\n"
    if place.name == "pool":
        code = "import os\nfor n in range(20_000): os.mknod(f'/tmp/{n}')"
        assert "No space left on device" in place.run(code).stderr


def test_one_execution_cannot_touch_the_next(running: Running) -> None:
    """In a pool with one worker: files, modules and builtins of one program are not there for the next."""
    poison = """
import builtins, math, os, sys
for folder in ("/work", "/tmp", "/dev/shm"):
    open(folder + "/left.py", "w").write("evil")
builtins.print = lambda *a: os.write(1, b"EVIL")
math.sqrt = lambda x: "EVIL"
sys.path.insert(0, "/tmp")
sys.modules["json"] = math
os.environ["EVIL"] = "1"
"""
    assert running.pooled(poison).exit_code == 0
    look = """
import builtins, json, math, os, sys
print(os.listdir("/work"), os.listdir("/tmp"), os.listdir("/dev/shm"))
print(math.sqrt(4), json.__name__, sys.path[0], "EVIL" in os.environ)
"""
    assert running.pooled(look).stdout == "['main.py'] [] []\n2.0 json /work False\n"


def test_reports_cannot_be_forged(running: Running) -> None:
    """A program of the pool holds no descriptor but its three, so it cannot speak to the host in the server's place."""
    code = """
import os, struct
print(sorted(int(n) for n in os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")), flush=True)
forged = b'{"id": 1, "exit_code": 0, "killed_for": "", "truncated": false, "seconds": 0, "stdout": 0, "trouble": ""}'
frame = struct.pack(">II", len(forged), 0) + forged
for n in range(3, 1024):
    try:
        os.write(n, frame); print("WROTE", n)
    except OSError:
        pass
os.write(1, frame)
raise SystemExit(7)
"""
    result = running.pooled(code)
    assert result.exit_code == 7
    assert result.stdout.startswith("[0, 1, 2] 4\n")  # the fourth is the listing's own
    assert "WROTE" not in result.stdout


def test_everything_dies_with_the_parent(tmp_path: Path) -> None:
    """SIGKILL to the program that opened the sandbox, which then cannot tidy up any more."""
    marker = f"glm5-orphan-{os.getpid()}"
    script = f"""
import asyncio
from glm5.sandbox import SandboxSpec, open_sandbox
async def main():
    async with open_sandbox(SandboxSpec()) as box:
        await box.start(["sh", "-c", "while true; do sleep 0.1; done", "{marker}"])
        await asyncio.sleep(0.3)
        print("running", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    assert len([line for line in host_processes(marker) if line.startswith("sh ")]) == 1
    child.kill()
    child.wait()
    child.stdout.close()
    for _ in range(50):
        if not host_processes(marker):
            break
        time.sleep(0.1)
    assert not host_processes(marker)
