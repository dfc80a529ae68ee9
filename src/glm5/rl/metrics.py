"""The record of an RL stage: one JSON object a line, appended as it happens, read again by console, report and fit.

Three kinds of line, told apart by `record`: an `UpdateRecord` after every update of the weights, an `EvalRecord` for
every kind of held-out task that is scored, a `SpanRecord` for every stretch of time in which somebody did, or waited
for, one thing. A resumed run first drops what lies past the update it resumes from, so the file always tells one
straight story.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glm5.errors import GLM5Error

UPDATE, SYNC, GENERATE, IDLE = "update", "sync", "generate", "idle: "  # what spans say was done


@dataclass(slots=True)
class EnvironmentTally:
    """One environment's part in an update."""

    reward: float  # mean
    share: float  # of the update's samples
    count: int  # samples


@dataclass(slots=True, kw_only=True)
class UpdateRecord:
    """One update of the weights. Seconds are wall clock; log-probabilities and entropies are in nats."""

    step: int  # updates done, this one included
    version: int  # of the weights it made
    seconds: float  # since the run began, when the update ended
    reward_mean: float
    reward_std: float
    success: float  # share of the samples with a full reward
    entropy: float  # mean over the trained tokens
    grad_norm: float
    loss: float
    lr_muon: float
    lr_adamw: float
    tokens_sampled: int  # so far, over the whole run
    tokens_trained: int  # so far, over the whole run
    samples: int
    groups_used: int
    groups_filtered: int
    staleness_mean: float  # versions between the weights that sampled and those that learnt
    staleness_max: int
    staleness_histogram: list[int]  # [lag in versions] → samples
    mismatch_kl: float  # KL of the trainer's from the engine's log-probabilities of the same tokens
    mismatch_max: float  # largest difference of the two
    masked_share: float  # of the tokens, left out of the loss by importance sampling
    acceptance_length: float  # tokens a speculative step yields; 1 without drafts
    prefix_reuse: float  # share of the prompt tokens that came from an engine's cache
    dropped: dict[str, int] = field(default_factory=dict)  # reason → rollouts since the update before
    wait_seconds: dict[str, float] = field(default_factory=dict)  # reason → seconds since the update before
    per_environment: dict[str, EnvironmentTally] = field(default_factory=dict)
    record: str = "update"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "UpdateRecord":
        """Build from a parsed line."""
        tallies = {name: EnvironmentTally(**tally) for name, tally in values.get("per_environment", {}).items()}
        return cls(**{**values, "per_environment": tallies})


@dataclass(slots=True)
class EvalRecord:
    """The score on the held-out tasks of one kind, sampled at temperature 1 and greedy."""

    step: int
    environment: str
    kind: str  # sub-kind of the tasks, empty for all of the environment's together
    n: int  # tasks
    sampled: float
    greedy: float
    interval: float  # half the width of the 95 % interval of `sampled`
    record: str = "eval"


@dataclass(slots=True)
class SpanRecord:
    """What `who` did from `start` to `end`, in seconds since the run began.

    A trainer says `update`, `sync` and `idle: <reason>`. An engine says `generate` once for each turn it generates,
    with its `tokens` and its `rollout`, from the moment the turn has a slot; such spans of one engine overlap.
    """

    who: str  # "trainer", "engine 0", …
    what: str
    start: float
    end: float
    tokens: int = 0
    rollout: str = ""
    record: str = "span"


Record = UpdateRecord | EvalRecord | SpanRecord
_READERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "update": UpdateRecord.from_json,
    "eval": lambda values: EvalRecord(**values),
    "span": lambda values: SpanRecord(**values),
}


class MetricsLog:
    """Append-only writer for one RL stage's `metrics.jsonl`."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _until(list(read_metrics(path)), resume_step) if path.exists() else []
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(asdict(record)) + "\n" for record in kept), encoding="utf-8")
        os.replace(replacement, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one record; it is on its way to disk when this returns."""
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics file in order. A torn last line, left by a kill, is passed over.

    Raises:
        GLM5Error: a line that is not the last one is not a known record.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values: dict[str, Any] = json.loads(line)
            yield _READERS[values["record"]](values)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return
            raise GLM5Error(
                f"{path}:{number} is not an RL metrics record ({error}); move the file away to go on"
            ) from error


def is_rl_metrics(path: Path) -> bool:
    """Whether a `metrics.jsonl` is of an RL stage: its first line names its kind by `record`."""
    with path.open(encoding="utf-8") as lines:
        return '"record":' in lines.readline()


def _until(records: list[Record], step: int) -> list[Record]:
    """What had happened when update `step` ended. Spans know no step: they count by the clock."""
    ends = [r.seconds for r in records if isinstance(r, UpdateRecord) and r.step <= step]
    seconds = max(ends, default=0.0)
    return [r for r in records if (r.end <= seconds if isinstance(r, SpanRecord) else r.step <= step)]
