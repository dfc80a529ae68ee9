"""A group of rollouts of one prompt: failures out, the rest compared with each other, every absence counted.

A crashed environment says nothing about the model, so it is excluded, never a zero (GLM-5 report §4.1.1). If more
than half of the group is left, valid rollouts are repeated until it is full again; otherwise the whole group goes.
Repeating changes mean and spread, so advantages come from the unique valid rollouts and a repetition is a weight.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glm5.errors import GLM5Error
from glm5.rl.records import Trajectory

AdvantageKind = Literal["normalised", "centred", "distilled"]

TOO_FEW = "half of the group or more failed"
NO_SPREAD = "all rewards of the group are equal"
STD_FLOOR = 1e-6  # rewards this close are equal: dividing by less would blow rounding up to advantages


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What is left of a group; the first three lists belong together.

    Attributes:
        kept: to be trained on, in order of their rollout ids.
        advantages: one for each.
        weights: how often each counts; they sum to the group size, if anything is kept.
        dropped: how many are not kept, by reason.
    """

    kept: list[Trajectory]
    advantages: list[float]
    weights: list[float]
    dropped: dict[str, int]


def finish_group(
    trajectories: Sequence[Trajectory], group_size: int, advantage_kind: AdvantageKind, drop_equal: bool = True
) -> GroupResult:
    """Decide what of one group is trained on, and with which advantages.

    Args:
        trajectories: all that ended, failed ones included, in any order: the result does not depend on it.
        group_size: rollouts that were begun for the prompt.
        advantage_kind: see `advantages`.
        drop_equal: drop groups whose rewards are all equal, which would move nothing but dilute the batch.

    Raises:
        GLM5Error: there are more rollouts than the group is large, of more than one group, or one twice.
    """
    _check(trajectories, group_size)
    dropped = Counter(each.exclusion for each in trajectories if not each.is_valid)
    valid = sorted((each for each in trajectories if each.is_valid), key=lambda each: each.rollout_id)
    rewards = [each.reward for each in valid if each.reward is not None]
    reason = ""
    if 2 * len(valid) <= group_size:
        reason = TOO_FEW
    elif drop_equal and advantage_kind != "distilled" and statistics.pstdev(rewards) <= STD_FLOOR:
        reason = NO_SPREAD
    if reason:
        return GroupResult([], [], [], dict(dropped + Counter({reason: len(valid)})))
    repeats, more = divmod(group_size, len(valid))
    weights = [float(repeats + (place < more)) for place in range(len(valid))]
    return GroupResult(valid, advantages(rewards, advantage_kind), weights, dict(dropped))


def advantages(rewards: Sequence[float], kind: AdvantageKind) -> list[float]:
    """How much better each rollout did than its group.

    Args:
        kind: "normalised" (R − mean) / std with the population's std (GLM-5 report eq. 1); "centred" R − mean, for
            the agentic loss (§3.3); "distilled" zeros, for there the teacher gives the advantages (eq. 2).
    """
    if kind == "distilled":
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    scale = max(statistics.pstdev(rewards), STD_FLOOR) if kind == "normalised" else 1.0
    return [(reward - mean) / scale for reward in rewards]


def _check(trajectories: Sequence[Trajectory], group_size: int) -> None:
    """Mixed-up groups give wrong advantages without any other sign."""
    names = sorted({each.group_id for each in trajectories})
    if len(names) != 1:
        raise GLM5Error(f"one group was expected, but the rollouts belong to {len(names)}: {', '.join(names)}")
    if len(trajectories) > group_size:
        raise GLM5Error(f"group {names[0]} has {len(trajectories)} rollouts, more than its size {group_size}")
    twice = [name for name, count in Counter(each.rollout_id for each in trajectories).items() if count > 1]
    if twice:
        raise GLM5Error(f"group {names[0]} has rollout {twice[0]} more than once")
