"""What a source of text is, and the few tools every source needs: find a package, read a file, walk a folder."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from glm5.data.documents import Document
from glm5.errors import GLM5Error

Kind = Literal["general", "code", "reasoning"]


class Source(Protocol):
    """A named stream of documents that can be read again from the start. Opening one checks that it can be read."""

    @property
    def name(self) -> str:
        """As a recipe writes it."""

    @property
    def kind(self) -> Kind:
        """What a mixture may ask for instead of the name."""

    @property
    def license(self) -> str:
        """Of the source as a whole; each document carries its own."""

    def documents(self) -> Iterator[Document]:
        """All documents, in the same order every time, as they stand: rules and duplicates are looked at later."""


def package_folder(module: str, source: str, requirement: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        GLM5Error: it is not installed; the message has the command that installs it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise GLM5Error(
            f"source {source!r} reads the package {module!r}, which is missing: pip install '{requirement}'"
        )
    return Path(spec.submodule_search_locations[0])


def read_text(path: Path) -> str:
    """A file as UTF-8. Bytes that are not UTF-8 become U+FFFD, which the quality rules count as damage."""
    return path.read_bytes().decode("utf-8", "replace")


def walk(folder: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    """All files below `folder` in sorted order.

    Not entered: hidden folders, those named in `skip`, and links to folders (they repeat files, and may form a circle).
    """
    skipped = set(skip)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in skipped:
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from walk(entry, skipped)
        elif entry.is_file():
            yield entry
