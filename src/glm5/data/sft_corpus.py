"""The data folder of supervised fine-tuning: every file's records as token ids and loss masks, written once.

    data/manifest.json               what was read, kept, held out and dropped, file by file
    data/SOURCE/train/ids/           token shards, one document a training sequence (data/shards.py)
    data/SOURCE/train/masks/         the same documents with 1 where the token is learned, else 0
    data/SOURCE/held_out/...         the same for what is never trained on

Records are held out by the rank of their content's hash, so that the choice depends on nothing but the file and the
seed, copies of a conversation stay on one side, and even a small file has something to score.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glm5.data.conversations import Line, Rollout, read_lines, read_record
from glm5.data.documents import hash_uniform
from glm5.data.shards import ShardWriter
from glm5.data.turns import TrainingSequence, sequences
from glm5.errors import GLM5Error, UsageError
from glm5.recipe import SftSection, SftSource
from glm5.text.tokenizer import Tokenizer

MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")
MASK_VALUES = 2  # the vocabulary of mask shards
_Document = tuple[TrainingSequence, str]  # and the split it belongs to


@dataclass(slots=True)
class SourceCounts:
    """What became of one file. Tokens and learned tokens are of the training side."""

    name: str
    records: int = 0
    held_out_records: int = 0
    sequences: int = 0
    held_out_sequences: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    truncated: int = 0  # sequences cut to context_length
    dropped: dict[str, int] = field(default_factory=dict)  # records and sequences by reason


@dataclass(slots=True)
class SftManifest:
    """The folder's contents; `tokenizer` is the fingerprint it was written with."""

    tokenizer: str
    vocab_size: int
    context_length: int
    sources: list[SourceCounts]


def build_sft_data(
    settings: SftSection, tokenizer: Tokenizer, folder: Path, seed: int, progress: Callable[[str, int], None]
) -> SftManifest:
    """Write the folder; it has a manifest only when it is whole.

    Args:
        progress: told a source's name and its records so far.

    Raises:
        UsageError: a file or record is malformed, or a setting does not apply to what the files hold.
        GLM5Error: nothing is left of a file to train on.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sources = [_build_source(source, settings, tokenizer, folder, seed, progress) for source in settings.data]
    manifest = SftManifest(tokenizer.fingerprint, tokenizer.vocab_size, settings.context_length, sources)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


def read_sft_manifest(folder: Path) -> SftManifest:
    """Read `manifest.json`.

    Raises:
        GLM5Error: it is not there, or damaged.
    """
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return SftManifest(**{**values, "sources": [SourceCounts(**source) for source in values["sources"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GLM5Error(f"{folder} holds no data to fine-tune on ({error}); delete it to write it again") from error


def shard_folders(folder: Path, source: str, split: str) -> tuple[Path, Path]:
    """Where a source's ids and masks are."""
    return folder / source / split / "ids", folder / source / split / "masks"


def _build_source(
    source: SftSource,
    settings: SftSection,
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    progress: Callable[[str, int], None],
) -> SourceCounts:
    counts = SourceCounts(source.title)
    threshold = _held_out_threshold(source.path, settings.held_out_fraction, seed)
    with ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            ids, masks = shard_folders(folder, source.title, split)
            writers[split] = (
                stack.enter_context(ShardWriter(ids, tokenizer.vocab_size)),
                stack.enter_context(ShardWriter(masks, MASK_VALUES)),
            )
        for sequence, split in _documents(source, settings, tokenizer, threshold, seed, counts, progress):
            ids_writer, masks_writer = writers[split]
            ids_writer.append(sequence.ids)
            masks_writer.append(sequence.loss_mask)
            if split == "train":
                counts.sequences += 1
                counts.tokens += len(sequence.ids)
                counts.learned_tokens += sum(sequence.loss_mask)
            else:
                counts.held_out_sequences += 1
    _check_left(source, settings, counts)
    return counts


def _check_left(source: SftSource, settings: SftSection, counts: SourceCounts) -> None:
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.items()) or "none dropped"
    read = f"{source.path}: {counts.records} records, {counts.held_out_records} held out, {dropped}"
    if not counts.sequences:
        raise GLM5Error(
            f"{read}: nothing is left to train on. Raise context_length, set too_long to truncate, lower min_reward,"
            " or set held_out_fraction to 0 where records are few"
        )
    if settings.held_out_fraction and not counts.held_out_sequences:
        raise GLM5Error(f"{read}: nothing is left to score. Set held_out_fraction higher, or to 0 for no scoring")


def _documents(
    source: SftSource,
    settings: SftSection,
    tokenizer: Tokenizer,
    threshold: float,
    seed: int,
    counts: SourceCounts,
    progress: Callable[[str, int], None],
) -> Iterator[_Document]:
    """The sequences of a file's records, each short enough and with something to learn; the others are counted."""
    rollouts = 0
    longest = settings.context_length + 1  # the last id is only a target

    def drop(reason: str) -> None:
        counts.dropped[reason] = counts.dropped.get(reason, 0) + 1

    for line in read_lines(source.path):
        counts.records += 1
        progress(source.title, counts.records)
        record = read_record(line, source.thinking)
        if isinstance(record, Rollout):
            rollouts += 1
            if source.min_reward is None:
                raise UsageError(f"{line.where} is a recorded rollout: say which are good enough with min_reward")
            if record.reward is None or record.reward < source.min_reward:
                drop("failed" if record.reward is None else "below min_reward")
                continue
        split = "held_out" if _rank(line, seed) <= threshold else "train"
        counts.held_out_records += split == "held_out"
        try:
            found = sequences(record, tokenizer)
        except UsageError as error:
            raise UsageError(f"{line.where}: {error}") from None
        if not found:
            drop("without a turn that ended by itself")
        for sequence in found:
            if len(sequence.ids) > longest and settings.too_long == "truncate":
                sequence = TrainingSequence(sequence.ids[:longest], sequence.loss_mask[:longest])
                if any(sequence.loss_mask):
                    counts.truncated += 1
                else:
                    drop("with nothing to learn within context_length")
                    continue
            if len(sequence.ids) > longest:
                drop("too long")
            else:
                yield sequence, split
    if source.min_reward is not None and not rollouts:
        raise UsageError(f"{source.path} holds conversations only, which min_reward = {source.min_reward} cannot sort")


def _held_out_threshold(path: Path, fraction: float, seed: int) -> float:
    """Records whose rank is at most this are held out; at least one of them where any is asked for."""
    if not fraction:
        return -1.0
    ranks = sorted(_rank(line, seed) for line in read_lines(path))
    return ranks[max(1, round(fraction * len(ranks))) - 1]


def _rank(line: Line, seed: int) -> float:
    """Where a record stands in the order in which records are held out; all rollouts of a task stand together."""
    content = line.values.get("task_id") or line.values.get("messages") or line.values
    return hash_uniform("held-out", seed, json.dumps(content, sort_keys=True, default=str).encode())


def describe(manifest: SftManifest, rows: Mapping[str, int]) -> Iterator[str]:
    """A line for each source: what was read and what became of it."""
    for source in manifest.sources:
        dropped = "".join(f", {n} {reason}" for reason, n in source.dropped.items())
        cut = f", {source.truncated} truncated" if source.truncated else ""
        yield (
            f"{source.name}: {source.records} records ({source.held_out_records} held out{dropped}{cut}) →"
            f" {source.sequences} sequences, {source.learned_tokens:,} of {source.tokens:,} tokens learned,"
            f" {rows[source.name]} rows"
        )
