import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.metrics import (
    EnvironmentTally,
    EvalRecord,
    MetricsLog,
    Record,
    SpanRecord,
    UpdateRecord,
    is_rl_metrics,
    read_metrics,
)
from glm5.train import metrics as train_metrics

UPDATE = UpdateRecord(
    step=1,
    version=1,
    seconds=10.0,
    reward_mean=0.25,
    reward_std=0.4,
    success=0.2,
    entropy=1.1,
    grad_norm=0.7,
    loss=-0.01,
    lr_muon=1e-3,
    lr_adamw=1e-4,
    tokens_sampled=5000,
    tokens_trained=4000,
    samples=64,
    groups_used=8,
    groups_filtered=3,
    staleness_mean=0.5,
    staleness_max=2,
    staleness_histogram=[40, 20, 4],
    mismatch_kl=2e-4,
    mismatch_max=0.3,
    masked_share=0.01,
    acceptance_length=1.7,
    prefix_reuse=0.6,
    dropped={"stale": 2},
    wait_seconds={"rollouts": 3.5},
    per_environment={"sort": EnvironmentTally(0.3, 0.5, 32), "repair": EnvironmentTally(0.2, 0.5, 32)},
)


def write(path: Path, *records: Record) -> Path:
    log = MetricsLog(path)
    for record in records:
        log.write(record)
    log.close()
    return path


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [
        UPDATE,
        EvalRecord(1, "sort", "", 64, 0.31, 0.36, 0.11),
        SpanRecord("engine 0", "generate", 1.5, 2.25, 7),
    ]
    path = write(tmp_path / "metrics.jsonl", *records)
    assert list(read_metrics(path)) == records
    assert is_rl_metrics(path)


def test_metrics_of_a_training_stage_are_told_apart(tmp_path: Path) -> None:
    log = train_metrics.MetricsLog(tmp_path / "metrics.jsonl")
    log.write(train_metrics.EvalRecord(0, 0, {"all": 2.0}))
    log.close()
    assert not is_rl_metrics(log.path)


@given(st.integers(0, 7), st.lists(st.floats(0, 70), max_size=20))
def test_a_resumed_run_tells_one_story(
    tmp_path_factory: pytest.TempPathFactory, step: int, starts: list[float]
) -> None:
    """Nothing later than the update it resumes from is left, and nothing earlier is lost."""
    updates = [replace(UPDATE, step=n, seconds=10.0 * n) for n in range(1, 7)]
    evals = [EvalRecord(n, "sort", "", 8, 0.5, 0.5, 0.1) for n in (0, 3, 6)]
    spans = [SpanRecord("trainer", "update", start, start + 1) for start in starts]
    path = write(tmp_path_factory.mktemp("resumed") / "metrics.jsonl", *spans, *updates, *evals)
    log = MetricsLog(path, resume_step=step)
    log.close()
    until = 10.0 * min(step, 6)
    kept = [r for r in updates if r.step <= step] + [r for r in evals if r.step <= step]
    assert list(read_metrics(path)) == [span for span in spans if span.end <= until] + kept


def test_a_torn_last_line_is_passed_over_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", UPDATE)
    with path.open("a") as lines:
        lines.write('{"record": "upd')
    assert list(read_metrics(path)) == [UPDATE]
    with path.open("a") as lines:
        lines.write("\n" + json.dumps({"record": "eval"}) + "\n")
    with pytest.raises(GLM5Error, match=r"metrics\.jsonl:2 is not an RL metrics record"):
        list(read_metrics(path))


def test_a_number_that_is_none_survives(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", replace(UPDATE, grad_norm=math.nan))
    (read,) = read_metrics(path)
    assert isinstance(read, UpdateRecord)
    assert math.isnan(read.grad_norm)
