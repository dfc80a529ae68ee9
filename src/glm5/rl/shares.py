"""Which task begins its next rollouts, so that each keeps its share of what is *accepted* for training.

Tasks differ in speed and in how much of them is filtered out, so equal starts give unequal batches (GLM-5 report
§4.1.1: the orchestrator adjusts its sampling ratios; the law is not published, this one is ours). A task's debt is
what it lacks of its target share of everything accepted. What runs is kept in the ratio

    slots ∝ target · boost ** (debt / running),     the exponent held between 0 and 1

a control proportional to the debt, measured in what runs at once so that it fits any machine. A steady debt keeps a
slow task at more slots, so shares have no lasting error as long as no task needs more than `boost` times its part,
and a task that never delivers cannot starve the others.
"""

import math
from collections.abc import Mapping
from typing import Any

from glm5.errors import UsageError


class ShareController:
    """Counts acceptances and chooses; what it chooses depends on its counts and on what runs, on nothing else.

    Attributes:
        targets: of each task, summing to 1.
        counts: accepted of each task so far; rollouts or groups, whatever the caller counts.
    """

    def __init__(self, targets: Mapping[str, float], boost: float = 8.0) -> None:
        """Begin with nothing accepted.

        Args:
            targets: positive numbers, scaled to sum 1.
            boost: a task gets at most so many times its part of the slots.

        Raises:
            UsageError: no task, or a number out of range.
        """
        wrong = [name for name, target in targets.items() if not (target > 0 and math.isfinite(target))]
        if not targets or wrong:
            raise UsageError(f"every task needs a positive share; check: {', '.join(wrong) or 'there is no task'}")
        if not boost >= 1:
            raise UsageError(f"boost = {boost} must be at least 1")
        total = math.fsum(targets.values())
        self.targets = {name: target / total for name, target in sorted(targets.items())}
        self.counts = dict.fromkeys(self.targets, 0)
        self._boost = boost

    def choose(self, running: Mapping[str, int]) -> str:
        """The task that is furthest below its part of the slots.

        Args:
            running: how many of each task run now; absent means none.
        """
        scale = sum(running.values()) + 1

        def fullness(task: str) -> float:
            pressure = max(0.0, min(1.0, self.debt(task) / scale))
            return (running.get(task, 0) + 1) / (self.targets[task] * self._boost**pressure)

        return min(self.targets, key=fullness)

    def accepted(self, task: str, count: int = 1) -> None:
        """So many more of `task` are accepted for training.

        Raises:
            UsageError: there is no such task.
        """
        if task not in self.counts:
            raise UsageError(f"no task is called {task}; there are: {', '.join(self.targets)}")
        self.counts[task] += count

    def debt(self, task: str) -> float:
        """What `task` lacks of its share of everything accepted; negative if it had more."""
        return self.targets[task] * sum(self.counts.values()) - self.counts[task]

    def shares(self) -> dict[str, float]:
        """Each task's part of everything accepted; zeros before the first."""
        total = max(sum(self.counts.values()), 1)
        return {task: count / total for task, count in self.counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            UsageError: it was taken with other tasks.
        """
        if set(state["counts"]) != set(self.targets):
            raise UsageError(
                f"the state to go on from has the tasks {', '.join(sorted(state['counts']))}, "
                f"this run {', '.join(self.targets)}; begin anew to change them"
            )
        self.counts = {name: state["counts"][name] for name in self.targets}
