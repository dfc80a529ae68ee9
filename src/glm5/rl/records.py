"""The three records of reinforcement learning: a turn, a trajectory of turns, and a row for the trainer.

Token ids are never made from text a second time (GLM-5 report §4.1.2, "token in, token out"): a `Turn` holds exactly
what the engine was given and what it sampled, with each token's log-probability and weight version, and everything
later is cut from turns. Lists that should be equally long are compared when a record is made, because a mask that is
off by one trains silently on the wrong tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from glm5.errors import GLM5Error


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation, exactly as the engine made it.

    Attributes:
        prompt_ids: the whole context that was given.
        ids: sampled after it, the stop token included.
        logprobs: of each sampled token under the engine's weights (temperature 1, nothing truncated), in nats.
        versions: of the weights that sampled each token; they may change within a turn.
        finish_reason: as the engine tells it.
        engine: which one.

    Raises:
        GLM5Error: `ids`, `logprobs` and `versions` differ in length, or a log-probability is not finite.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str
    engine: str = ""

    def __post_init__(self) -> None:
        _check_lengths("a turn", len(self.ids), {"logprobs": self.logprobs, "versions": self.versions})
        _check_finite("a turn", self.logprobs)

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; it shares the lists."""
        return _values(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The record `to_json` was called on."""
        return cls(**values)


@dataclass(slots=True)
class Trajectory:
    """Everything one rollout sampled, in order of arrival, and what it earned.

    Attributes:
        rollout_id: unique in a run. task_id, environment, kind: of the task. group_id: shared by the samples of one
            prompt.
        turns: sub-agents and restarted contexts are among them; `rl.linearise` sorts them out.
        reward: None until graded. reward_parts, evidence: what it is made of, for tables and people.
        failure: why the rollout must not be trained on, "kind" or "kind: details"; "" if nothing broke. A failed
            environment is not a zero.
        started, ended: seconds since the epoch.
    """

    rollout_id: str
    task_id: str
    environment: str
    group_id: str
    kind: str = ""
    turns: list[Turn] = field(default_factory=list)
    reward: float | None = None
    reward_parts: dict[str, float] = field(default_factory=dict)
    evidence: str = ""
    failure: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def sampled_tokens(self) -> int:
        """Tokens the engines sampled for it."""
        return sum(len(turn.ids) for turn in self.turns)

    @property
    def oldest_version(self) -> int | None:
        """The oldest weights that sampled one of its tokens; None before the first token."""
        return min((version for turn in self.turns for version in turn.versions), default=None)

    @property
    def exclusion(self) -> str:
        """The kind of its failure, or what it lacks; "" if it can be trained on."""
        if self.failure:
            return self.failure.partition(":")[0]
        if not self.sampled_tokens:
            return "no tokens"
        if self.reward is None:
            return "no reward"
        return "" if math.isfinite(self.reward) else "reward is not finite"

    @property
    def is_valid(self) -> bool:
        """Whether it may enter the statistics of its group."""
        return not self.exclusion

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; it shares the lists."""
        return _values(self) | {"turns": [turn.to_json() for turn in self.turns]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The record `to_json` was called on."""
        return cls(**{**values, "turns": [Turn.from_json(turn) for turn in values["turns"]]})


@dataclass(slots=True)
class TrainingSample:
    """One row for the trainer, which needs to know no more of where it comes from.

    Attributes:
        ids: the whole context, prompts and outputs.
        loss_mask: for each id, whether it was sampled here and is to be trained.
        rollout_logprobs: for each id, under the weights that sampled it; 0 where it was not sampled.
        versions: for each id, of those weights; -1 where it was not sampled.
        advantage: of every trained token.
        loss_kind: a name in `rl.losses.LOSSES`.
        environment, rollout_id, reward: where it comes from. Samples of one trajectory share the rollout id.
        teacher_logprobs: for each id, under the teacher; where there is one.
        weight: how often the sample counts; padding a group repeats some.

    Raises:
        GLM5Error: lists differ in length, nothing is trained, or a trained token was not sampled.
    """

    ids: list[int]
    loss_mask: list[bool]
    rollout_logprobs: list[float]
    versions: list[int]
    advantage: float
    loss_kind: str
    environment: str
    rollout_id: str
    reward: float
    teacher_logprobs: list[float] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        who = f"a sample of rollout {self.rollout_id}"
        lists: dict[str, Sequence[object]] = {
            name: getattr(self, name) for name in ("loss_mask", "rollout_logprobs", "versions")
        }
        if self.teacher_logprobs is not None:
            lists["teacher_logprobs"] = self.teacher_logprobs
        _check_lengths(who, len(self.ids), lists)
        _check_finite(who, self.rollout_logprobs)
        if not any(self.loss_mask):
            raise GLM5Error(f"{who} trains no token: its loss_mask is all False")
        if any(trained and version < 0 for trained, version in zip(self.loss_mask, self.versions, strict=True)):
            raise GLM5Error(f"{who} trains a token that no weights sampled (its version is negative)")

    @property
    def trained_tokens(self) -> int:
        """Tokens that enter the loss."""
        return sum(self.loss_mask)

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; it shares the lists."""
        return _values(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The record `to_json` was called on."""
        return cls(**values)


def _values(record: Turn | Trajectory | TrainingSample) -> dict[str, Any]:
    """Field by field; `dataclasses.asdict` would copy every token."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _check_lengths(who: str, length: int, lists: Mapping[str, Sequence[object]]) -> None:
    for name, values in lists.items():
        if len(values) != length:
            raise GLM5Error(f"{who} has {length} ids but {len(values)} {name}; every id needs one")


def _check_finite(who: str, logprobs: Sequence[float]) -> None:
    if not all(map(math.isfinite, logprobs)):
        place, value = next((i, x) for i, x in enumerate(logprobs) if not math.isfinite(x))
        raise GLM5Error(f"{who} has the log-probability {value} at place {place}; the engine that made it is broken")
