"""One execution: a process of its own namespace, without rights, that runs a program and takes everything along.

    server ── fork ──> init: new process and mount namespaces; limits; no capabilities
                         └── fork ──> the program

When the program ends, init ends; when init ends, the kernel kills every process left in its namespace. So nothing
outlives an execution, whatever it forked, detached or ignored. Outside a namespace of its own (a container, no
sandbox) init adopts its orphans and kills them one by one: weaker, and said so in docs/sandbox.md.
"""

import atexit
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from dataclasses import dataclass, field
from typing import NoReturn

from .files import ACTIONS
from .kernel import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    become_subreaper,
    drop_capabilities,
    mount,
    refuse_system_calls,
    setns,
    system_call_filter,
    unshare,
)
from .processes import descendants, kill, parents

MAX_OPEN_FILES = 256
COMMAND_NOT_FOUND = 127  # as a shell answers


@dataclass
class Request:
    """What to run. Exactly one of `argv`, `code` and `action` is given."""

    id: int
    argv: list[str] = field(default_factory=list)
    code: str | None = None  # Python source, run without starting an interpreter
    files: dict[str, str] = field(default_factory=dict)  # written to the working folder before `code` runs
    action: str = ""  # a name in files.ACTIONS
    path: str = ""  # what the action is about
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    fresh: bool = False  # empty /work, /tmp and /dev/shm of its own, gone with it
    timeout: float | None = None  # seconds
    memory: int = 0  # bytes, for the sum of its processes and for each of them
    processes: int = 0
    disk: int = 0  # bytes: of one file, and of a fresh folder
    output: int = 0  # bytes kept of standard output, and of standard error


class Launcher:
    """Starts executions, in namespaces of their own where that is possible."""

    def __init__(self, namespaces: bool) -> None:
        self.namespaces = namespaces
        self._filter = system_call_filter() if namespaces else b""  # once: building it takes longer than a fork
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY) if namespaces else -1

    def start(self, request: Request, stdin: int, stdout: int, stderr: int, trouble: int) -> int:
        """Fork; return init's process id. The three descriptors become the program's; what goes wrong before the
        program exists is written to `trouble`, which the program never holds."""
        if self.namespaces:
            unshare(CLONE_NEWPID)
        try:
            process = os.fork()
            if process == 0:
                self._init(request, stdin, stdout, stderr, trouble)
        finally:
            if self.namespaces:
                setns(self._own_namespace, CLONE_NEWPID)
        return process

    def _init(self, request: Request, stdin: int, stdout: int, stderr: int, trouble: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for number, descriptor in enumerate((stdin, stdout, stderr)):
                os.dup2(descriptor, number)
            trouble = os.dup2(trouble, 3, inheritable=False)
            os.closerange(4, 1 << 16)
            if self.namespaces:
                _enter_namespaces(request)
                drop_capabilities()
                refuse_system_calls(self._filter)
            else:
                become_subreaper()
            _limit(request, self.namespaces)
            program = os.fork()
            if program == 0:
                os.close(trouble)
                _program(request)
        except BaseException as error:
            os.write(trouble, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os.close(trouble)
        code = _wait_for(program)
        if not self.namespaces:
            _kill_orphans()
        os._exit(code)


def _kill_orphans() -> None:
    """Kill what the program left behind, where no namespace does."""
    while True:
        for process in descendants(os.getpid(), parents()):
            kill(process)
        try:
            os.wait()
        except ChildProcessError:
            return


def _enter_namespaces(request: Request) -> None:
    unshare(CLONE_NEWNS)
    mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if request.fresh:
        for folder in ("/work", "/tmp", "/dev/shm"):
            mount("tmpfs", folder, MS_NOSUID | MS_NODEV, f"size={request.disk},nr_inodes=16384,mode=755")


def _limit(request: Request, namespaces: bool) -> None:
    """RLIMIT_DATA and not RLIMIT_AS: runtimes such as Node reserve far more addresses than they use.

    Without a user namespace RLIMIT_NPROC would count everything this user runs anywhere on the machine.
    """
    limits = {
        resource.RLIMIT_DATA: request.memory,
        resource.RLIMIT_FSIZE: request.disk,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if namespaces:
        limits[resource.RLIMIT_NPROC] = request.processes + 2  # the server and init count as well
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def _wait_for(program: int) -> int:
    """The exit code of the program as a shell gives it; orphans that end meanwhile are buried."""
    while True:
        process, status = os.wait()
        if process == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _program(request: Request) -> NoReturn:
    code = 1
    try:
        os.environ.update(request.env)
        if request.argv:
            code = COMMAND_NOT_FOUND
        os.chdir(request.cwd)
        if request.argv:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores and other programs do not expect so
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(request.argv[0], request.argv, os.environ)
        elif request.action:
            ACTIONS[request.action](request.path)
            code = 0
        else:
            code = _run_python(request)
    except Exception as error:
        print(f"{request.argv[0] if request.argv else 'sandbox'}: {error}", file=sys.stderr)
    finally:
        _leave(code)
    raise AssertionError("unreachable")


def _run_python(request: Request) -> int:
    """Run the source as `__main__`, as `python main.py` would in the working folder."""
    for name, text in request.files.items():
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    source = request.code or ""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __file__="main.py")
    sys.modules["__main__"] = main
    sys.argv, sys.path[0] = ["main.py"], request.cwd
    linecache.cache["main.py"] = (len(source), None, source.splitlines(keepends=True), "main.py")
    try:
        exec(compile(source, "main.py", "exec"), main.__dict__)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 0xFF
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        frames = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame of this function
        traceback.print_exception(type(error), error, frames)
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """End as an interpreter does: threads joined, exit functions called, streams flushed."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
