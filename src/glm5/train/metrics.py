"""The record of a training stage: one JSON object a line, appended as it happens, read again by the report.

Kinds of line, told apart by `kind`: a `StepRecord` after every optimiser step, an `EvalRecord` whenever held-out text
is scored, a `SampleRecord` whenever the model is asked to continue a prompt; fine-tuning begins with a `DataRecord`. A
resumed run first drops the lines past the step it resumes from, so the file always tells one straight story.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from glm5.errors import GLM5Error


@dataclass(slots=True)
class StepRecord:
    """One optimiser step. Losses are nats per token; times are seconds of wall clock."""

    step: int
    tokens: int  # trained on so far, this step included
    phase: str  # which data mixture
    loss: float
    mtp_loss: list[float]  # one for each prediction depth; empty when the step computed none
    balance_loss: float
    grad_norm: float
    lr_muon: float
    lr_adamw: float
    tokens_per_second: float
    seconds: float  # spent training so far, over all resumptions
    load_violation: float  # busiest expert's share over the mean share, minus 1; mean over MoE layers
    kind: str = "step"


@dataclass(slots=True)
class EvalRecord:
    """Held-out bits per byte, for each source and over all bytes together (`all`)."""

    step: int
    tokens: int
    bits_per_byte: dict[str, float]
    expert_load: list[list[float]] = field(default_factory=list)  # [MoE layer][expert], shares that sum to 1
    loss: dict[str, float] = field(default_factory=dict)  # nats per scored token, by the same names
    kind: str = "eval"


@dataclass(slots=True)
class SampleRecord:
    """What the model wrote after `prompt` at this point of its training."""

    step: int
    tokens: int
    prompt: str
    text: str
    kind: str = "sample"


@dataclass(slots=True)
class DataRecord:
    """What the training reads and what was left out of it: counts by source, then by what is counted."""

    counts: dict[str, dict[str, int]]
    step: int = 1  # the first that read it
    kind: str = "data"


Record = StepRecord | EvalRecord | SampleRecord | DataRecord
_KINDS: dict[str, type] = {"step": StepRecord, "eval": EvalRecord, "sample": SampleRecord, "data": DataRecord}


class MetricsLog:
    """Append-only writer for one stage's `metrics.jsonl`."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [asdict(record) for record in read_metrics(path) if record.step <= resume_step] if path.exists() else []
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
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
            record = _KINDS[values["kind"]]
            yield record(**{f.name: values[f.name] for f in fields(record) if f.name in values})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return
            raise GLM5Error(
                f"{path}:{number} is not a metrics record ({error}); move the file away to go on"
            ) from error
