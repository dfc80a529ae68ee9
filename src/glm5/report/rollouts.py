"""Rollouts to read: a few of the thousands, token by token, with what the trainer knows of each.

Of evenly spread updates, the first, last, best and worst rollout and one that failed are embedded; the page says how
many are not. `rollouts.jsonl` holds ids only, so their text is decoded here with the run's tokenizer.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm5.report.curves import spread
from glm5.rl.linearise import linearise
from glm5.rl.records import Trajectory, Turn
from glm5.rl.replay import read_replay
from glm5.text.tokenizer import Tokenizer

_VERSIONS = 12  # that rollouts are shown of
_TOKENS = 3000  # of one rollout, prompts included


@dataclass(slots=True)
class ShownTurn:
    """A turn: what is new in its prompt, and what was sampled. The lists have an entry for each sampled token."""

    prompt: str
    tokens: list[str]
    logprobs: list[float]
    versions: list[int]
    trained: list[int]  # 1 or 0
    finish: str
    engine: str
    left_out: int  # tokens of prompt and output that are not shown


@dataclass(slots=True)
class ShownRollout:
    """A rollout on the page."""

    id: str
    environment: str
    kind: str
    version: int  # the newest that sampled a token
    reward: float | None
    parts: dict[str, float]
    evidence: str
    failure: str
    seconds: float
    turns: list[ShownTurn]


@dataclass(slots=True)
class Rollouts:
    """Those shown, and how many there are."""

    shown: list[ShownRollout]
    total: int
    failed: int


@dataclass(slots=True)
class _Entry:
    number: int  # of the line
    version: int
    reward: float
    failed: bool


def read_rollouts(path: Path, tokenizer: Tokenizer) -> Rollouts:
    """Choose and decode the rollouts of a file.

    Raises:
        GLM5Error: it is not a file of rollouts.
    """
    entries = [
        _Entry(number, newest_version(rollout), rollout.reward or 0.0, not rollout.is_valid)
        for number, rollout in enumerate(read_replay(path, Trajectory))
    ]
    chosen = choose(entries)
    shown = [_show(rollout, tokenizer) for n, rollout in enumerate(read_replay(path, Trajectory)) if n in chosen]
    return Rollouts(shown, len(entries), sum(entry.failed for entry in entries))


def choose(entries: Sequence[_Entry]) -> set[int]:
    """The lines to show: of evenly spread versions the first, last, best and worst, and one that failed."""
    versions = sorted({entry.version for entry in entries})
    chosen: set[int] = set()
    for version in (versions[i] for i in spread(len(versions), _VERSIONS)):
        own = [entry for entry in entries if entry.version == version]
        valid = [entry for entry in own if not entry.failed]
        failed = [entry for entry in own if entry.failed]
        picked = failed[:1]
        if valid:
            picked += [valid[0], valid[-1], max(valid, key=_reward), min(valid, key=_reward)]
        chosen |= {entry.number for entry in picked}
    return chosen


def newest_version(rollout: Trajectory) -> int:
    """Of the weights that sampled it; -1 where nothing was sampled."""
    return max((version for turn in rollout.turns for version in turn.versions), default=-1)


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """Each token's text; a character of several tokens belongs to the one that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for place, token in enumerate(ids):
        known = tokenizer.token_bytes(token) if tokenizer.is_token(token) else "\ufffd".encode()
        yield decoder.decode(known, final=place == len(ids) - 1)


def trained_places(rollout: Trajectory) -> list[list[bool]]:
    """For each turn and token, whether it is in the loss: sampled, not overwritten later, and of a valid rollout.

    The row a token ends up in is found by numbering all tokens and letting the numbers ride along as versions.
    """
    numbered, n = [], 0
    for turn in rollout.turns:
        numbers = list(range(n, n + len(turn.ids)))
        numbered.append(Turn(turn.prompt_ids, turn.ids, turn.logprobs, numbers, turn.finish_reason))
        n += len(turn.ids)
    kept: set[int] = set()
    if rollout.is_valid:
        kept = {n for row in linearise(numbered) for n, trained in zip(row.versions, row.loss_mask) if trained}
    return [[number in kept for number in turn.versions] for turn in numbered]


def _reward(entry: _Entry) -> float:
    return entry.reward


def _show(rollout: Trajectory, tokenizer: Tokenizer) -> ShownRollout:
    room = _TOKENS
    held: list[int] = []
    turns = []
    for turn, trained in zip(rollout.turns, trained_places(rollout)):
        new = turn.prompt_ids[_common(held, turn.prompt_ids) :]
        held = turn.prompt_ids + turn.ids
        prompt, output = new[: room // 2], turn.ids[: max(0, room - len(new[: room // 2]))]
        room -= len(prompt) + len(output)
        n = len(output)
        turns.append(
            ShownTurn(
                prompt="".join(pieces(tokenizer, prompt)),
                tokens=list(pieces(tokenizer, output)),
                logprobs=[round(value, 2) for value in turn.logprobs[:n]],
                versions=turn.versions[:n],
                trained=[int(value) for value in trained[:n]],
                finish=turn.finish_reason,
                engine=turn.engine,
                left_out=len(new) + len(turn.ids) - len(prompt) - n,
            )
        )
    return ShownRollout(
        rollout.rollout_id, rollout.environment, rollout.kind, newest_version(rollout), rollout.reward,
        rollout.reward_parts, rollout.evidence, rollout.failure or rollout.exclusion,
        round(rollout.ended - rollout.started, 1), turns,
    )  # fmt: skip


def _common(held: list[int], prompt: list[int]) -> int:
    """How much of a prompt is the context held so far."""
    return next((i for i, (a, b) in enumerate(zip(held, prompt)) if a != b), min(len(held), len(prompt)))
