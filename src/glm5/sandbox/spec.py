"""What a sandbox is asked for, and what an execution in it gives back."""

from dataclasses import dataclass, field
from pathlib import Path

from glm5.errors import GLM5Error, UsageError

BACKENDS = ("bubblewrap", "docker", "podman", "local")
WORK = "/work"  # the working folder in every sandbox but a local one


class SandboxError(GLM5Error):
    """The sandbox itself failed: it could not start, or it broke. Never the fault of what ran in it."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host shown in the sandbox, read-only unless said otherwise."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A sandbox. The limits hold for each execution; docs/sandbox.md says which backend enforces them how."""

    backend: str = "bubblewrap"
    memory_bytes: int = 1 << 30  # of all processes of an execution together
    max_processes: int = 128
    max_output_bytes: int = 1 << 20  # kept of standard output, and of standard error; the middle is left out
    disk_bytes: int = 512 << 20  # of the working folder, of /tmp, and of one file
    timeout: float = 60.0  # seconds, where an execution gives none of its own
    mounts: tuple[Mount, ...] = ()
    image: str = ""  # docker and podman: an image that holds `python3`, 3.10 or newer
    allow_unconfined: bool = False  # must be true for `local`, which confines nothing

    def __post_init__(self) -> None:
        """Raises UsageError for what no sandbox can be."""
        if self.backend not in BACKENDS:
            raise UsageError(f"sandbox: unknown backend {self.backend!r}; known are {', '.join(BACKENDS)}")
        if self.backend == "local" and not self.allow_unconfined:
            raise UsageError(
                "sandbox: the backend 'local' runs programs on this machine without any confinement; "
                "set allow_unconfined=True if that is what you want"
            )
        if (self.backend in ("docker", "podman")) != bool(self.image):
            raise UsageError(
                f"sandbox: image={self.image!r}; the backends docker and podman need one, others have none"
            )
        if self.backend == "local" and self.mounts:
            raise UsageError("sandbox: the backend 'local' sees every file already and cannot mount any")
        for name in ("memory_bytes", "max_processes", "max_output_bytes", "disk_bytes", "timeout"):
            if getattr(self, name) <= 0:
                raise UsageError(f"sandbox: {name} is {getattr(self, name)}; it must be more than 0")
        for mount in self.mounts:
            if not mount.source.exists():
                raise UsageError(f"sandbox: cannot mount {mount.source}: there is no such file or folder")
            if not mount.target.startswith("/"):
                raise UsageError(f"sandbox: the target of a mount must be an absolute path, not {mount.target!r}")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How an execution ended."""

    exit_code: int | None  # 128 + n after signal n, as in a shell; None when it was killed for a limit
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool  # an output was longer than max_output_bytes: its middle is missing
    seconds: float
    killed_for: str  # "", "time", "memory", "processes" or "stop"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The working folder at one moment, as an uncompressed tar archive."""

    archive: bytes = field(repr=False)
