"""Rollouts on disk: exact, append-only, and unharmed by a kill at any byte."""

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.records import TrainingSample, Trajectory, Turn
from glm5.rl.replay import RolloutLog, read_replay
from tests.rl.test_records import samples, trajectories

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)


def rollout(number: int) -> Trajectory:
    turn = Turn([1, number], [3], [-1 / 3 * number], [number], "stop")
    return Trajectory(f"r{number}", "t", "e", "g", turns=[turn], reward=0.1 + 0.2, evidence="größer\nals 0\u2028.")


@SHARED_FOLDER
@given(records=st.lists(trajectories(), min_size=1, max_size=3))
def test_trajectories_are_read_back_exactly(tmp_path: Path, records: list[Trajectory]) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.unlink(missing_ok=True)
    with RolloutLog(path) as log:
        for record in records:
            log.append(record)
    assert list(read_replay(path, Trajectory)) == records


@SHARED_FOLDER
@given(records=st.lists(samples(), min_size=1, max_size=3))
def test_samples_are_read_back_exactly(tmp_path: Path, records: list[TrainingSample]) -> None:
    path = tmp_path / "samples.jsonl"
    path.unlink(missing_ok=True)
    for record in records:  # opened again for each, as by a run that is resumed
        with RolloutLog(path) as log:
            log.append(record)
    assert list(read_replay(path, TrainingSample)) == records


def test_a_line_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "new" / "rollouts.jsonl")
    log.append(rollout(1))
    assert list(read_replay(log.path, Trajectory)) == [rollout(1)]
    log.close()


@SHARED_FOLDER
@given(cut=st.integers(0, 10**6))
def test_a_kill_at_any_byte_costs_the_line_being_written_and_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.unlink(missing_ok=True)
    with RolloutLog(path) as log:
        for number in range(4):
            log.append(rollout(number))
    whole = path.read_bytes()
    torn = whole[: cut % (len(whole) + 1)]
    path.write_bytes(torn)
    left = [rollout(number) for number in range(torn.count(b"\n"))]
    if left:
        assert list(read_replay(path, Trajectory)) == left
    with RolloutLog(path) as log:
        log.append(rollout(9))
    assert list(read_replay(path, Trajectory)) == [*left, rollout(9)]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    with RolloutLog(path) as log:
        log.append(rollout(1))
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    RolloutLog(path).close()
    assert list(read_replay(path, Trajectory)) == [rollout(1)]


def test_a_number_that_is_not_finite_is_refused_and_nothing_written(tmp_path: Path) -> None:
    bad = rollout(1)
    bad.reward_parts = {"style": math.nan}
    with RolloutLog(tmp_path / "rollouts.jsonl") as log:
        with pytest.raises(GLM5Error, match="rollout r1 cannot be written"):
            log.append(bad)
        assert log.path.stat().st_size == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "holds no finished Trajectory"),
        (b'{"rollout_id": "r', "holds no finished Trajectory"),
        (b'{"rollout_id": "r"}\n', "rollouts.jsonl:1 is not a Trajectory"),
        (b"[]\n", "rollouts.jsonl:1 is not a Trajectory"),
        (b"\xff\n", "rollouts.jsonl:1 is not a Trajectory"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GLM5Error, match=words):
        list(read_replay(path, Trajectory))


def test_a_broken_line_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    with RolloutLog(path) as log:
        log.append(rollout(1))
    path.write_bytes(path.read_bytes() + b"{broken}\n" + path.read_bytes())
    with pytest.raises(GLM5Error, match="jsonl:2 is not a Trajectory"):
        list(read_replay(path, Trajectory))


def test_samples_are_not_taken_for_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with RolloutLog(path) as log:
        log.append(TrainingSample([1], [True], [-1.0], [0], 1.0, "icepop", "e", "r", 1.0))
    with pytest.raises(GLM5Error, match="is not a Trajectory"):
        list(read_replay(path, Trajectory))
