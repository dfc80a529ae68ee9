"""What an RL run tells: to `metrics.jsonl`, and to whoever looks at the console.

Every wait goes through `wait_for`, so that whoever waits has a reason that is shown while it lasts and counted when it
is over: a slow run and a hung run must not look the same.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray

from glm5.rl.cluster import Cluster, answer
from glm5.rl.learner import UpdateReport
from glm5.rl.metrics import IDLE, EnvironmentTally, EvalRecord, MetricsLog, SpanRecord, UpdateRecord, read_metrics
from glm5.rl.orchestrator import Batch
from glm5.rl.records import Trajectory
from glm5.rl.snapshot import Counters

_POLL_SECONDS = 0.5


class View(Protocol):
    """Who shows the run: the live console, or nobody."""

    def show(self, counters: Counters, waiting: str, seconds: float) -> None: ...

    def updated(self, record: UpdateRecord) -> None: ...

    def evaluated(self, record: EvalRecord) -> None: ...

    def close(self) -> None: ...


class Monitor:
    """Writes records and drives the view. Times in records are seconds of work: a stop and its restart leave no gap."""

    def __init__(self, folder: Path, view: View) -> None:
        self.folder, self.view = folder, view
        self._waits: dict[str, float] = {}
        self._log: MetricsLog | None = None

    def begin(self, cluster: Cluster, update: int) -> None:
        """Watch a run that has done so many updates; what the log has beyond them is dropped."""
        path = self.folder / "metrics.jsonl"
        old = [record for record in read_metrics(path) if isinstance(record, UpdateRecord)] if path.exists() else []
        done = [record for record in old if record.step <= update]
        if self._log is not None:
            self._log.close()
        self._log = MetricsLog(path, update)
        self._cluster = cluster
        self._offset = (done[-1].seconds if done else 0.0) - time.time()
        self._trained, self._sampled = (done[-1].tokens_trained, done[-1].tokens_sampled) if done else (0, 0)
        self._before: Counters | None = None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.time() + self._offset

    @contextmanager
    def span(self, who: str, what: str) -> Iterator[None]:
        """Records who did what, and for how long."""
        start = self.seconds
        yield
        self._write(SpanRecord(who, what, start, self.seconds))

    def wait_for(self, reference: Any, reason: str) -> Any:
        """The answer to a call, with the view kept up to date while it is awaited. Raises as `answer` does."""
        start = self.seconds
        while True:
            ready, _ = ray.wait([reference], timeout=_POLL_SECONDS)
            waited = self.seconds - start
            if ready:
                break
            self.view.show(self._cluster.ask("counters"), reason, waited)
        self._waits[reason] = self._waits.get(reason, 0.0) + waited
        self._write(SpanRecord("trainer", f"{IDLE}waiting for {reason}", start, self.seconds))
        return answer(reference)

    def updated(self, report: UpdateReport, batch: Batch) -> None:
        """Write an update's record, and what the engines did meanwhile."""
        counters: Counters = self._cluster.ask("counters")
        for span in self._cluster.ask("take_spans"):
            span.start, span.end = span.start + self._offset, span.end + self._offset
            self._write(span)
        rewards = {sample.rollout_id: sample.reward for group in batch.groups for sample in group.samples}
        best = max(1.0, max(rewards.values(), default=1.0))
        trained = (report.update - 1) // self._cluster.run.settings.push_every  # the version this batch was trained on
        lags = [trained - min(version for version in sample.versions if version >= 0) for sample in batch.samples]
        self._trained += report.tokens
        before = self._before
        prompts = counters.prompt_tokens - (before.prompt_tokens if before else 0)
        cached = counters.cached_tokens - (before.cached_tokens if before else 0)
        record = UpdateRecord(
            step=report.update, version=counters.version, seconds=self.seconds,
            reward_mean=statistics.fmean(rewards.values()), reward_std=statistics.pstdev(rewards.values()),
            success=sum(reward >= best for reward in rewards.values()) / len(rewards),
            entropy=report.entropy, grad_norm=report.grad_norm, loss=report.loss,
            lr_muon=report.lr_muon, lr_adamw=report.lr_adamw,
            tokens_sampled=self._sampled + counters.sampled_tokens, tokens_trained=self._trained,
            samples=len(batch.samples), groups_used=len(batch.groups), groups_filtered=batch.filtered,
            staleness_mean=statistics.fmean(lags), staleness_max=max(lags),
            staleness_histogram=[lags.count(lag) for lag in range(max(lags) + 1)],
            mismatch_kl=report.mismatch_kl, mismatch_max=report.mismatch_max, masked_share=report.masked_share,
            acceptance_length=self._cluster.ask("acceptance_length"), prefix_reuse=cached / prompts if prompts else 0.0,
            dropped=batch.dropped, wait_seconds=self._waits, per_environment=_tallies(batch),
        )  # fmt: skip
        self._waits, self._before = {}, counters
        self._write(record)
        self.view.updated(record)

    def evaluated(
        self, update: int, environment: str, sampled: Sequence[Trajectory], greedy: Sequence[Trajectory]
    ) -> None:
        """Write the records of an evaluation: the environment as a whole, and each kind of its tasks."""
        kinds = sorted({trajectory.kind for trajectory in sampled if trajectory.kind})
        for kind in ["", *(kinds if len(kinds) > 1 else [])]:
            drawn, best = _scores(sampled, kind), _scores(greedy, kind)
            if not drawn or not best:
                continue
            interval = 1.96 * statistics.pstdev(drawn) / math.sqrt(len(drawn))
            record = EvalRecord(
                update, environment, kind, len(drawn), statistics.fmean(drawn), statistics.fmean(best), interval
            )
            self._write(record)
            self.view.evaluated(record)

    def close(self) -> None:
        """Take the view away, close the log."""
        self.view.close()
        if self._log is not None:
            self._log.close()

    def _write(self, record: UpdateRecord | EvalRecord | SpanRecord) -> None:
        if self._log is not None:
            self._log.write(record)


def _scores(trajectories: Sequence[Trajectory], kind: str) -> list[float]:
    return [t.reward for t in trajectories if t.is_valid and t.reward is not None and kind in ("", t.kind)]


def _tallies(batch: Batch) -> dict[str, EnvironmentTally]:
    samples = batch.samples
    tallies = {}
    for environment in sorted({sample.environment for sample in samples}):
        rewards = [sample.reward for sample in samples if sample.environment == environment]
        tallies[environment] = EnvironmentTally(statistics.fmean(rewards), len(rewards) / len(samples), len(rewards))
    return tallies
