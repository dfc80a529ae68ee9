"""A tokenizer of bytes alone, and corpora built with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glm5.data.corpus import build_corpus
from glm5.data.manifest import CorpusManifest
from glm5.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 279)


@pytest.fixture
def build(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., CorpusManifest]:
    """`build(sources, held_out_fraction=…)` into `tmp_path / name`."""

    def build(
        sources: list[str], name: str = "corpus", held_out_fraction: float = 0.0, **options: Any
    ) -> CorpusManifest:
        return build_corpus(sources, tokenizer, tmp_path / name, held_out_fraction=held_out_fraction, **options)

    return build
