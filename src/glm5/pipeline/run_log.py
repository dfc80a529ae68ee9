"""`run.json`: where a run stands, rewritten whole after every change, so that a kill leaves the old or the new one."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from glm5.errors import GLM5Error
from glm5.pipeline.stages import Summary
from glm5.recipe import Recipe

Status = Literal["pending", "running", "done", "skipped", "failed", "interrupted"]


@dataclass(slots=True)
class StageRecord:
    """Where one stage stands. `started` and `finished` are seconds since 1970."""

    name: str
    status: Status = "pending"
    seconds: float = 0.0  # of work, over all resumptions; what a kill cut off is not known
    summary: Summary = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)  # relative to the run's folder
    fingerprint: dict[str, str] = field(default_factory=dict)  # setting or input file → its value or hash
    started: float = 0.0
    finished: float = 0.0


class RunLog:
    """The run's name, its recipe's path, and a `StageRecord` for each stage. Opened by one process at a time."""

    def __init__(self, folder: Path, recipe: Recipe, origin: str) -> None:
        self.path, self.name, self.origin = folder / "run.json", recipe.name, origin
        old = {record.name: record for record in read_run_log(self.path)} if self.path.exists() else {}
        self.records = {name: old.pop(name, StageRecord(name)) for name in recipe.stages}
        self.records |= old  # a stage the recipe names no longer keeps its finished work
        for record in self.records.values():
            if record.status == "running":  # nobody else is here, so whoever ran it was killed
                record.status = "interrupted"

    def save(self) -> None:
        """Write the file."""
        stages = [asdict(record) for record in self.records.values()]
        text = json.dumps({"name": self.name, "recipe": self.origin, "stages": stages}, indent=1)
        write_atomically(self.path, text)


def read_run_log(path: Path) -> list[StageRecord]:
    """The stages of a run, in order.

    Raises:
        GLM5Error: the file is not a run log.
    """
    try:
        return [StageRecord(**values) for values in json.loads(path.read_text(encoding="utf-8"))["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise GLM5Error(f"{path} is not a run log ({error}); move it away to run every stage again") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step that the disk has seen."""
    replacement = path.with_name(path.name + ".tmp")
    with replacement.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(replacement, path)
