"""The names a recipe can write, and what each opens."""

from collections.abc import Callable, Sequence

from glm5.data.sources.base import Source
from glm5.data.sources.codeio import codeio
from glm5.data.sources.debian import COPYLEFT, PERMISSIVE, debian_member, debian_set
from glm5.data.sources.factbook import factbook
from glm5.data.sources.local import local_source
from glm5.data.sources.python_packages import networkx, python_stdlib, sympy
from glm5.errors import UsageError

_SOURCES: dict[str, Callable[[], Source]] = {
    "python-stdlib": python_stdlib,
    "world-factbook": factbook,
    "reasoning-gym": codeio,
    "sympy": sympy,
    "networkx": networkx,
}
DEFAULT_SOURCES = tuple(_SOURCES)  # permissive licences, installed by pip alone


def open_sources(names: Sequence[str]) -> list[Source]:
    """Open sources by name; `debian-permissive` and `debian-copyleft` stand for all their members.

    Raises:
        UsageError: no names, an unknown one, or one twice.
        GLM5Error: a source's package is missing; the message has the command that installs it.
    """
    if not names:
        raise UsageError(f"no sources were named; the default set is: {', '.join(DEFAULT_SOURCES)}")
    opened: list[Source] = []
    for name in names:
        opened += _open(name)
    seen: set[str] = set()
    for source in opened:
        if source.name in seen:
            raise UsageError(f"source {source.name!r} is named twice: {', '.join(names)}")
        seen.add(source.name)
    return opened


def _open(name: str) -> Sequence[Source]:
    if name in _SOURCES:
        return [_SOURCES[name]()]
    if name.startswith("path:"):
        return [local_source(name)]
    if name.startswith("debian:"):
        return [debian_member(name)]
    if name == "debian-permissive":
        return debian_set(PERMISSIVE)
    if name == "debian-copyleft":
        return debian_set(COPYLEFT)
    known = [*_SOURCES, "debian-permissive", "debian-copyleft", "debian:PACKAGE", "path:FILE_OR_FOLDER"]
    raise UsageError(f"unknown source {name!r}; known are: {', '.join(known)}")
