"""What the host asks to be done with files, done as one more confined execution.

Untrusted programs made these paths: a symbolic link may point anywhere, a name may be a pipe that never ends. So the
program that serves the host never opens them; a child that may do no more than any other execution does, with its
standard input and output as the two ends of the transfer, under the same limits.
"""

import os
import shutil
import sys
import tarfile


def read(path: str) -> None:
    """Write the bytes of a file to standard output."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise OSError(f"{path} is not a file")  # a device or a pipe may have no end
    with open(path, "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


def write(path: str) -> None:
    """Make the file, and the folders above it, from standard input."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


def names(path: str) -> None:
    """Every file and folder below a folder, folders with a slash, sorted, with NUL bytes between them."""
    if not os.path.isdir(path):
        raise NotADirectoryError(f"{path} is not a folder")
    found = []
    for folder, folders, files in os.walk(path):
        below = os.path.relpath(folder, path)
        found += [os.path.normpath(os.path.join(below, name)) + "/" for name in folders]
        found += [os.path.normpath(os.path.join(below, name)) for name in files]
    sys.stdout.buffer.write("\0".join(sorted(found)).encode("utf-8", "surrogateescape"))


def snapshot(path: str) -> None:
    """A tar archive of a folder, to standard output."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        archive.add(path, arcname=".")


def restore(path: str) -> None:
    """Empty a folder and fill it from the archive on standard input."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        # All members as they are: the archive came out of `snapshot`, and this process can reach nothing else.
        archive.extraction_filter = staticmethod(lambda member, path: member)
        archive.extractall(path)


ACTIONS = {"read": read, "write": write, "names": names, "snapshot": snapshot, "restore": restore}
