"""What a simulation is of: a `Loop`, which a recipe decides, and its `Costs`, which the world decides."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from glm5.errors import GLM5Error, UsageError

_QUANTILES = 1001


@dataclass(frozen=True, slots=True)
class Loop:
    """What a recipe decides."""

    engines: int
    slots: int  # sequences an engine decodes at once; more wait in line
    prompts_per_step: int
    samples_per_prompt: int
    staleness_bound: int  # how many versions rollouts may run ahead; 0 is the synchronous loop
    max_version_lag: int | None = None  # the trainer drops samples older than this; None keeps all
    push_every: int = 1  # updates between two pushes of the weights to the engines

    def __post_init__(self) -> None:
        """Raises UsageError: a count is not positive, or the limits leave nothing to train on."""
        for name in ("engines", "slots", "prompts_per_step", "samples_per_prompt", "push_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; a loop needs at least 1")
        if self.staleness_bound < 0:
            raise UsageError(f"staleness_bound is {self.staleness_bound}; the least is 0, the synchronous loop")
        if self.max_version_lag is not None and self.max_version_lag < self.push_every - 1:
            raise UsageError(
                f"max_version_lag {self.max_version_lag} drops every rollout begun {self.push_every - 1} updates after "
                f"a push; with push_every {self.push_every} it must be at least {self.push_every - 1}"
            )


@dataclass(frozen=True, slots=True)
class Distribution:
    """A quantity that varies: its quantiles, evenly apart from the least to the greatest."""

    quantiles: tuple[float, ...]

    @classmethod
    def constant(cls, value: float) -> "Distribution":
        """Always the same."""
        return cls((value,))

    @classmethod
    def lognormal(cls, median: float, sigma: float, most: float) -> "Distribution":
        """The usual long tail: the logarithm is normal with deviation `sigma`; nothing is more than `most`."""
        normal = statistics.NormalDist(0, sigma)
        places = [(i + 0.5) / _QUANTILES for i in range(_QUANTILES)]
        return cls(tuple(min(most, median * math.exp(normal.inv_cdf(p))) for p in places))

    @classmethod
    def measured(cls, values: Sequence[float]) -> "Distribution":
        """As these values are distributed.

        Raises:
            GLM5Error: there are none.
        """
        if not values:
            raise GLM5Error("a distribution cannot be measured on no values at all")
        ordered = sorted(values)
        n = min(len(ordered), _QUANTILES)
        return cls(tuple(ordered[round(i * (len(ordered) - 1) / max(1, n - 1))] for i in range(n)))

    def draw(self, luck: random.Random) -> float:
        """One value; between two quantiles, any value is as likely."""
        place = luck.random() * (len(self.quantiles) - 1)
        below = int(place)
        low = self.quantiles[below]
        return low if place == below else low + (self.quantiles[below + 1] - low) * (place - below)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a machine, a model and its tasks decide: measured by `fit`, or assumed. Times are seconds."""

    tokens: Distribution  # sampled in one turn
    token_seconds: float  # a step of an engine takes this …
    token_seconds_per_sequence: float  # … and this for every sequence that decodes in it
    update_seconds: float = 0.0  # an update takes this …
    update_seconds_per_token: float = 0.0  # … and this for every token of its batch
    push_seconds: float = 0.0
    turns: Distribution = field(default_factory=lambda: Distribution.constant(1))
    tool_seconds: Distribution = field(default_factory=lambda: Distribution.constant(0))  # between two turns
    grading_seconds: Distribution = field(default_factory=lambda: Distribution.constant(0))  # after the last turn
    failed_share: float = 0.0  # of the rollouts: environment or endpoint broke
    filtered_share: float = 0.0  # of the groups: no difference to learn from

    def __post_init__(self) -> None:
        """Raises UsageError: a share is not in [0, 1), a time is negative, or decoding takes none."""
        for name in ("failed_share", "filtered_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        decoding = (self.token_seconds, self.token_seconds_per_sequence)
        others = (self.update_seconds, self.update_seconds_per_token, self.push_seconds)
        if min(*decoding, *others) < 0 or sum(decoding) == 0:
            raise UsageError("a token must take more than 0 seconds to decode, and nothing may take less than 0")
