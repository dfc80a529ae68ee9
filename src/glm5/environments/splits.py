"""Training and held-out tasks that cannot meet: which split a problem is in is decided by the problem itself.

    split(content) = held_out  if  sha256(content) mod 10 = 0,  else train

So it does not matter who draws how many, in which order, with which options: a held-out problem is never trained on.
The instances are unseen; their kinds are not.
"""

import hashlib
from collections.abc import Callable
from random import Random
from typing import TypeVar

from glm5.environments.base import Split
from glm5.errors import UsageError

Problem = TypeVar("Problem")

_HELD_OUT_SHARE = 10  # one in ten
_DRAWS = 1000


def split_of(content: str) -> Split:
    """The split that a problem belongs to, from the text that makes it what it is."""
    digest = hashlib.sha256(content.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % _HELD_OUT_SHARE == 0 else "train"


def draw(split: Split, index: int, make: Callable[[Random], Problem], content: Callable[[Problem], str]) -> Problem:
    """Problem `index` of a split: `make` is given new randomness until what it makes is in that split.

    Raises:
        UsageError: a thousand draws gave none, so there are too few different problems to split.
    """
    for attempt in range(_DRAWS):
        problem = make(Random(f"{split}/{index}/{attempt}"))
        if split_of(content(problem)) == split:
            return problem
    raise UsageError(
        f"no problem of the split {split!r} among {_DRAWS} draws: the settings allow too few different problems"
    )
