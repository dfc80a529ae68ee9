"""Light rules that keep broken text out, each with a name so that a corpus can say what it dropped and why.

The thresholds are loose versions of those of Gopher (Rae et al. 2021, App. A.1.1: repetition) and StarCoder (Li et al.
2023, §3: long lines): the sources are curated, so the rules look for damage, not for style.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum

from glm5.data.documents import Document, fingerprint
from glm5.data.sources.base import Kind

MAX_DAMAGED = 0.001  # share of characters that are controls or U+FFFD
MAX_REPEATED = 0.5  # share of characters in lines that stood earlier in the document
MIN_LINE = 20  # shorter lines (`return None`, `}`) repeat in healthy code
MAX_LINE: dict[Kind, int] = {"general": 50_000, "code": 5_000, "reasoning": 50_000}  # characters; longer is data

_CONTROLS = {code: None for code in range(32) if chr(code) not in "\t\n\f"} | {0x7F: None, 0xFFFD: None}


class DropReason(StrEnum):
    """Why a document did not enter the corpus."""

    EMPTY = "empty"
    BINARY = "binary"
    LONG_LINES = "long lines"
    REPEATED_LINES = "repeated lines"
    DUPLICATE = "duplicate"


def normalise(text: str) -> str:
    """`text` with `\\n` line ends and no byte-order mark; nothing else changes, so code stays what it was."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def drop_reason(text: str, kind: Kind) -> DropReason | None:
    """The first rule a normalised text breaks, or None."""
    if not text.strip():
        return DropReason.EMPTY
    damaged = len(text) - len(text.translate(_CONTROLS))
    if "\0" in text or damaged > MAX_DAMAGED * len(text):
        return DropReason.BINARY
    lines = text.split("\n")
    if max(map(len, lines)) > MAX_LINE[kind]:
        return DropReason.LONG_LINES
    if _repeated_share(lines) > MAX_REPEATED:
        return DropReason.REPEATED_LINES
    return None


def clean(
    documents: Iterable[Document], kind: Kind, seen: set[bytes], dropped: Counter[DropReason]
) -> Iterator[Document]:
    """Yield the documents that pass, normalised; add their fingerprints to `seen` and count the others in `dropped`."""
    for document in documents:
        text = normalise(document.text)
        reason = drop_reason(text, kind)
        if reason is None:
            key = fingerprint(text)
            if key not in seen:
                seen.add(key)
                yield replace(document, text=text)
                continue
            reason = DropReason.DUPLICATE
        dropped[reason] += 1


def _repeated_share(lines: list[str]) -> float:
    """Characters in long lines that stood before, over all characters in long lines."""
    long_lines = [line for line in map(str.strip, lines) if len(line) >= MIN_LINE]
    total = sum(map(len, long_lines))
    return 1 - sum(map(len, set(long_lines))) / total if total else 0.0
