import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from glm5.data.sources.factbook import factbook
from glm5.errors import GLM5Error, UsageError
from glm5.search.backend import SNIPPET, PageError, snippet
from glm5.search.documents import open_corpus
from glm5.search.index import LocalIndex, build_index
from tests.search.conftest import run

pytest.importorskip("tantivy", reason="the index needs the extra 'search'")


def sentences() -> list[str]:
    """Real sentences of at most 40 words: as many terms as the index counts exactly."""
    text = "\n".join(document.text for document, _ in zip(factbook().documents(), range(300)))
    parts = (" ".join(part.split()) for part in text.replace(";", ".").split(". "))
    return [part for part in dict.fromkeys(parts) if 4 <= len(part.split()) <= 25]


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sentences()[:4000]


@pytest.fixture(scope="module")
def index(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> LocalIndex:
    folder = tmp_path_factory.mktemp("index")
    build_index(open_corpus(write_corpus(folder / "corpus.jsonl", texts)), folder / "index")
    return LocalIndex(folder / "index")


def test_recall_at_10_equals_brute_force(index: LocalIndex, texts: list[str]) -> None:
    """BM25 written out over every document (k1 = 1.2, b = 0.75), with the index's own terms."""
    bags = [Counter(index.terms("\n" + text)) for text in texts]
    lengths = [bag.total() for bag in bags]
    assert max(lengths) <= 40
    mean = sum(lengths) / len(lengths)
    frequency = Counter(term for bag in bags for term in bag)

    def score(bag: Counter[str], length: int, terms: list[str]) -> float:
        total = 0.0
        for term in dict.fromkeys(terms):
            n = frequency[term]
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            total += idf * bag[term] * 2.2 / (bag[term] + 1.2 * (0.25 + 0.75 * length / mean))
        return total

    rng, compared = random.Random(0), 0
    for _ in range(60):
        terms = rng.sample(sorted(rng.choice(bags)), 3) + rng.sample(sorted(rng.choice(bags)), 1)
        expected = sorted((score(bag, length, terms) for bag, length in zip(bags, lengths)), reverse=True)[:10]
        found = index.ranked(" ".join(terms), 10)
        if all(index.terms(term) == [term] for term in terms):  # a stem may have a stem of its own
            assert [s for s, _ in found] == pytest.approx([s for s in expected if s > 0], rel=1e-4)
            compared += 1
    assert compared > 20


def test_a_kill_in_the_middle_costs_nothing_but_time(texts: list[str], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", texts)
    code = (
        "import sys, time; from pathlib import Path; import glm5.search.index as index\n"
        "from glm5.search.documents import open_corpus\n"
        "index.COMMIT_EVERY = 500\n"
        "def told(count, read): print(count, flush=True); time.sleep(0.2)\n"
        "index.build_index(open_corpus(Path(sys.argv[1])), Path(sys.argv[2]), told)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(corpus), str(tmp_path / "index")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 2000:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(UsageError, match="not finished"):
        LocalIndex(tmp_path / "index")

    seen: list[int] = []
    record = build_index(open_corpus(corpus), tmp_path / "index", lambda count, read: seen.append(count))
    assert record.documents == len(texts)
    index = LocalIndex(tmp_path / "index")
    for number in (0, 1499, 1999, 2000, len(texts) - 1):  # around what had been committed, each exactly once
        assert run(index.open(f"d{number}")).text == texts[number]
        assert [page.address for _, page in index.ranked(texts[number], 10)].count(f"d{number}") == 1
    before = (tmp_path / "index" / "meta.json").stat().st_mtime_ns
    assert build_index(open_corpus(corpus), tmp_path / "index") == record  # finished: nothing to do
    assert (tmp_path / "index" / "meta.json").stat().st_mtime_ns == before


def test_search_and_open(index: LocalIndex, texts: list[str]) -> None:
    hits = run(index.search(texts[17], 5))
    assert hits[0].address == "d17"
    assert run(index.open("d17")).text == texts[17]
    with pytest.raises(PageError, match="no document 'nowhere'"):
        run(index.open("nowhere"))


@pytest.mark.parametrize("query", ["", "   ", '"', "title:(", "AND OR NOT", "a" * 10_000, "\0", "((((", "text:foo^2"])
def test_a_query_is_words_and_never_syntax(index: LocalIndex, query: str) -> None:
    assert isinstance(run(index.search(query, 5)), list)


def test_other_scripts_and_accents(tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path / "c.jsonl", ["北京是中国的首都", "Brasília é a capital", "Москва — столица", "ประเทศไทย"]
    )
    build_index(open_corpus(corpus), tmp_path / "index")
    index = LocalIndex(tmp_path / "index")
    for query, address in (("北京", "d0"), ("brasilia", "d1"), ("москва", "d2"), ("ไทย", "d3")):
        assert run(index.search(query, 1))[0].address == address


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("the wombat digs")
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "empty.txt").write_text("")
    (folder / "large.txt").write_bytes(b"x " * (11 * 2**20))
    record = build_index(open_corpus(folder), tmp_path / "index")
    assert record.documents == 1
    assert record.skipped == {"is binary, not text": 1, "holds no text": 1, "larger than 20 MB": 1}
    assert run(LocalIndex(tmp_path / "index").search("wombat", 1))[0].address == "deep/a.txt"


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"docid": [7, 8], "text": ["one quokka", "two"]}), tmp_path / "c.parquet")
    build_index(open_corpus(tmp_path / "c.parquet"), tmp_path / "index")
    assert run(LocalIndex(tmp_path / "index").search("quokka", 1))[0].address == "7"


def test_what_cannot_be_indexed_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="nothing to index"):
        open_corpus(empty)
    with pytest.raises(UsageError, match="no file or folder"):
        open_corpus(tmp_path / "missing")
    with pytest.raises(UsageError, match="not an index"):
        LocalIndex(empty)
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" ")
    with pytest.raises(GLM5Error, match="no document that can be indexed"):
        build_index(open_corpus(tmp_path / "blank"), tmp_path / "i1")
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n')
    with pytest.raises(GLM5Error, match="two documents have the address 'a'"):
        build_index(open_corpus(tmp_path / "twice.jsonl"), tmp_path / "i2")
    (tmp_path / "odd.jsonl").write_text('{"id": "a", "words": "x"}\n')
    with pytest.raises(GLM5Error, match="row 1 has none of the fields"):
        build_index(open_corpus(tmp_path / "odd.jsonl"), tmp_path / "i3")
    one, two = write_corpus(tmp_path / "1.jsonl", ["one"]), write_corpus(tmp_path / "2.jsonl", ["two"])
    build_index(open_corpus(one), tmp_path / "i4")
    with pytest.raises(UsageError, match="index of other files"):
        build_index(open_corpus(two), tmp_path / "i4")
    with pytest.raises(UsageError, match="not an index"):
        build_index(open_corpus(one), tmp_path)


def test_snippet_shows_where_the_words_are() -> None:
    text = "filler " * 500 + "the tallest peak is Emi Koussi " + "filler " * 500
    found = snippet(text, {"tallest", "koussi"})
    assert "tallest peak is Emi Koussi" in found
    assert len(found) <= SNIPPET + 4
    began = time.perf_counter()
    snippet("word " * 200_000, {"word"})
    assert time.perf_counter() - began < 5
