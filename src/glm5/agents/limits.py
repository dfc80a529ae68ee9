"""Budgets: steps, tokens, money and time, nested so that a run cannot eat what a whole batch was given.

    batch ── Budget(limits of the batch)
               └── run ── Budget(limits of one run, parent=batch)

What is spent is counted in every budget above. A reply that could not be read was paid for and counts like any other.
"""

import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Self

from glm5.agents.outcomes import Status
from glm5.errors import UsageError


@dataclass(frozen=True, slots=True)
class Prices:
    """In any currency, for a million tokens. All zero: unpriced, so that money is no limit."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Of one reply; `prompt_tokens` includes the cached ones."""
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one run, or of a batch. 0 means none. The defaults for a run are in `prompts/limits.toml`."""

    steps: int = 0
    tokens: int = 0  # of prompts that were not cached, and of replies
    money: float = 0.0
    seconds: float = 0.0

    @classmethod
    def default(cls, **changes: Any) -> Self:
        """The packaged limits of a run, with changes."""
        return cls(**{**_packaged()["run"], **changes})

    def __post_init__(self) -> None:
        """Raises UsageError for a limit below zero."""
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise UsageError(f"the limit {field.name} is {getattr(self, field.name)}; 0 means none")


class Budget:
    """What may be spent, and what was."""

    def __init__(self, limits: Limits, prices: Prices | None = None, parent: "Budget | None" = None) -> None:
        """Raises UsageError for a limit of money where nothing has a price: it would limit nothing."""
        self.limits = limits
        self.prices = prices or Prices()
        self._parent = parent
        self._began = time.monotonic()
        self.steps = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.money = 0.0
        self.seconds_before = 0.0  # in earlier processes of the same run
        if limits.money and self.prices == Prices():
            raise UsageError("a limit of money needs prices; give them, or limit the tokens instead")

    @property
    def seconds(self) -> float:
        """Since it began, earlier processes of the same run included."""
        return self.seconds_before + time.monotonic() - self._began

    @property
    def cache_share(self) -> float:
        """Of all prompt tokens, those that the server had computed before."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def spend(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Count one reply, here and in every budget above."""
        self.steps += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.completion_tokens += completion_tokens
        self.tokens += prompt_tokens - cached_tokens + completion_tokens
        self.money += self.prices.cost(prompt_tokens, cached_tokens, completion_tokens)
        if self._parent is not None:
            self._parent.spend(prompt_tokens, cached_tokens, completion_tokens)

    def exceeded(self) -> tuple[Status, str] | None:
        """The first limit that is reached, here or above, and a sentence about it."""
        checks = (
            (Status.STEP_LIMIT, self.steps, self.limits.steps, "steps"),
            (Status.TOKEN_LIMIT, self.tokens, self.limits.tokens, "tokens"),
            (Status.MONEY_LIMIT, self.money, self.limits.money, "of the money"),
            (Status.TIME_LIMIT, self.seconds, self.limits.seconds, "seconds"),
        )
        for status, spent, limit, unit in checks:
            if limit and spent >= limit:
                return status, f"{spent:.6g} {unit} spent, {limit:.6g} allowed"
        if self._parent is not None and (above := self._parent.exceeded()) is not None:
            return above[0], f"the whole batch: {above[1]}"
        return None

    def seconds_left(self) -> float:
        """Until the time limit; infinite without one."""
        own = self.limits.seconds - self.seconds if self.limits.seconds else float("inf")
        return min(own, self._parent.seconds_left()) if self._parent is not None else own


@cache
def _packaged() -> Mapping[str, Any]:
    return tomllib.loads((files("glm5.agents") / "prompts" / "limits.toml").read_text("utf-8"))


def packaged(section: str) -> Mapping[str, Any]:
    """A section of `prompts/limits.toml`."""
    return _packaged()[section]
