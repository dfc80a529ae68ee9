"""What a corpus on disk says about itself: `manifest.json`, its sources, their licences, and the documents held out."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glm5.data.documents import Document
from glm5.data.sources.base import Kind
from glm5.errors import GLM5Error, UsageError

MANIFEST = "manifest.json"
HELD_OUT = "held_out.jsonl"
FORMAT = 1


@dataclass(slots=True)
class SourceManifest:
    """One source of a corpus. Bytes are UTF-8; tokens count the `<|endoftext|>` after each document."""

    name: str
    kind: Kind
    folder: str  # with the shards and documents.jsonl, inside the corpus
    documents: int = 0  # to train on
    bytes: int = 0
    tokens: int = 0
    held_out_documents: int = 0
    held_out_bytes: int = 0
    licenses: dict[str, int] = field(default_factory=dict)  # training documents under each
    dropped: dict[str, int] = field(default_factory=dict)  # documents by reason


@dataclass(slots=True)
class CorpusManifest:
    """A whole corpus."""

    tokenizer: str  # fingerprint of the tokenizer it was built with
    vocab_size: int
    eos_id: int
    held_out_fraction: float
    seed: int
    sources: list[SourceManifest]
    format: int = FORMAT

    @property
    def tokens(self) -> int:
        """Training tokens of all sources."""
        return sum(source.tokens for source in self.sources)

    @property
    def bytes_per_token(self) -> float:
        """How much text a token stands for, over the training side."""
        return sum(source.bytes for source in self.sources) / self.tokens


def save_manifest(manifest: CorpusManifest, folder: Path) -> None:
    """Write `manifest.json`."""
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> CorpusManifest:
    """Read `manifest.json`.

    Raises:
        UsageError: `folder` holds no corpus.
        GLM5Error: the file is damaged or from another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UsageError(f"{folder} holds no corpus: there is no {MANIFEST} in it")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise GLM5Error(
                f"{path} has format {values['format']}, this version reads {FORMAT}: build the corpus again"
            )
        return CorpusManifest(**{**values, "sources": [SourceManifest(**source) for source in values["sources"]]})
    except (ValueError, KeyError, TypeError) as error:
        raise GLM5Error(f"{path} is damaged ({error}): build the corpus again") from error


def held_out_documents(folder: Path) -> list[Document]:
    """The documents that no training shard contains.

    Raises:
        UsageError: `folder` holds no corpus.
        GLM5Error: the corpus was built without any.
    """
    load_manifest(folder)
    with (folder / HELD_OUT).open(encoding="utf-8") as lines:
        documents = [Document(**json.loads(line)) for line in lines]
    if not documents:
        raise GLM5Error(f"the corpus in {folder} has no held-out documents: build it with a held_out_fraction above 0")
    return documents
