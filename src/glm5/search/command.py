"""What `glm5 index` does: find the documents, index them with a bar, say what was left out."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from glm5.search.documents import open_corpus
from glm5.search.index import IndexRecord, build_index

_QUIET_SECONDS = 20.0  # between lines where nobody watches a bar


def index_documents(source: Path, folder: Path, console: Console) -> IndexRecord:
    """Index a folder, a JSON Lines file or a Parquet table; the same call goes on after an interruption.

    Raises:
        UsageError: nothing to index, or the folder holds something else.
        GLM5Error: no document can be indexed, or a package is missing.
    """
    corpus = open_corpus(source)
    size = corpus.size
    columns = (
        TextColumn("  {task.fields[documents]:,} documents"), BarColumn(bar_width=24), TaskProgressColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    told = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("index", total=size, documents=0)

        def on_progress(documents: int, read: int) -> None:
            nonlocal told
            bar.update(task, completed=read, documents=documents)
            if not console.is_terminal and time.monotonic() - told > _QUIET_SECONDS:
                told = time.monotonic()
                console.print(f"  {documents:,} documents, {read / max(size, 1):.0%}", highlight=False)

        record = build_index(corpus, folder, on_progress)
    console.print(f"{folder}: {record.documents:,} documents", highlight=False)
    for reason, number in (record.skipped or {}).items():
        console.print(f"  left out: {number:,} ({reason})", markup=False, highlight=False)
    return record
