"""The turns of a rollout become rows of ids, each sampled token trained once and in the context it was sampled in.

An agent's history is a tree: every request carries its whole context again, sub-agents talk beside the main thread,
and a full context is restarted shorter. Turn by turn, the new prompt is laid against the rows held so far (GLM-5
report §4.1.2; the three cases are those of slime's agent adapters):

    extend    prompt = row + tail               the tail is appended untrained, the output trained
    realign   they part within the row's last   the row's end is overwritten by the prompt, untrained, and goes on: a
              response, near its end            template rendered the response slightly otherwise than it was sampled
    fork      anything else                     a new row: the whole prompt untrained, the output trained

What a row trains keeps the exact context it was sampled in, because only ends of rows are ever overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from glm5.errors import GLM5Error
from glm5.rl.records import TrainingSample, Trajectory, Turn


@dataclass(slots=True)
class Linear:
    """One row of ids; the lists are as in `TrainingSample`.

    Attributes:
        overwritten: sampled tokens that realigning took out of the row.
    """

    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    rollout_logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    overwritten: int = 0
    _response: int = field(default=0, repr=False)  # where the last response begins; a row ends with it

    def append(self, turn: Turn) -> None:
        """Go on with a turn whose prompt begins with this row."""
        tail = turn.prompt_ids[len(self.ids) :]
        self.ids += tail + turn.ids
        self.loss_mask += [False] * len(tail) + [True] * len(turn.ids)
        self.rollout_logprobs += [0.0] * len(tail) + turn.logprobs
        self.versions += [-1] * len(tail) + turn.versions
        self._response = len(self.ids) - len(turn.ids)

    def cut(self, end: int) -> None:
        """Take out what comes from `end` on."""
        self.overwritten += len(self.ids) - end
        for values in (self.ids, self.loss_mask, self.rollout_logprobs, self.versions):
            del values[end:]

    def parting(self, prompt: list[int]) -> int | None:
        """Where `prompt` parts from the last response after its first token; None if it does so nowhere or earlier."""
        kept = self._response + 1
        if prompt[:kept] != self.ids[:kept]:
            return None
        ends = min(len(prompt), len(self.ids))
        return next((place for place in range(kept, ends) if prompt[place] != self.ids[place]), None)


def linearise(turns: Sequence[Turn], realign_tokens: int = 1024) -> list[Linear]:
    """Rows for training, in the order in which they were begun.

    Args:
        turns: in order of arrival. One without output is passed over: there is nothing to train in it.
        realign_tokens: realign where fewer sampled tokens than this would be overwritten; 0 always forks, which
            loses no token but computes the shared context once more.
    """
    rows: list[Linear] = []
    for turn in turns:
        if not turn.ids:
            continue
        row = _longest_beginning(rows, turn.prompt_ids)
        if row is None:
            row = _realigned(rows, turn.prompt_ids, realign_tokens)
        if row is None:
            rows.append(row := Linear())
        row.append(turn)
    return rows


def training_samples(
    trajectory: Trajectory, advantage: float, weight: float, loss_kind: str, realign_tokens: int = 1024
) -> list[TrainingSample]:
    """The rows of one valid trajectory, all with its advantage, weight and rollout id.

    Raises:
        GLM5Error: the trajectory is not valid.
    """
    if trajectory.exclusion or trajectory.reward is None:
        raise GLM5Error(f"rollout {trajectory.rollout_id} cannot be trained on: {trajectory.exclusion}")
    return [
        TrainingSample(
            row.ids, row.loss_mask, row.rollout_logprobs, row.versions, advantage, loss_kind,
            trajectory.environment, trajectory.rollout_id, trajectory.reward, weight=weight,
        )
        for row in linearise(trajectory.turns, realign_tokens)
    ]  # fmt: skip


def _longest_beginning(rows: list[Linear], prompt: list[int]) -> Linear | None:
    """The longest row that `prompt` begins with."""
    fitting = [row for row in rows if prompt[: len(row.ids)] == row.ids]
    return max(fitting, key=lambda row: len(row.ids), default=None)


def _realigned(rows: list[Linear], prompt: list[int], most: int) -> Linear | None:
    """The row that shares most with `prompt`, cut where they part, if fewer than `most` tokens are lost by it."""
    partings = [(place, row) for row in rows if (place := row.parting(prompt)) is not None]
    place, row = max(partings, key=lambda parting: parting[0], default=(0, None))
    if row is None or len(row.ids) - place >= most:
        return None
    row.cut(place)
    return row
