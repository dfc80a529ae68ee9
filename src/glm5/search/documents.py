"""The documents of a folder, a JSON Lines file or a Parquet table, in an order that never changes.

The order is what makes an interrupted index resumable: the first n documents of a second reading are the first n of the
first one. What cannot be indexed (an empty text, a binary, a file above `MAX_BYTES`) is counted by reason, never
dropped without a word.
"""

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm5.data.sources.base import walk
from glm5.errors import GLM5Error, UsageError
from glm5.search.backend import Page, PageError
from glm5.search.readable import readable_text

MAX_BYTES = 20 * 2**20
TABLES = frozenset({".jsonl", ".parquet"})
HTML = frozenset({".html", ".htm", ".xhtml"})

# Names that published corpora give these columns; the first that a row has is taken.
_ADDRESS = ("id", "docid", "_id", "url", "path")
_TITLE = ("title", "name")
_TEXT = ("text", "contents", "content", "body")


@dataclass(slots=True)
class Corpus:
    """Files that have been found, and what reading them left out.

    Attributes:
        skipped: how many documents were left out, by reason; filled by `pages`.
    """

    root: Path
    files: tuple[Path, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Changes with the name, size or time of any file."""
        digest = hashlib.sha256()
        for file in self.files:
            status = file.stat()
            digest.update(f"{file.relative_to(self.root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def pages(self) -> Iterator[tuple[Page, int]]:
        """Each document with the bytes read so far.

        Raises:
            GLM5Error: a row is not what a table's row must be.
        """
        self.skipped.clear()
        read = 0
        for file in self.files:
            where = file.relative_to(self.root).as_posix()
            if file.suffix in TABLES:
                for number, (row, position) in enumerate(_positioned_rows(file), start=1):
                    page = _row_page(row, where, number)
                    if page.text.strip():
                        yield page, read + position
                    else:
                        self.skipped["without text"] += 1
            elif (whole := self._file_page(file, where)) is not None:
                yield whole, read
            read += file.stat().st_size

    def _file_page(self, file: Path, where: str) -> Page | None:
        if file.stat().st_size > MAX_BYTES:
            self.skipped[f"larger than {MAX_BYTES >> 20} MB"] += 1
            return None
        data = file.read_bytes()
        try:
            title, text = readable_text(data, "text/html" if file.suffix in HTML else "text/plain")
        except PageError as error:
            self.skipped[str(error)] += 1
            return None
        return Page(where, title or file.stem, text)


def open_corpus(path: Path) -> Corpus:
    """Every file below a folder (hidden ones aside), or one file.

    Raises:
        UsageError: there is nothing there, or nothing in it.
    """
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    files = (path,) if path.is_file() else tuple(walk(path))
    if not files:
        raise UsageError(f"{path} holds no file: there is nothing to index")
    return Corpus(path.parent if path.is_file() else path, files)


def read_rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file or a Parquet table.

    Raises:
        GLM5Error: it is not one, or reading Parquet needs a package that is missing.
    """
    for row, _ in _positioned_rows(path):
        yield row


def _positioned_rows(path: Path) -> Iterator[tuple[Any, int]]:
    """Rows with their positions in the file, in bytes."""
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_lines(path)


def _row_page(row: Any, where: str, number: int) -> Page:
    if not isinstance(row, Mapping):
        raise GLM5Error(f"{where}: row {number} is not an object with named fields")
    text = _first(row, _TEXT)
    if text is None:
        raise GLM5Error(f"{where}: row {number} has none of the fields {', '.join(_TEXT)}, but {', '.join(row)}")
    return Page(_first(row, _ADDRESS) or f"{where}:{number}", _first(row, _TITLE) or "", text)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(row[name]) for name in names if row.get(name) is not None), None)


def _json_lines(path: Path) -> Iterator[tuple[Any, int]]:
    position = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            position += len(line)
            if not line.strip():
                continue
            try:
                yield json.loads(line), position
            except ValueError as error:
                raise GLM5Error(f"{path.name}: row {number} is not JSON ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[Any, int]]:
    """A position counts as if all rows were of one size."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GLM5Error(f"reading {path.name} needs the package pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(path)
        row_bytes = path.stat().st_size / max(file.metadata.num_rows, 1)
        done = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                done += 1
                yield row, int(done * row_bytes)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise GLM5Error(f"{path.name} is not a Parquet file that can be read: {error}") from error
