"""The user's own files: `path:notes.txt`, `path:my-project/`, JSON lines and Parquet tables with a field `text`."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm5.data.documents import Document
from glm5.data.sources.base import Kind, read_text, walk
from glm5.errors import GLM5Error, UsageError

LICENSE = "user's own"
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".tex", ".org", ".adoc"})
TABLE_SUFFIXES = frozenset({".jsonl", ".parquet"})
CODE_SUFFIXES = frozenset(
    {".py", ".pyi", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".vue", ".svelte", ".html", ".css", ".scss", ".sql"}
    | {".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".rs", ".go", ".zig", ".swift", ".java", ".kt", ".scala"}
    | {".cs", ".fs", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".dart"}
    | {".sh", ".bash", ".toml", ".yaml", ".yml"}
)
_SKIP = ("__pycache__", "node_modules", "build", "dist", "venv")


@dataclass(slots=True, frozen=True)
class LocalSource:
    """Files that have been found readable, in sorted order."""

    name: str
    root: Path
    files: tuple[Path, ...]
    kind: Kind
    license: str = LICENSE

    def documents(self) -> Iterator[Document]:
        """Yield a document for each text or code file, and one for each row of a table."""
        for path in self.files:
            where = path.relative_to(self.root).as_posix()
            if path.suffix == ".jsonl":
                for number, text in enumerate(_json_lines(path), start=1):
                    yield Document(text, self.name, self.license, f"{where}:{number}")
            elif path.suffix == ".parquet":
                for number, text in enumerate(_parquet_rows(path), start=1):
                    yield Document(text, self.name, self.license, f"{where}:{number}")
            else:
                yield Document(read_text(path), self.name, self.license, where)


def local_source(name: str) -> LocalSource:
    """Open `path:FILE_OR_FOLDER`. It counts as code when more of its files are code than text.

    Raises:
        UsageError: there is nothing there, or no file of a kind we read.
    """
    path = Path(name.removeprefix("path:")).expanduser()
    if not path.exists():
        raise UsageError(f"source {name!r}: there is no file or folder {path}")
    candidates = [path] if path.is_file() else list(walk(path, _SKIP))
    files = tuple(file for file in candidates if file.suffix in TEXT_SUFFIXES | TABLE_SUFFIXES | CODE_SUFFIXES)
    if not files:
        raise UsageError(
            f"source {name!r} has no file to read among {len(candidates)}: we read "
            + " ".join(sorted(TEXT_SUFFIXES | TABLE_SUFFIXES))
            + " and source code"
        )
    code = sum(file.suffix in CODE_SUFFIXES for file in files)
    root = path.parent if path.is_file() else path
    return LocalSource(name, root, files, "code" if 2 * code > len(files) else "general")


def _json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise GLM5Error(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise GLM5Error(f'{path}:{number} has no string field "text"')
            yield row["text"]


def _parquet_rows(path: Path) -> Iterator[str]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise GLM5Error(f"reading {path} needs the package pyarrow: pip install pyarrow") from error
    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise GLM5Error(f'{path} has no column "text"; it has {", ".join(file.schema_arrow.names)}')
    for batch in file.iter_batches(columns=["text"]):
        for value in batch.column(0).to_pylist():
            yield value or ""  # a null is an empty document, which the quality rules drop and count
