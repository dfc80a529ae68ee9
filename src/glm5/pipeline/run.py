"""The loop over a run's stages.

    for each stage of the recipe, in order:
        finished, and nothing it depends on changed?  → left as it is
        begun, and nothing it depends on changed?     → continues in its folder
        anything else                                 → its old folder is set aside, and it begins anew
    run.json says after every change where the run stands

A stage depends on its settings, on the content of its inputs, and on the stages before it: when one of those ran
again, so does this one. A run can be stopped anywhere, by a key or by the loss of power; the same command continues it.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from glm5.errors import GLM5Error, UsageError
from glm5.pipeline.check import check_inputs, choose, validate
from glm5.pipeline.run_log import RunLog, StageRecord, Status, write_atomically
from glm5.pipeline.stages import STAGES, Stage, StageContext
from glm5.recipe import Recipe


def run_recipe(
    recipe: Recipe,
    origin: str = "recipe",
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    restart: bool = False,
    console: Console | None = None,
    stages: Mapping[str, Stage] = STAGES,
) -> list[StageRecord]:
    """Run what is not finished yet, and return where every stage stands.

    Args:
        recipe: what to do; it is validated before anything is written.
        origin: the recipe's path, for messages and `run.json`.
        only: run these stages of the recipe and no others.
        skip: leave these out.
        restart: begin the chosen stages anew, whatever is there.
        console: where progress is told; stderr by default.
        stages: the stages there are.

    Raises:
        UsageError: the recipe, `only` or `skip` asks for something impossible.
        GLM5Error: a stage failed, or another process works in the same folder.
        KeyboardInterrupt: somebody stopped it; the same command continues it.
    """
    recipe = validate(recipe, origin, stages)
    chosen = choose(recipe, only, skip)
    check_inputs(recipe, chosen, stages)
    console = console or Console(stderr=True)
    with _locked(recipe.output):
        log = RunLog(recipe.output, recipe, origin)
        log.save()
        write_atomically(recipe.output / "recipe.toml", recipe.to_toml())
        earlier: list[StageRecord] = []
        for name in recipe.stages:
            stage, record = stages[name], log.records[name]
            fingerprint = _fingerprint(stage, recipe)
            reason = _why_anew(stage, recipe, record, fingerprint, earlier)
            earlier.append(record)
            if name not in chosen:
                _leave(record, reason, console, skipped=name in skip)
                log.save()
            elif record.status == "done" and not reason and not restart:
                _tell(console, name, f"done, {_duration(time.time() - record.finished)} ago")
            else:
                context = StageContext(recipe, recipe.output / name, recipe.output, console)
                _prepare(record, context, "restart was asked for" if restart else reason)
                record.fingerprint = fingerprint
                _run_stage(stage, record, context, log)
        return list(log.records.values())


# -- what is still good ----------------------------------------------------------------------------------------------


def _why_anew(
    stage: Stage, recipe: Recipe, record: StageRecord, fingerprint: dict[str, str], earlier: Sequence[StageRecord]
) -> str:
    """Why what an earlier run left of this stage cannot be kept; empty if it can."""
    if record.status in ("pending", "skipped"):
        return "this run has not made it yet"
    changed = [key for key in fingerprint | record.fingerprint if fingerprint.get(key) != record.fingerprint.get(key)]
    if record.status != "done":
        changed = [key for key in changed if key not in stage.adjustable]
    if changed:
        return ", ".join(_change(key, record.fingerprint.get(key), fingerprint.get(key)) for key in changed)
    for before in earlier:
        if before.finished > record.started:
            return f"stage '{before.name}' ran again"
    if record.status == "done":
        for path in stage.outputs(recipe):
            if not path.exists():
                return f"{path} is gone"
    return ""


def _change(key: str, old: str | None, new: str | None) -> str:
    told = f"{key} was {old}, is {new}"
    return told if old is not None and new is not None and len(told) < 100 else f"{key} changed"


def _fingerprint(stage: Stage, recipe: Recipe) -> dict[str, str]:
    """What decides a stage's result: the value of each setting, and a hash of each input's content."""
    values = recipe.model_dump(mode="json")
    result = dict(pair for key in stage.settings for pair in _leaves(key, values[key]))
    for path in stage.inputs(recipe):
        # A run's folder may be moved: its own files are known by their place inside it.
        name = path.relative_to(recipe.output) if path.is_relative_to(recipe.output) else path
        result[str(name)] = _hash(path) if path.exists() else "missing"
    return result


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, json.dumps(value, ensure_ascii=False)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# -- one stage -------------------------------------------------------------------------------------------------------


def _leave(record: StageRecord, reason: str, console: Console, *, skipped: bool) -> None:
    """Pass over a stage that was not chosen; what there is of it stays as it is."""
    if skipped and record.status == "pending":
        record.status = "skipped"
    stale = f", though out of date: {reason}" if reason and record.status == "done" else ""
    _tell(console, record.name, f"left out, stays {record.status}{stale}")


def _prepare(record: StageRecord, context: StageContext, reason: str) -> None:
    """Clear the stage's place if there is a reason to begin anew; else leave it for the stage to go on from."""
    folder = context.folder
    if not reason:
        words = f"continues; it was {record.status}"
    elif record.status in ("pending", "skipped") and not folder.exists():
        words = "begins"
    else:
        words = f"begins anew: {reason}"
    if reason and folder.exists():
        # Never deleted: a setting changed by accident must not cost a day of training.
        candidates = (folder.with_name(f"{folder.name}.old{number}") for number in count(1))
        aside = next(path for path in candidates if not path.exists())
        folder.rename(aside)
        words += f"; what was there is now in {aside}"
    _tell(context.console, record.name, words)
    if reason:
        record.seconds, record.started = 0.0, time.time()


def _run_stage(stage: Stage, record: StageRecord, context: StageContext, log: RunLog) -> None:
    """Run one stage, and say in run.json how it ended, however it ends."""
    record.status, record.summary, record.outputs = "running", {}, []
    log.save()
    before, begin = record.seconds, time.monotonic()
    ended: Status = "failed"
    try:
        record.summary = stage.load()(context)
        outputs = stage.outputs(context.recipe)
        for path in outputs:
            if not path.exists():
                raise GLM5Error(f"stage '{stage.name}' ended without writing {path}")
        record.outputs = [str(path.relative_to(context.run)) for path in outputs]
        record.finished = time.time()
        ended = "done"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        record.status, record.seconds = ended, before + time.monotonic() - begin
        log.save()
        hint = "" if ended == "done" else "; the same command continues it"
        _tell(context.console, stage.name, f"{ended} after {_duration(record.seconds)}{hint}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a run's folder and keep other processes out of it. However a process dies, the kernel frees its lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"output = {folder} cannot be written to: {error.strerror}; choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise GLM5Error(
                f"process {file.read().strip() or 'unknown'} is running in {folder};"
                " wait for it, stop it, or give this run another output"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _tell(console: Console, name: str, words: str) -> None:
    console.print(f"{name:<12} {words}", markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
