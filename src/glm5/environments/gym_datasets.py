"""Problems and scores of the package `reasoning-gym`. Runs in a `worker.Worker`, because some scorers take long.

A problem is named by its dataset, the dataset's settings and a seed; asking again gives the same one, so that nothing
but the seed has to travel between the making and the scoring.
"""

import difflib
from random import Random
from typing import Any

from reasoning_gym import create_dataset
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from glm5.environments.base import Split
from glm5.environments.splits import draw


def mistake(dataset: str, settings: dict[str, Any]) -> str | None:
    """What is wrong with a dataset's name or settings, in a sentence; None when it can be opened."""
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, DATASETS, n=3) or sorted(DATASETS)
        return f"reasoning-gym has no dataset {dataset!r}; did you mean one of: {', '.join(close)}?"
    try:
        _open(dataset, settings, seed=0)
    except (TypeError, AssertionError, ValueError) as error:
        return f"dataset {dataset!r} does not take the settings {settings}: {error}"
    return None


def make(dataset: str, settings: dict[str, Any], split: Split, index: int) -> dict[str, Any]:
    """Problem `index` of a split: its `seed`, `question` and, unless the dataset only scores, `answer`."""

    def entry(rng: Random) -> dict[str, Any]:
        seed = rng.randrange(2**31)
        found = _open(dataset, settings, seed)[0]
        return {"seed": seed, "question": found["question"], "answer": found["answer"]}

    return draw(split, index, entry, lambda made: made["question"])


def score(dataset: str, settings: dict[str, Any], seed: int, answer: str) -> float:
    """The dataset's own score of an answer, from 0 to 1."""
    opened = _open(dataset, settings, seed)
    return float(opened.score_answer(answer, opened[0]))


def _open(dataset: str, settings: dict[str, Any], seed: int) -> ProceduralDataset:
    return create_dataset(dataset, seed=seed, size=1, **settings)
