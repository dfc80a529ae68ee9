"""A folder's documents as an inverted index ranked by BM25, kept by tantivy.

    documents ──> writer ──commit──> segments on disk, every `COMMIT_EVERY` documents
                    ^                    │
                    └── skip the first n ┘   n = documents in the last commit

Documents are read in an order that never changes and a commit is atomic. So after a kill the number of documents in
the index says where to go on: there is no second record of progress that could disagree with it.

Terms are words in lower case without accents, English ones stemmed; a character of Chinese, Japanese, Korean or Thai,
which write no spaces, is a term of its own. BM25 with k1 = 1.2, b = 0.75 (Robertson & Zaragoza, 2009); a document's
length is rounded as in Lucene, exact up to 40 terms and then to about one part in eight.
"""

import fcntl
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glm5.errors import GLM5Error, UsageError
from glm5.search.backend import BackendError, Hit, Page, PageError, snippet
from glm5.search.documents import Corpus

COMMIT_EVERY = 50_000  # documents a kill can cost
_RECORD = "glm5-index.json"
_TOKENIZER = "glm5"
_TERM = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}]|[\p{L}\p{N}\p{M}]+"
_LONGEST_TERM = 60  # bytes
_HEAP = 128_000_000  # bytes that the writer fills before it makes a segment of them


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """What an index says of itself. It is not complete until `documents` is known."""

    fingerprint: str
    documents: int | None = None
    skipped: dict[str, int] | None = None

    @classmethod
    def read(cls, folder: Path) -> "IndexRecord":
        """Raises UsageError where there is no index."""
        path = folder / _RECORD
        if not path.exists():
            raise UsageError(f"{folder} is not an index: make one with glm5 index FOLDER --output {folder}")
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Replace the record at once, whole."""
        scratch = folder / f"{_RECORD}.new"
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.replace(folder / _RECORD)


def build_index(corpus: Corpus, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> IndexRecord:
    """Index a corpus, or go on where an earlier call was interrupted; a finished index is left as it is.

    Args:
        on_progress: called with the documents in the index and the bytes read, after every thousand documents.

    Raises:
        UsageError: the folder holds the index of other files, or something that is no index, or is being written.
        GLM5Error: tantivy is not installed; the corpus has no document; two documents have the same address.
    """
    _tantivy()  # before there is anything on the disk
    fingerprint = corpus.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (folder / _RECORD).exists():
            record = IndexRecord.read(folder)
            if record.fingerprint != fingerprint:
                raise UsageError(f"{folder} is the index of other files, or of these before they changed: delete it")
            if record.documents is not None:
                return record
        elif any(path.name != _LOCK for path in folder.iterdir()):
            raise UsageError(f"{folder} holds something that is not an index: choose an empty or a new folder")
        IndexRecord(fingerprint).write(folder)
        count = _write(corpus, folder, on_progress or (lambda documents, read: None))
        if not count:
            reasons = ", ".join(f"{number} {reason}" for reason, number in corpus.skipped.items())
            raise GLM5Error(f"{corpus.root} holds no document that can be indexed ({reasons or 'no rows'})")
        record = IndexRecord(fingerprint, count, dict(corpus.skipped))
        record.write(folder)
        return record


def _write(corpus: Corpus, folder: Path, on_progress: Callable[[int, int], None]) -> int:
    index = _open_tantivy(folder)
    document = _tantivy().Document
    done = index.searcher().num_docs
    writer = index.writer(_HEAP, 1)
    seen: set[str] = set()
    for count, (page, read) in enumerate(corpus.pages(), start=1):
        if page.address in seen:
            raise GLM5Error(f"{corpus.root}: two documents have the address {page.address!r}; addresses must differ")
        seen.add(page.address)
        if count > done:
            stored = json.dumps([page.title, page.text]).encode()
            writer.add_document(document(address=[page.address], terms=[f"{page.title}\n{page.text}"], page=[stored]))
            if count % COMMIT_EVERY == 0:
                writer.commit()
        if count % 1000 == 0:
            on_progress(count, read)
    writer.commit()
    writer.wait_merging_threads()
    on_progress(len(seen), corpus.size)
    return len(seen)


class LocalIndex:
    """An index that `build_index` has finished, as a `Backend`."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            UsageError: there is no index, or one that is not finished.
            GLM5Error: tantivy is not installed.
        """
        record = IndexRecord.read(folder)
        if record.documents is None:
            raise UsageError(f"the index {folder} is not finished: give the command that began it once more")
        index = _open_tantivy(folder)
        self.documents = record.documents
        self._schema, self._searcher = index.schema, index.searcher()
        self._analyzer = _analyzer()
        if self._searcher.num_docs != self.documents:
            raise BackendError(
                f"the index {folder} is damaged: {self._searcher.num_docs} of {self.documents} documents"
            )

    def terms(self, text: str) -> list[str]:
        """What the index makes of a text."""
        return list(self._analyzer.analyze(text))

    def ranked(self, query: str, limit: int) -> list[tuple[float, Page]]:
        """The best documents that hold any term of the query, with their BM25 scores. No query syntax."""
        tantivy = _tantivy()
        clauses = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "terms", term, "freq"))
            for term in dict.fromkeys(self.terms(query))
        ]
        if not clauses:
            return []
        found = self._searcher.search(tantivy.Query.boolean_query(clauses), limit, count=False)
        return [(score, self._page(where)) for score, where in found.hits]

    async def search(self, query: str, limit: int) -> list[Hit]:
        """See `Backend.search`. Milliseconds, so that it does not leave the event loop."""
        words = set(query.lower().split())
        return [Hit(page.address, page.title, snippet(page.text, words)) for _, page in self.ranked(query, limit)]

    async def open(self, address: str) -> Page:
        """See `Backend.open`."""
        query = _tantivy().Query.term_query(self._schema, "address", address, "basic")
        found = self._searcher.search(query, 1, count=False).hits
        if not found:
            raise PageError(f"there is no document {address!r}")
        return self._page(found[0][1])

    async def close(self) -> None:
        """See `Backend.close`; files are mapped and go with the object."""

    def _page(self, where: Any) -> Page:
        stored = self._searcher.doc(where)
        title, text = json.loads(bytes(stored.get_first("page")))
        return Page(stored.get_first("address"), title, text)


_LOCK = ".lock"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two writers would each continue the other's index; the lock goes with the process, however it ends."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another process is writing the index {folder}") from None
        yield


def _tantivy() -> Any:
    try:
        return importlib.import_module("tantivy")
    except ImportError as error:
        raise GLM5Error("a local index needs the package tantivy: pip install 'glm5[search]'") from error


def _analyzer() -> Any:
    tantivy = _tantivy()
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(_TERM))
    for rule in (
        tantivy.Filter.remove_long(_LONGEST_TERM), tantivy.Filter.lowercase(), tantivy.Filter.ascii_fold(),
        tantivy.Filter.stemmer("english"),
    ):  # fmt: skip
        builder = builder.filter(rule)
    return builder.build()


def _open_tantivy(folder: Path) -> Any:
    tantivy = _tantivy()
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("address", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_text_field("terms", tokenizer_name=_TOKENIZER, index_option="freq")
    schema.add_bytes_field("page", stored=True)
    try:
        index = tantivy.Index(schema.build(), path=str(folder))
    except (ValueError, OSError) as error:
        raise BackendError(f"the index {folder} cannot be opened: {error}") from error
    index.register_tokenizer(_TOKENIZER, _analyzer())
    return index
