"""Conversations that show a task's form, written for supervised fine-tuning: the cold start before reinforcement."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from glm5.environments.base import Environment, Split
from glm5.errors import UsageError


@runtime_checkable
class Demonstrates(Protocol):
    """An environment that can show its tasks being done, well and badly."""

    def demonstrations(self, split: Split, count: int, seed: int, quality: float) -> Iterator[dict[str, Any]]:
        """`count` conversations of which a share of about `quality` succeeds; each an object that JSON can write."""


def write_demonstrations(environment: Environment, path: Path, count: int, seed: int, quality: float) -> int:
    """Write `count` demonstrations of training tasks as JSON lines, which `data.conversations` reads.

    The file appears whole or not at all.

    Returns:
        The number of conversations.

    Raises:
        UsageError: the environment has no demonstrations, or `count` is not positive.
    """
    if not isinstance(environment, Demonstrates):
        raise UsageError(f"environment {environment.name!r} has no demonstrations to write")
    if count < 1:
        raise UsageError(f"the number of demonstrations must be at least 1, not {count}")
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for conversation in environment.demonstrations("train", count, seed, quality):
            file.write(json.dumps(conversation, ensure_ascii=False) + "\n")
            written += 1
    partial.replace(path)
    return written
