"""Build a corpus: sources → rules → split by content → tokens in shards, with the provenance of every document.

    source ─ clean (rules, duplicates) ─ sample by hash ─┬─ held out → held_out.jsonl, never tokenised
                                                         └─ training → encode_batch → shards + documents.jsonl

Everything is written into a folder beside the target and renamed at the end, so a corpus that is there is whole.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from glm5.data.documents import Document, is_held_out
from glm5.data.manifest import HELD_OUT, CorpusManifest, SourceManifest, save_manifest
from glm5.data.quality import DropReason, clean
from glm5.data.sampling import byte_length, nothing_left, sample_documents
from glm5.data.shards import ShardWriter
from glm5.data.sources.base import Source
from glm5.data.sources.registry import open_sources
from glm5.errors import GLM5Error, UsageError
from glm5.text.tokenizer import Tokenizer

Progress = Callable[[str, int], None]  # (source name, bytes of it done so far)

BATCH_BYTES = 1_000_000  # of text that go to the tokenizer at a time


def build_corpus(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    held_out_fraction: float,
    max_bytes: Mapping[str, int] | int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CorpusManifest:
    """Read `sources` into a new corpus at `folder`.

    Args:
        held_out_fraction: share of documents kept away from training, decided by `is_held_out`.
        max_bytes: of each source, or by source name; training and held-out documents count together.
        progress: called after each batch.

    Raises:
        UsageError: `folder` exists, a source is unknown, the fraction is not in [0, 1), or `max_bytes` names a source
            that is not read or leaves nothing of one that is.
        GLM5Error: a source has no training document left, or nothing at all was held out where something should be.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already: remove it or build the corpus elsewhere")
    if not 0 <= held_out_fraction < 1:
        raise UsageError(f"held_out_fraction must be at least 0 and below 1, not {held_out_fraction}")
    opened = open_sources(sources)
    limits = _limits(opened, max_bytes)

    manifest = CorpusManifest(
        tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id, held_out_fraction, seed, []
    )
    seen: set[bytes] = set()
    with _whole_or_absent(folder) as staging, (staging / HELD_OUT).open("w", encoding="utf-8") as held_out:
        for number, source in enumerate(opened):
            dropped: Counter[DropReason] = Counter()
            limit = limits[source.name]
            documents: Iterable[Document] = clean(source.documents(), source.kind, seen, dropped)
            if limit is not None:
                documents = sample_documents(documents, limit, seed)
            entry = SourceManifest(source.name, source.kind, _folder_name(number, source.name))
            training = _set_aside(documents, manifest, entry, held_out)
            _write_training(training, entry, tokenizer, staging / entry.folder, progress)
            if not entry.documents:
                raise GLM5Error(nothing_left(source.name, limit, dropped))
            entry.dropped = {reason.value: count for reason, count in dropped.items()}
            manifest.sources.append(entry)
        if held_out_fraction and not any(entry.held_out_documents for entry in manifest.sources):
            raise GLM5Error(f"held_out_fraction {held_out_fraction} holds out no document of this corpus: raise it")
        save_manifest(manifest, staging)
    return manifest


def _set_aside(
    documents: Iterable[Document], manifest: CorpusManifest, entry: SourceManifest, held_out: TextIO
) -> Iterator[Document]:
    """Yield the training documents; write the others to the held-out file."""
    for document in documents:
        if is_held_out(document.text, manifest.held_out_fraction, manifest.seed):
            held_out.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
            entry.held_out_documents += 1
            entry.held_out_bytes += byte_length(document.text)
        else:
            yield document


def _write_training(
    documents: Iterable[Document], entry: SourceManifest, tokenizer: Tokenizer, folder: Path, progress: Progress | None
) -> None:
    """Tokenise into shards, one line of provenance a document, and count into `entry`."""
    with (
        ShardWriter(folder, tokenizer.vocab_size) as shards,
        (folder / "documents.jsonl").open("w", encoding="utf-8") as provenance,
    ):
        for batch in _batches(documents):
            for document, ids in zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True):
                shards.append([*ids, tokenizer.eos_id])
                size = byte_length(document.text)
                line = {"path": document.path, "license": document.license, "bytes": size, "tokens": len(ids) + 1}
                provenance.write(json.dumps(line, ensure_ascii=False) + "\n")
                entry.bytes += size
                entry.licenses[document.license] = entry.licenses.get(document.license, 0) + 1
            if progress is not None:
                progress(entry.name, entry.bytes)
    entry.documents, entry.tokens = shards.documents, shards.tokens


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of at least BATCH_BYTES of text (the last may be shorter)."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += byte_length(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _limits(opened: Sequence[Source], max_bytes: Mapping[str, int] | int | None) -> dict[str, int | None]:
    """The limit of every source, by name."""
    names = [source.name for source in opened]
    if not isinstance(max_bytes, Mapping):
        return dict.fromkeys(names, max_bytes)
    unknown = set(max_bytes) - set(names)
    if unknown:
        raise UsageError(
            f"max_bytes names sources that are not read: {', '.join(sorted(unknown))}; read are {', '.join(names)}"
        )
    return {name: max_bytes.get(name) for name in names}


def _folder_name(number: int, source: str) -> str:
    """`03-debian-wordnet-base`: unique by the number, readable by the rest."""
    return f"{number:02}-" + re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-")


@contextmanager
def _whole_or_absent(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` only if the block ends well."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    staging.rename(folder)
