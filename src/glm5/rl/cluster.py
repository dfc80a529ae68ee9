"""Starts and stops the processes of a run, and asks them things; what the driver sees of Ray."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayTaskError

from glm5.errors import GLM5Error
from glm5.recipe.rl import RLSection
from glm5.rl.learner import UpdateReport
from glm5.rl.orchestrator import Batch
from glm5.rl.processes import LearnerProcess, OrchestratorProcess


class ProcessDied(Exception):
    """A trainer rank or the orchestrator is gone; what it knew is in the checkpoint and the journal."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where a stage works.

    Attributes:
        checkpoint: model it begins with. teachers: by environment.
        folder: of the stage.
    """

    settings: RLSection
    checkpoint: Path
    folder: Path
    seed: int
    teachers: dict[str, Path]


class Trainer:
    """All trainer ranks as one."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._start()

    def _start(self) -> None:
        run, size = self._run, self._run.settings.trainers
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        actor = ray.remote(LearnerProcess).options(num_cpus=0, num_gpus=gpus)
        self._ranks = [actor.remote(run.settings, run.checkpoint, run.folder, rank, size, port) for rank in range(size)]

    def restart(self) -> None:
        """End what is left of the ranks and start them anew, from the last checkpoint."""
        for rank in self._ranks:
            ray.kill(rank)
        self._start()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method on every rank; the answer of the first.

        Raises:
            ProcessDied: a rank is gone.
        """
        large = [ray.put(argument) for argument in arguments]  # once, whatever the number of ranks
        return answer([getattr(rank, method).remote(*large) for rank in self._ranks])[0]

    def update(self, batch: Batch) -> UpdateReport:
        """Train on a batch."""
        report: UpdateReport = self.ask("update", batch.samples)
        return report


class Cluster:
    """Every process of a run; a context manager, because they must not outlive it.

    Attributes:
        trainer: its ranks. orchestrator: a Ray actor; see `ask`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __enter__(self) -> Self:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray()
        self.trainer = Trainer(self.run)
        self._start_orchestrator()
        return self

    def _start_orchestrator(self) -> None:
        run = self.run
        actor = ray.remote(OrchestratorProcess).options(num_cpus=0, max_concurrency=10_000)
        self.orchestrator = actor.remote(run.settings, run.checkpoint, run.folder, run.seed)
        self.ask("open", run.teachers)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call the orchestrator.

        Raises:
            ProcessDied: it is gone.
        """
        return answer(getattr(self.orchestrator, method).remote(*arguments))

    def begin(self, method: str, *arguments: Any) -> Any:
        """Call the orchestrator without waiting; `answer` waits."""
        return getattr(self.orchestrator, method).remote(*arguments)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(ProcessDied, GLM5Error, ray.exceptions.RayError):  # closing must not hide what made us close
            answer(self.orchestrator.close.remote(), timeout=20)
        if self._owns_ray:
            ray.shutdown()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a small one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens on this machine only
    ray.init(
        include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        **({} if "RAY_ADDRESS" in os.environ else {"_node_ip_address": "127.0.0.1", "object_store_memory": 1 << 30}),
    )  # fmt: skip


def answer(reference: Any, timeout: float | None = None) -> Any:
    """What a call came to.

    Raises:
        ProcessDied: the process is gone.
        GLM5Error: as the process raised it.
    """
    try:
        return ray.get(reference, timeout=timeout)
    except RayActorError as error:
        raise ProcessDied(str(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, GLM5Error):
            raise error.cause from error
        raise
