"""How the learning rate and the batch change over a training (GLM-5 report App. A; GLM-4.5 §2.4)."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol


class Schedule(Protocol):
    """A factor on the peak learning rate."""

    def factor(self, step: int, tokens: int) -> float:
        """Of the step numbered `step` (from 0) that begins after `tokens` tokens."""


ScheduleKind = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(slots=True, frozen=True)
class LearningRate:
    """Factor on the peak learning rate: a linear warm-up over steps, then a decay over tokens.

    Attributes:
        kind: "cosine" and "linear" fall over the whole training, "constant" not at all, "wsd" stays and falls linearly
            over the last `wsd_decay_fraction`.
        final: what the decay ends at.
        total_tokens: where it ends.
    """

    kind: ScheduleKind
    final: float
    warmup_steps: int
    total_tokens: int
    wsd_decay_fraction: float = 0.2

    def factor(self, step: int, tokens: int) -> float:
        """The factor of the step numbered `step` (from 0) that begins after `tokens` tokens."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(tokens / self.total_tokens, 1.0)
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "wsd":
            progress = max(0.0, (progress - 1 + self.wsd_decay_fraction) / self.wsd_decay_fraction)
        return 1 - (1 - self.final) * progress


@dataclass(slots=True, frozen=True)
class BatchSize:
    """Rows in each step: grows linearly from `start` to `full` over the first `warmup_tokens`, in multiples of
    `unit`."""

    start: int
    full: int
    warmup_tokens: int
    unit: int

    def rows(self, tokens: int) -> int:
        """Rows of the step that begins after `tokens` tokens."""
        if tokens >= self.warmup_tokens:
            return self.full
        grown = self.start + (self.full - self.start) * tokens / self.warmup_tokens
        return max(self.start, int(grown) // self.unit * self.unit)
