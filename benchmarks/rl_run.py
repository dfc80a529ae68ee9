"""One RL run of a benchmark: its own folder, a line for every update, and what it told when it is over."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glm5.recipe.rl import RLSection
from glm5.rl.cluster import Run
from glm5.rl.driver import reinforce
from glm5.rl.metrics import EvalRecord, SpanRecord, UpdateRecord, read_metrics
from glm5.rl.monitor import Monitor
from glm5.rl.records import Trajectory
from glm5.rl.replay import read_replay
from glm5.rl.snapshot import Counters

ENVIRONMENTS = Path(__file__).with_name("rl_environments.py").resolve()  # as recipes name a file's classes


@dataclass(frozen=True, slots=True)
class Told:
    """The records of a run.

    Attributes:
        lifetimes: rollout → seconds from its start to its reward, evaluations left out.
    """

    updates: list[UpdateRecord]
    evaluations: list[EvalRecord]
    spans: list[SpanRecord]
    lifetimes: dict[str, float]

    @property
    def held_out(self) -> tuple[EvalRecord, EvalRecord]:
        """The first and the last evaluation of all tasks together."""
        whole = [record for record in self.evaluations if not record.kind]
        return whole[0], whole[-1]


class Lines:
    """A view of a run: a line for every update."""

    def __init__(self, name: str) -> None:
        self.name = name

    def show(self, counters: Counters, waiting: str, seconds: float) -> None:
        """Waits are in the spans."""

    def updated(self, record: UpdateRecord) -> None:
        """The update."""
        lag = f"{record.staleness_mean:.1f} versions behind"
        print(f"{self.name} · update {record.step} · reward {record.reward_mean:.2f} · {lag}", flush=True)

    def evaluated(self, record: EvalRecord) -> None:
        """The score."""
        if not record.kind:
            score = f"sampled {record.sampled:.3f} ± {record.interval:.3f}, greedy {record.greedy:.3f}"
            print(f"{self.name} · {record.n} held-out tasks · {score}", flush=True)

    def close(self) -> None:
        """Nothing is held."""


def trained(name: str, settings: RLSection, checkpoint: Path, seed: int) -> Told:
    """Run the loop in a folder that is then removed. Raises GLM5Error as `reinforce` does."""
    folder = Path(tempfile.mkdtemp(prefix="glm5-benchmark-"))
    monitor = Monitor(folder, Lines(name))
    try:
        reinforce(Run(settings, checkpoint, folder, seed, {}), monitor)
        return _told(folder)
    finally:
        monitor.close()
        shutil.rmtree(folder)


def _told(folder: Path) -> Told:
    records = list(read_metrics(folder / "metrics.jsonl"))
    rollouts = read_replay(folder / "rollouts.jsonl", Trajectory)
    return Told(
        [record for record in records if isinstance(record, UpdateRecord)],
        [record for record in records if isinstance(record, EvalRecord)],
        [record for record in records if isinstance(record, SpanRecord) and not record.rollout.startswith("eval-")],
        {rollout.rollout_id: rollout.ended - rollout.started for rollout in rollouts},
    )


def binomial_interval(share: float, n: int) -> float:
    """Half the width of the 95 % interval of a success rate, by the normal approximation."""
    return 1.96 * float((share * (1 - share) / n) ** 0.5)


def mean_over(records: Sequence[EvalRecord], way: str) -> tuple[float, float]:
    """Mean of `way`, sampled or greedy, over evaluations by independent runs, and its interval."""
    n = sum(record.n for record in records)
    share = sum(getattr(record, way) * record.n for record in records) / n
    return share, binomial_interval(share, n)
