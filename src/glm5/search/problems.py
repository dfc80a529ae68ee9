"""Benchmarks of search as one record: our own suite, BrowseComp, BrowseComp-Plus and HLE read from their files.

Questions and answers are decrypted in memory. A row that cannot be used (HLE's questions about images) is counted.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm5.errors import GLM5Error, UsageError
from glm5.search.cipher import decrypt
from glm5.search.documents import read_rows


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """A question with its answers.

    Attributes:
        answers: the first as the benchmark gives it, then other right ones.
        kind: what tables group by.
        documents: addresses of the pages that hold the evidence, where the benchmark tells.
        canary: what its key was made from; pages that hold it stay closed.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    documents: tuple[str, ...] = ()
    canary: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems in the file's order, and how many rows were left out."""

    name: str
    problems: tuple[SearchProblem, ...]
    left_out: int = 0


def load_benchmark(name: str, path: Path) -> Benchmark:
    """Read `browsecomp` (CSV), `browsecomp-plus`, `hle` or our own `suite` (JSON Lines, or Parquet).

    Raises:
        UsageError: an unknown name, or no such file.
        GLM5Error: the file is not that benchmark, or no row of it can be used.
    """
    if name not in _READERS:
        raise UsageError(f"there is no benchmark {name!r}; there are: {', '.join(_READERS)}")
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    problems, left_out = [], 0
    for number, row in enumerate(_rows(path), start=1):
        try:
            problem = _READERS[name](row, number)
        except (KeyError, TypeError, AttributeError) as error:
            raise GLM5Error(
                f"{path}: row {number} is not one of {name} ({error!r}); it has {', '.join(row)}"
            ) from error
        if problem is None:
            left_out += 1
        else:
            problems.append(problem)
    if not problems:
        raise GLM5Error(f"{path} holds no problem of {name} that can be used ({left_out} rows left out)")
    return Benchmark(name, tuple(problems), left_out)


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".csv":
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    else:
        yield from read_rows(path)


def _browsecomp(row: Mapping[str, Any], number: int) -> SearchProblem:
    canary = row["canary"]
    question, answer = decrypt(row["problem"], canary), decrypt(row["answer"], canary)
    return SearchProblem(f"browsecomp/{number}", question, (answer,), row.get("problem_topic") or "", (), canary)


def _browsecomp_plus(row: Mapping[str, Any], number: int) -> SearchProblem:
    """As its own script decrypts it: no canary is left, and documents are objects with a `docid`."""
    evidence = row.get("evidence_docs") or row.get("gold_docs") or ()
    documents = tuple(str(document["docid"]) for document in evidence)
    return SearchProblem(f"browsecomp-plus/{row['query_id']}", row["query"], (row["answer"],), "", documents)


def _hle(row: Mapping[str, Any], number: int) -> SearchProblem | None:
    if row.get("image"):
        return None
    kind = row.get("category") or row["answer_type"]
    return SearchProblem(f"hle/{row['id']}", row["question"], (row["answer"],), kind, (), row.get("canary") or "")


def _suite(row: Mapping[str, Any], number: int) -> SearchProblem:
    hidden = json.loads(decrypt(row["problem"], row["canary"]))
    return SearchProblem(
        row["id"], hidden["question"], tuple(hidden["answers"]), f"{row['hops']} hops", tuple(hidden["documents"]),
        row["canary"],
    )  # fmt: skip


_READERS: dict[str, Callable[[Mapping[str, Any], int], SearchProblem | None]] = {
    "suite": _suite,
    "browsecomp": _browsecomp,
    "browsecomp-plus": _browsecomp_plus,
    "hle": _hle,
}
