"""How far rollouts may run ahead of the trainer, which of them came too late, and a count of all that was dropped.

    capacity  =  (bound + version + 1) · batch_size  −  (accepted + running)            (AReaL, arXiv:2505.24298, eq. 3)

A rollout may begin while the capacity is positive. Then at most (bound + 1) · batch_size rollouts are ever begun and
not yet trained, so that

- trained in the order in which they *began*, no rollout is more than `bound` versions old when it is trained;
- trained in the order in which they *ended*, waiting to be trained costs no rollout more than `bound` versions. What
  exceeds the bound is the time it ran, and for that there is `is_stale` (GLM-5 report §4.1.1).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm5.errors import GLM5Error


def capacity(version: int, accepted: int, running: int, batch_size: int, bound: int) -> int:
    """How many rollouts may begin now; none if it is not positive.

    Args:
        version: updates made so far; the weights the trainer holds.
        accepted: rollouts accepted for training since version 0, those already trained included, those dropped again
            (as stale) not: counted for ever they would fill the capacity, and rollouts would stop.
        running: rollouts begun and neither accepted nor dropped.
        batch_size: rollouts trained in one update. All three may be counted in groups instead.
        bound: versions that a rollout may wait; 0 is fully synchronous.
    """
    return (bound + version + 1) * batch_size - (accepted + running)


def is_stale(versions: Iterable[int], current: int, tau: int) -> bool:
    """Whether the oldest token is more than `tau` versions older than the `current` weights.

    Args:
        versions: of each token; negative ones were not sampled and do not count.

    Raises:
        GLM5Error: no token was sampled, or one was by weights newer than the current ones, as after going on with
            engines from a later state than the trainer's.
    """
    sampled = [version for version in versions if version >= 0]
    if not sampled:
        raise GLM5Error("nothing was sampled here, so it has no age; drop it as empty")
    if max(sampled) > current:
        raise GLM5Error(
            f"a token was sampled by weights {max(sampled)}, but the trainer is at {current}: "
            "push the trainer's weights to the engines before rollouts go on"
        )
    return current - min(sampled) > tau


@dataclass(slots=True)
class Ledger:
    """What was dropped, and why: nothing leaves the loop without an entry here.

    Attributes:
        dropped: how many rollouts were, by reason, since the run began.
        recent: the same since `take` was last called.
    """

    dropped: dict[str, int] = field(default_factory=dict)
    recent: dict[str, int] = field(default_factory=dict)

    def count(self, reason: str, number: int = 1) -> None:
        """Enter dropped rollouts.

        Raises:
            GLM5Error: the reason is empty, or the number negative.
        """
        if not reason or number < 0:
            raise GLM5Error(f"{number} rollouts were dropped for the reason '{reason}'; name one, and a count")
        for counts in (self.dropped, self.recent):
            counts[reason] = counts.get(reason, 0) + number

    def take(self) -> dict[str, int]:
        """What was dropped since the last call, for the record of an update."""
        recent, self.recent = self.recent, {}
        return recent

    def state_dict(self) -> dict[str, Any]:
        """All counts, for JSON."""
        return {"dropped": dict(self.dropped), "recent": dict(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from where `state_dict` was taken."""
        self.dropped, self.recent = dict(state["dropped"]), dict(state["recent"])
