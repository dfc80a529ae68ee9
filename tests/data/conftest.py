"""A tokenizer of bytes alone, and corpora of small files made on the spot."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from glm5.data.corpus import build_corpus
from glm5.data.manifest import CorpusManifest
from glm5.text.tokenizer import Tokenizer

WORDS = ["the", "router", "sends", "each", "token", "to", "a", "few", "experts", "and", "the", "rest", "of", "them", "stay", "idle", "for", "now"]


def make_files(folder: Path, count: int, words: int, seed: int, suffix: str = ".txt") -> Path:
    """`count` different files of about `words` words."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for number in range(count):
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 2 * words)))
        (folder / f"{number:03}{suffix}").write_text(f"{seed}.{number} {text}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 279)


@pytest.fixture
def build(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., CorpusManifest]:
    """`build(sources, held_out_fraction=…)` into `tmp_path / "corpus"`."""

    def _build(sources: list[str], name: str = "corpus", held_out_fraction: float = 0.0, **options) -> CorpusManifest:
        return build_corpus(sources, tokenizer, tmp_path / name, held_out_fraction=held_out_fraction, **options)

    return _build
