"""Python source files that are already installed: the interpreter's own library, sympy and networkx."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm5.data.documents import Document
from glm5.data.sources.base import Kind, package_folder, read_text, walk

# Other people's packages and tests; tables of character sets; a generated dump of the language reference, twenty
# times the size of any source file; two programs whose sources are mostly tests and grammars.
_STDLIB_SKIP = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "__pycache__",
)


@dataclass(slots=True, frozen=True)
class PythonSource:
    """The `.py` files below `folder`, one document a file."""

    name: str
    license: str
    folder: Path
    skip: tuple[str, ...] = ("tests", "__pycache__")
    kind: Kind = "code"

    def documents(self) -> Iterator[Document]:
        """Yield every file in sorted order."""
        for path in walk(self.folder, self.skip):
            if path.suffix == ".py":
                yield Document(read_text(path), self.name, self.license, path.relative_to(self.folder).as_posix())


def python_stdlib() -> PythonSource:
    """The library of the running interpreter, without its tests."""
    return PythonSource("python-stdlib", "PSF-2.0", Path(sysconfig.get_path("stdlib")), _STDLIB_SKIP)


def sympy() -> PythonSource:
    """Symbolic mathematics with long docstrings."""
    return PythonSource("sympy", "BSD-3-Clause", package_folder("sympy", "sympy", "sympy>=1.13"))


def networkx() -> PythonSource:
    """Graph algorithms, each explained in its docstring."""
    return PythonSource("networkx", "BSD-3-Clause", package_folder("networkx", "networkx", "networkx>=3.2"))
