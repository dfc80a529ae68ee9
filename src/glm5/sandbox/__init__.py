"""Where untrusted code runs: one small protocol, bubblewrap by default, never a silent fallback (docs/sandbox.md)."""

from glm5.sandbox.box import Process, Sandbox, open_sandbox
from glm5.sandbox.pool import PythonPool
from glm5.sandbox.spec import ExecResult, Mount, SandboxError, SandboxSpec, Snapshot

__all__ = [
    "ExecResult",
    "Mount",
    "Process",
    "PythonPool",
    "Sandbox",
    "SandboxError",
    "SandboxSpec",
    "Snapshot",
    "open_sandbox",
]
