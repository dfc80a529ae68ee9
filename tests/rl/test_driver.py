"""The whole loop on real Ray processes with a network of some thousand weights: it learns, and survives."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from glm5.model.checkpoint import load_checkpoint, stored_tensors
from glm5.recipe.rl import RLSection
from glm5.rl.cluster import Cluster, Run
from glm5.rl.driver import reinforce
from glm5.rl.journal import Journal, Standing
from glm5.rl.metrics import EvalRecord, UpdateRecord, read_metrics
from glm5.rl.monitor import Monitor
from glm5.rl.records import Trajectory
from glm5.rl.replay import read_replay
from glm5.rl.snapshot import Counters
from glm5.rl.weights import hash_tensors
from tests.rl import small_rl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_CHILD = """
import sys, json
from pathlib import Path
from tests.rl import small_rl
from tests.rl.test_driver import run
run(Path(sys.argv[1]), Path(sys.argv[2]), small_rl.settings(**json.loads(sys.argv[3])))
"""


class Silent:
    """A view that tells a test of every update."""

    def __init__(self, after_update: Callable[[UpdateRecord], None] = lambda record: None) -> None:
        self.updated = after_update

    def show(self, counters: Counters, waiting: str, seconds: float) -> None:
        pass

    def evaluated(self, record: EvalRecord) -> None:
        pass

    def close(self) -> None:
        pass


def run(start: Path, folder: Path, settings: RLSection, view: Silent | None = None, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    monitor = Monitor(folder, view or Silent())
    try:
        reinforce(Run(settings, start, folder, seed, {}), monitor)
    finally:
        monitor.close()


def weights_hash(folder: Path) -> str:
    return hash_tensors(stored_tensors(load_checkpoint(folder / "model")))


def updates(folder: Path) -> list[UpdateRecord]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if isinstance(record, UpdateRecord)]


def check_books(folder: Path, settings: RLSection) -> None:
    """Every update once and in order; no group in two of them; no finished rollout twice."""
    assert [record.step for record in updates(folder)] == list(range(1, settings.updates + 1))
    standing = Standing.of(Journal(folder / "journal.jsonl"))
    assert sorted(standing.batches) == list(range(1, settings.updates + 1))
    trained = Counter(name for groups in standing.batches.values() for name in groups)
    assert set(trained.values()) == {1}
    assert not standing.stale & trained.keys()
    trajectories = list(read_replay(folder / "rollouts.jsonl", Trajectory))
    valid = Counter(trajectory.rollout_id for trajectory in trajectories if trajectory.is_valid)
    assert set(valid.values()) == {1}
    made = {trajectory.group_id for trajectory in trajectories}
    assert trained.keys() <= made
    accepted = {name for name, judged in standing.judged.items() if judged.verdict == "accepted"}
    assert trained.keys() <= accepted


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rl.checkpoint(tmp_path_factory.mktemp("model"))


def test_a_short_run_learns_and_with_shuffled_rewards_it_does_not(start: Path, tmp_path: Path) -> None:
    gains = {}
    for shuffled in (False, True):
        task = {"environment": small_rl.ENVIRONMENT, "held_out_tasks": 64, "options": {"shuffled": shuffled}}
        settings = small_rl.settings(updates=16, staleness_bound=0, prompts_per_step=8, samples_per_prompt=8,
                                     tasks=[task], eval_every_updates=16)  # fmt: skip
        folder = tmp_path / ("shuffled" if shuffled else "true")
        run(start, folder, settings)
        check_books(folder, settings)
        scores = [record.sampled for record in read_metrics(folder / "metrics.jsonl")
                  if isinstance(record, EvalRecord) and not record.kind]  # fmt: skip
        gains[shuffled] = scores[-1] - scores[0]
        assert statistics.fmean(record.mismatch_kl for record in updates(folder)) < 0.01
    assert gains[False] > 0.12
    assert gains[True] < 0.5 * gains[False]


@pytest.mark.parametrize("bound", [0, 1])
def test_killed_at_any_moment_the_run_goes_on(start: Path, tmp_path: Path, bound: int) -> None:
    """kill -9 of the driver, which takes Ray's processes with it. A synchronous run ends with the very same weights."""
    changes: dict[str, Any] = {"updates": 6, "staleness_bound": bound, "engine": {"batch_invariant": True}}
    settings = small_rl.settings(**changes)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", _CHILD, str(start), str(folder), json.dumps(changes)]
    for step in (1, 3):
        child = subprocess.Popen(command, start_new_session=True)
        try:
            _wait_until(lambda at=step: _steps(folder) >= at, child)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    run(start, folder, settings)
    check_books(folder, settings)
    if bound == 0:
        run(start, tmp_path / "whole", settings)
        assert weights_hash(folder) == weights_hash(tmp_path / "whole")


def test_chaos(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines, the trainer and the orchestrator are killed again and again during thirty updates."""
    settings = small_rl.settings(updates=30, staleness_bound=1, save_every_updates=4, engine={"count": 2})
    clusters: list[Cluster] = []
    entered = Cluster.__enter__

    def remember(self: Cluster) -> Cluster:
        clusters.append(self)
        return entered(self)

    monkeypatch.setattr(Cluster, "__enter__", remember)
    killed: Counter[str] = Counter()

    def strike(record: UpdateRecord) -> None:
        cluster = clusters[-1]
        victims = {5: "engine", 9: "trainer", 14: "engine", 17: "orchestrator", 21: "trainer", 25: "engine"}
        if victims.get(record.step) == "engine" and killed["engine", record.step] == 0:
            pids = cluster.ask("engine_pids")
            os.kill(pids[sorted(pids)[record.step % len(pids)]], signal.SIGKILL)
        elif victims.get(record.step) == "trainer" and killed["trainer", record.step] == 0:
            pid = cluster.trainer.ask("pid")
            threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()  # in the middle of the next update
        elif victims.get(record.step) == "orchestrator" and killed["orchestrator", record.step] == 0:
            os.kill(cluster.ask("pid"), signal.SIGKILL)
        else:
            return
        killed[victims[record.step], record.step] += 1

    folder = tmp_path / "chaos"
    run(start, folder, settings, Silent(strike))
    assert sum(killed.values()) == 6
    check_books(folder, settings)
    assert not ray.is_initialized()


def _steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(updates(folder)) if path.exists() else 0


def _wait_until(condition: Callable[[], bool], child: "subprocess.Popen[bytes]", seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.05)
