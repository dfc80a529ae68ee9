"""A local index at size: documents a second, milliseconds a query, and recall@10 against BM25 by brute force.

    python benchmarks/index.py [--documents 1000000] [--queries 200] [--peers]

The documents are three sentences each, drawn from the World Factbook and Python's own sources, so that words have
their natural frequencies. Queries are six words of one document. `--peers` adds SQLite's FTS5 and, where it is
installed, bm25s, on the same documents; FTS5 has its own stemmer and bm25s none, so only their times compare.
"""

import argparse
import heapq
import importlib
import importlib.util
import json
import math
import random
import re
import sqlite3
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glm5.data.sources.registry import open_sources
from glm5.search.documents import open_corpus
from glm5.search.index import LocalIndex, build_index

RESULTS = Path(__file__).parent / "results"
CHECKED = 25  # queries that are also answered by brute force, which takes seconds each


@dataclass(slots=True)
class Row:
    """One way to search; recall is None for peers, whose terms are others."""

    name: str
    documents: int
    build_seconds: float
    p50_ms: float
    p95_ms: float
    megabytes: float
    recall_at_10: float | None  # against BM25 with lengths rounded as Lucene and tantivy round them
    recall_unrounded: float | None  # against BM25 with lengths as they are


def make_documents(count: int) -> Iterator[str]:
    """Three real sentences each, always the same ones."""
    pool = [
        " ".join(words)
        for source in open_sources(["world-factbook", "python-stdlib"])
        for document in source.documents()
        for part in re.split(r"\n\n|(?<=[.;]) ", document.text)
        if 5 <= len(words := part.split()) <= 60
    ]
    rng = random.Random(0)
    for _ in range(count):
        yield " ".join(rng.choice(pool) for _ in range(3))


def timed(queries: list[str], ask: Callable[[str], object]) -> tuple[float, float]:
    """Median and 95th percentile, in milliseconds."""
    ask(queries[0])
    took = []
    for query in queries:
        began = time.perf_counter()
        ask(query)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took), statistics.quantiles(took, n=20)[-1]


def ours(corpus: Path, queries: list[str], folder: Path) -> Row:
    """Our index, checked against brute force."""
    began = time.perf_counter()
    record = build_index(open_corpus(corpus), folder)
    seconds = time.perf_counter() - began
    index = LocalIndex(folder)
    p50, p95 = timed(queries, lambda query: index.ranked(query, 10))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    assert record.documents is not None
    return Row("glm5 (tantivy)", record.documents, seconds, p50, p95, size, *recall(index, corpus, queries[:CHECKED]))


def recall(index: LocalIndex, corpus: Path, queries: list[str]) -> tuple[float, float]:
    """The share of our ten whose exact score reaches the tenth best of all documents: lengths rounded, and not."""
    asked = [list(dict.fromkeys(index.terms(query))) for query in queries]
    wanted = {term for terms in asked for term in terms}
    postings: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    lengths: dict[str, int] = {}
    for line in corpus.open(encoding="utf-8"):
        row = json.loads(line)
        terms = index.terms(row["text"])
        lengths[row["id"]] = len(terms)
        for term, count in Counter(term for term in terms if term in wanted).items():
            postings[term].append((row["id"], count))
    mean = sum(lengths.values()) / len(lengths)
    shares = []
    for length in (rounded, int):
        right = possible = 0
        for query, terms in zip(queries, asked):
            scores: defaultdict[str, float] = defaultdict(float)
            for term in terms:
                n = len(postings[term])
                idf = math.log(1 + (len(lengths) - n + 0.5) / (n + 0.5))
                for document, count in postings[term]:
                    norm = 1.2 * (0.25 + 0.75 * length(lengths[document]) / mean)
                    scores[document] += idf * count * 2.2 / (count + norm)
            best = heapq.nlargest(10, scores.values())
            right += sum(scores[page.address] >= best[-1] * (1 - 1e-6) for _, page in index.ranked(query, 10))
            possible += len(best)
        shares.append(right / possible)
    return shares[0], shares[1]


def rounded(length: int) -> int:
    """A length as one byte holds it: exact up to 40, beyond that 24 and four significant bits of the rest."""
    shift = max((length - 24).bit_length() - 4, 0) if length > 40 else 0
    return 24 + ((length - 24) >> shift << shift) if length > 40 else length


def sqlite_fts5(corpus: Path, queries: list[str], folder: Path) -> Row:
    """The full-text index of the standard library's database."""
    began = time.perf_counter()
    base = sqlite3.connect(folder / "fts.sqlite")
    base.execute("create virtual table pages using fts5(text, tokenize = 'porter unicode61')")
    rows = ((json.loads(line)["text"],) for line in corpus.open(encoding="utf-8"))
    count = base.executemany("insert into pages values (?)", rows).rowcount
    base.commit()
    seconds = time.perf_counter() - began

    def ask(query: str) -> object:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        return base.execute("select rowid from pages where pages match ? order by rank limit 10", (words,)).fetchall()

    p50, p95 = timed(queries, ask)
    size = (folder / "fts.sqlite").stat().st_size / 2**20
    return Row("SQLite FTS5", count, seconds, p50, p95, size, None, None)


def bm25s_peer(corpus: Path, queries: list[str], folder: Path) -> Row:
    """Scores worked out beforehand and kept in sparse matrices, all in memory."""
    bm25s = importlib.import_module("bm25s")

    began = time.perf_counter()
    texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    retriever = bm25s.BM25(k1=1.2, b=0.75)
    retriever.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    retriever.save(folder / "bm25s")
    seconds = time.perf_counter() - began

    def ask(query: str) -> object:
        terms = bm25s.tokenize(query, stopwords=None, show_progress=False)
        return retriever.retrieve(terms, k=10, show_progress=False)

    p50, p95 = timed(queries, ask)
    size = sum(file.stat().st_size for file in (folder / "bm25s").iterdir()) / 2**20
    return Row("bm25s", len(texts), seconds, p50, p95, size, None, None)


def main() -> None:
    """Build, ask, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus, queries = folder / "corpus.jsonl", []
        with corpus.open("w", encoding="utf-8") as file:
            for number, text in enumerate(make_documents(options.documents)):
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")
                if number % (options.documents // options.queries) == 0:
                    queries.append(" ".join(rng.sample(text.split(), 6)))
        rows = [ours(corpus, queries, folder / "index")]
        if options.peers:
            rows.append(sqlite_fts5(corpus, queries, folder))
            if importlib.util.find_spec("bm25s"):
                rows.append(bm25s_peer(corpus, queries, folder))
    table = Table(
        "index", "documents", "build s", "documents/s", "p50 ms", "p95 ms", "MB", "recall@10", "unrounded", box=None
    )
    for row in rows:
        table.add_row(
            row.name, f"{row.documents:,}", f"{row.build_seconds:.1f}", f"{row.documents / row.build_seconds:,.0f}",
            f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.megabytes:.0f}",
            *("" if share is None else f"{share:.4f}" for share in (row.recall_at_10, row.recall_unrounded)),
        )  # fmt: skip
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "index.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
