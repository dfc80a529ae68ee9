"""The Linux calls that Python has no function for: namespaces, mounts, capabilities, and a system call filter."""

import ctypes
import errno
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
_ANY_NEW_NAMESPACE = 0x7E020080  # every CLONE_NEW* flag of clone(2)

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 2, 4, 8, 32
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 36, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

# Refused: what makes new namespaces, memory that no limit counts (memfd, System V, message
# queues), and parts of the kernel that
# ordinary programs do without and that have had more than their share of holes.
# name: (x86_64, aarch64), from the kernel's system call tables
_REFUSED = {
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "memfd_secret": (447, 447),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000  # the second numbering of the same calls on x86_64

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_FIRST_ARGUMENT = 0, 4, 16

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Enter new namespaces; a new process namespace holds only the children made from now on."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter (for processes: make children in) the namespace that the descriptor names."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a file system without a device, such as proc or tmpfs."""
    _check(_libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def become_subreaper() -> None:
    """Adopt orphaned descendants, as the first process of a namespace does."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "become subreaper")


def forbid_tracing() -> None:
    """Let no process of the same user read or change this one's memory."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "forbid tracing")


def drop_capabilities() -> None:
    """Give up every capability, now and for every program executed later."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities")
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "drop capabilities")


def system_call_filter() -> bytes:
    """The program of the filter (seccomp, classic BPF). Raises OSError on an architecture without a table.

    `clone3` hides its flags behind a pointer, where no filter can look: it answers ENOSYS, and C libraries fall back
    to `clone`, whose flags are looked at.
    """
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"there is no table of system calls for the architecture {machine}")
    column = list(_AUDIT_ARCH).index(machine)
    # Each row: instruction, the answer to jump to if true, if false (None: the next row), operand.
    rows = [
        (_LOAD, None, None, _OFFSET_ARCH),
        (_JUMP_EQUAL, None, "eperm", _AUDIT_ARCH[machine]),
        (_LOAD, None, None, _OFFSET_NUMBER),
        (_JUMP_GREATER_EQUAL, "eperm", None, _X32_BIT),
        *((_JUMP_EQUAL, "eperm", None, numbers[column]) for numbers in _REFUSED.values()),
        (_JUMP_EQUAL, "enosys", None, _CLONE3[column]),
        (_JUMP_EQUAL, None, "allow", _CLONE[column]),
        (_LOAD, None, None, _OFFSET_FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, "eperm", "allow", _ANY_NEW_NAMESPACE),
    ]
    answers = {"eperm": _ERRNO | errno.EPERM, "enosys": _ERRNO | errno.ENOSYS, "allow": _ALLOW}
    program = b""
    for at, (code, if_true, if_false, operand) in enumerate(rows):
        # Jumps are relative to the next instruction; the answers stand behind the last row.
        jumps = [0 if to is None else len(rows) - at - 1 + list(answers).index(to) for to in (if_true, if_false)]
        program += struct.pack("HBBI", code, *jumps, operand)
    for answer in answers.values():
        program += struct.pack("HBBI", _RETURN, 0, 0, answer)
    return program


def refuse_system_calls(program: bytes) -> None:
    """Put this process, and all it will start, under a filter."""
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0), "install the system call filter")
