"""Documentation, reference works and sources from Debian 12 packages, unpacked into a cache; nothing is installed.

Each member of the two sets can be named alone (`debian:wordnet-base`). The copyleft set is kept apart because its terms
travel with copies of the text.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from glm5.data.documents import Document
from glm5.data.sources import decoders
from glm5.data.sources.base import Kind, walk
from glm5.errors import GLM5Error, UsageError


@dataclass(slots=True, frozen=True)
class Package:
    """A Debian package and which of its files to read how. Patterns are matched against the path; `*` spans folders."""

    name: str
    license: str
    decode: decoders.Decoder
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    kind: Kind = "general"


_INDEX_PAGES = ("*/genindex*", "*/search.html", "*/py-modindex.html", "*/bookindex.html", "*/print.html", "*/toc.html")

PERMISSIVE = (
    Package("sword-comm-tdavid", "Public domain", decoders.sword, ("*.czs",)),
    Package("sword-comm-mhcc", "Public domain", decoders.sword, ("*.bzs",)),
    Package("sword-text-web", "Public domain", decoders.sword, ("*.bzs",)),
    Package("wordnet-base", "WordNet-3.0", decoders.wordnet, ("usr/share/wordnet/data.*",)),
    Package(
        "fortunes", "BSD-3-Clause", decoders.fortunes, ("usr/share/games/fortunes/*",), ("*.dat", "*.u8", "*/off/*")
    ),
    Package("jargon-text", "Public domain", decoders.entries, ("*/jargon.txt.gz",)),
    Package("cfi-en", "Public domain", decoders.html_page, ("*/html/*.htm",)),
    Package("python3.11-doc", "PSF-2.0", decoders.plain, ("usr/share/doc/*/_sources/*.rst.txt",)),
    Package("postgresql-doc-15", "PostgreSQL", decoders.html_page, ("*/html/*.html",), _INDEX_PAGES),
    Package("sqlite3-doc", "Public domain", decoders.html_page, ("usr/share/doc/sqlite3/*.html",), _INDEX_PAGES),
    Package(
        "rust-doc",
        "MIT OR Apache-2.0",
        decoders.html_page,
        ("*/html/book/*.html", "*/html/reference/*.html", "*/html/nomicon/*.html", "*/html/rust-by-example/*.html"),
        (*_INDEX_PAGES, "*/first-edition/*", "*/second-edition/*", "*/2018-edition/*"),
    ),
    Package("golang-1.19-src", "BSD-3-Clause", decoders.plain, ("*.go",), ("*/testdata/*",), kind="code"),
    Package("rust-src", "MIT OR Apache-2.0", decoders.plain, ("*/library/*.rs", "*/compiler/*.rs"), kind="code"),
    Package("libpython3.11-testsuite", "PSF-2.0", decoders.plain, ("*.py",), kind="code"),
    Package("hol-light", "BSD-2-Clause", decoders.entries, ("*.ml", "*.hl"), kind="reasoning"),
    Package("metamath-databases", "CC0-1.0", decoders.entries, ("*/set.mm", "*/iset.mm"), kind="reasoning"),
)
COPYLEFT = (
    Package("dict-foldoc", "GFDL-1.1-or-later", decoders.dictd, ("*.dict.dz",)),
    Package("dict-gcide", "GPL-2.0-or-later", decoders.dictd, ("*.dict.dz",)),
    Package("fortunes-zh", "GPL-3.0-or-later", decoders.fortunes, ("usr/share/games/fortunes/*",), ("*.dat", "*.u8")),
    Package("fortunes-ru", "GPL-2.0-or-later", decoders.fortunes, ("usr/share/games/fortunes/*",), ("*.dat", "*.u8")),
    Package(
        "manpages-zh", "GFDL-1.2-or-later AND GPL-2.0-or-later", decoders.manual_page, ("usr/share/man/zh_CN/*.gz",)
    ),
    Package("manpages-ru", "GPL-3.0-or-later", decoders.manual_page, ("usr/share/man/ru/*.gz",)),
)


def cache_folder() -> Path:
    """Where unpacked packages are kept: `$XDG_CACHE_HOME/glm5/debian`, usually below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glm5" / "debian"


@dataclass(slots=True, frozen=True)
class DebianSource:
    """One package as a source; it is downloaded the first time its documents are read."""

    package: Package
    cache: Path = field(default_factory=cache_folder)

    @property
    def name(self) -> str:
        """`debian:PACKAGE`."""
        return f"debian:{self.package.name}"

    @property
    def kind(self) -> Kind:
        """What the package mostly holds."""
        return self.package.kind

    @property
    def license(self) -> str:
        """The package's licence."""
        return self.package.license

    def documents(self) -> Iterator[Document]:
        """Yield the decoded texts of all files that match.

        Raises:
            GLM5Error: the package cannot be fetched, or no file in it matches.
        """
        root = fetch(self.package.name, self.cache)
        matched = 0
        for path in walk(root):
            where = path.relative_to(root).as_posix()
            if _matches(where, self.package.include) and not _matches(where, self.package.exclude):
                matched += 1
                for part, text in self.package.decode(path):
                    yield Document(text, self.name, self.license, f"{where}#{part}" if part else where)
        if not matched:
            raise GLM5Error(f"source {self.name!r}: no file in {root} matches {' '.join(self.package.include)}")


def debian_set(packages: Sequence[Package]) -> list[DebianSource]:
    """Every package of a set as a source. Raises GLM5Error where there is no apt-get and dpkg."""
    _require_tools()
    return [DebianSource(package) for package in packages]


def debian_member(name: str) -> DebianSource:
    """Open `debian:PACKAGE`.

    Raises:
        UsageError: the package is in neither set.
        GLM5Error: there is no apt-get and dpkg.
    """
    by_name = {package.name: package for package in (*PERMISSIVE, *COPYLEFT)}
    wanted = name.removeprefix("debian:")
    if wanted not in by_name:
        raise UsageError(f"source {name!r} is not a known Debian member; known are: {', '.join(by_name)}")
    _require_tools()
    return DebianSource(by_name[wanted])


def fetch(package: str, cache: Path) -> Path:
    """The folder with the unpacked package, downloaded on first use.

    Raises:
        GLM5Error: the download or the unpacking failed; the message has the tool's own last line.
    """
    target = cache / package
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{package}-") as scratch:
        work = Path(scratch)
        _call(
            ["apt-get", "download", package],
            work,
            f"cannot download {package}; run `apt-get update` as root and try again",
        )
        archive = next(work.glob("*.deb"))
        _call(["dpkg", "-x", archive.name, "unpacked"], work, f"cannot unpack {archive.name}")
        try:
            (work / "unpacked").rename(target)  # complete or not there at all
        except OSError:
            if not target.is_dir():  # it is there when another process was faster
                raise
    return target


def _matches(where: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(where, pattern) for pattern in patterns)


def _require_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise GLM5Error(
            f"the Debian sources need {' and '.join(missing)}: use a Debian or Ubuntu system, or other sources"
        )


def _call(command: list[str], folder: Path, failure: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr or result.stdout).strip().rpartition("\n")[2]
        raise GLM5Error(f"{failure} ({last})")
