"""Start the server: `python -m inside [--namespaces DISK_BYTES]`, speaking frames on standard input and output."""

import gc
import importlib
import os
import sys

from .kernel import MS_NODEV, MS_NOSUID, MS_REMOUNT, become_subreaper, forbid_tracing, mount
from .server import Server

MAX_FILES = 200_000  # in each of the sandbox's own folders: names cost memory too, and no limit in bytes counts them

# What short programs import most; read once here, so that no execution has to.
WARM = ("collections", "dataclasses", "datetime", "functools", "heapq", "itertools", "json", "math", "random", "re")


def main() -> None:
    """Move the pipe to the host out of the way of standard input and output, warm up, and serve."""
    namespaces = "--namespaces" in sys.argv
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    if namespaces:
        size = sys.argv[sys.argv.index("--namespaces") + 1]
        for folder in ("/work", "/tmp", "/dev/shm"):
            mount("tmpfs", folder, MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size},nr_inodes={MAX_FILES}")
    else:
        become_subreaper()
    for name in WARM:
        importlib.import_module(name)
    forbid_tracing()  # nor may anybody trace a fork of this process
    gc.collect()
    gc.freeze()  # so that a child's collector does not touch, and thereby copy, the pages it shares with this process
    Server(requests, replies, namespaces).run()


if __name__ == "__main__":
    main()
