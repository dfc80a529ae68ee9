"""How each backend starts the program inside: one command line each, which then speaks frames on its two pipes.

bubblewrap   user, process, network, IPC, host-name and cgroup namespaces; nothing of the host but /usr, read-only
docker, podman   a container without network and rights, from an image that holds Python
local        a folder under /tmp and nothing else: no confinement
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glm5.sandbox.spec import WORK, SandboxError, SandboxSpec

INSIDE = Path(__file__).parent / "inside"
HOME_OF_INSIDE = "/.glm5"  # where bubblewrap and containers show the program
USER = 1000  # the user id that programs see
NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": WORK,
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",  # so that the order of a set is the same in every run
}
DEVICES = ("null", "zero", "full", "random", "urandom")
# Of /etc, only what programs need to start, to resolve names of users and to check certificates.
SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf")
ACCOUNTS = {
    "/etc/passwd": f"root:x:0:0::/:/bin/sh\nuser:x:{USER}:{USER}::{WORK}:/bin/sh\n",
    "/etc/group": f"root:x:0:\nuser:x:{USER}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
}


@dataclass(slots=True)
class Launch:
    """A process to start: its command line, the descriptors it inherits, and the user it runs as."""

    argv: list[str]
    environment: dict[str, str]
    work: str
    descriptors: list[int] = field(default_factory=list)
    user: int | None = None  # None: whoever runs this
    cwd: str | None = None


@contextmanager
def prepare(spec: SandboxSpec) -> Iterator[Launch]:
    """The launch of a sandbox; what it needs on the host exists inside the `with` only.

    Raises:
        SandboxError: a program is missing; the message names the remedy.
    """
    if spec.backend == "bubblewrap":
        with _bubblewrap(spec) as launch:
            yield launch
    elif spec.backend == "local":
        with tempfile.TemporaryDirectory(prefix="glm5-sandbox-") as folder:
            environment = ENVIRONMENT | {"HOME": folder, "TMPDIR": folder}
            yield Launch([sys.executable, "-s", "-B", "-m", "inside"], environment, folder, cwd=str(INSIDE.parent))
    else:
        yield _container(spec)


@contextmanager
def _bubblewrap(spec: SandboxSpec) -> Iterator[Launch]:
    user = _unprivileged_user(spec)
    python = _python(user)
    options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"]
    options += ["--uid", f"{USER}", "--gid", f"{USER}", "--hostname", "sandbox", "--clearenv"]
    # For the server only: namespaces around each execution, and a look at how much memory it has. Both are rights
    # within the sandbox's own user namespace; an execution starts without them.
    options += ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_PTRACE"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        link = Path("/") / name
        if link.is_symlink():
            options += ["--symlink", os.readlink(link), f"/{name}"]
        elif link.exists():
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in (*SETTINGS, "ssl/certs"):
        options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    if not python.prefix.is_relative_to("/usr"):
        options += ["--ro-bind", f"{python.prefix}", f"{python.prefix}"]
    for name in DEVICES:
        options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    options += ["--symlink", "/proc/self/fd", "/dev/fd", "--proc", "/proc"]
    for folder in (WORK, "/tmp", "/dev/shm"):
        options += ["--size", f"{spec.disk_bytes}", "--perms", "0755", "--tmpfs", folder]
    for mount in spec.mounts:
        options += ["--bind" if mount.writable else "--ro-bind", f"{mount.source.resolve()}", mount.target]
    descriptors = []
    try:
        texts = {f"{HOME_OF_INSIDE}/inside/{path.name}": path.read_text("utf-8") for path in INSIDE.glob("*.py")}
        for target, text in (ACCOUNTS | texts).items():
            descriptors.append(_readable(text))
            options += ["--file", f"{descriptors[-1]}", target]
        options += ["--remount-ro", "/", "--chdir", HOME_OF_INSIDE]
        program = [f"{python.path}", "-s", "-B", "-m", "inside", "--namespaces", f"{spec.disk_bytes}"]
        yield Launch([_program("bwrap"), *options, *program], {}, WORK, descriptors, user)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _container(spec: SandboxSpec) -> Launch:
    argv = [_program(spec.backend), "run", "--rm", "--interactive", "--network", "none", "--read-only"]
    argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{USER}:{USER}"]
    argv += ["--memory", f"{spec.memory_bytes}", "--memory-swap", f"{spec.memory_bytes}"]
    argv += ["--pids-limit", f"{spec.max_processes + 2}", "--shm-size", f"{spec.disk_bytes}"]
    for folder in (WORK, "/tmp"):
        argv += ["--tmpfs", f"{folder}:rw,exec,nosuid,nodev,size={spec.disk_bytes},uid={USER},gid={USER},mode=755"]
    for mount in spec.mounts:
        argv += ["--volume", f"{mount.source.resolve()}:{mount.target}:{'rw' if mount.writable else 'ro'}"]
    for name, value in ENVIRONMENT.items():
        argv += ["--env", f"{name}={value}"]
    argv += ["--volume", f"{INSIDE}:{HOME_OF_INSIDE}/inside:ro", "--workdir", HOME_OF_INSIDE, "--entrypoint", "python3"]
    return Launch([*argv, spec.image, "-s", "-B", "-m", "inside"], dict(os.environ), WORK)


@dataclass(frozen=True, slots=True)
class _Python:
    path: Path
    prefix: Path


def _python(user: int | None) -> _Python:
    """An interpreter outside any virtual environment that the sandbox's user can reach: this one's own, else the
    system's."""
    own = _Python(Path(sys.executable).resolve(), Path(sys.base_prefix).resolve())
    if user is None or _reachable(own.prefix):
        return own
    system = Path("/usr/bin/python3")
    if system.exists():
        return _Python(system, Path("/usr"))
    raise SandboxError(
        f"the sandbox runs as an unprivileged user, who cannot reach {own.path}, and there is no {system}; "
        f"install python3 with the system's package manager, or run as an ordinary user instead of root"
    )


def _unprivileged_user(spec: SandboxSpec) -> int | None:
    """Root never enters a sandbox: the kernel lets root pass the limit on processes and write kernel settings.

    Instead it is the owner of what may be written, or nobody.
    """
    if os.getuid() != 0:
        return None
    owners = {mount.source.stat().st_uid for mount in spec.mounts if mount.writable} or {NOBODY}
    if len(owners) > 1 or 0 in owners:
        paths = ", ".join(str(mount.source) for mount in spec.mounts if mount.writable)
        raise SandboxError(
            f"a sandbox started by root runs as the owner of what it may write ({paths}), which must be one user other "
            f"than root; chown it to {NOBODY}, or run as an ordinary user"
        )
    return owners.pop()


def _reachable(path: Path) -> bool:
    """Whether every user may enter all folders down to the path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"bwrap": "bubblewrap", "docker": "docker.io"}.get(name, name)
        raise SandboxError(
            f"the sandbox needs the program {name}, which is not installed; install the package {package} "
            f"(apt-get install {package}, dnf install {package}, pacman -S {package})"
        )
    return found


def _readable(text: str) -> int:
    """A descriptor from which the text can be read once."""
    descriptor = os.memfd_create("glm5-sandbox")
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
