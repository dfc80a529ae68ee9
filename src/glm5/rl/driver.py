"""Asynchronous reinforcement learning on one page.

                     groups                        batch                           weights, version + 1
    environments ───────────▶ orchestrator ─────────────────────▶ trainer ranks ─────────────────────────┐
         ▲ tools, grading         │  ▲                                                                    │
         │                        │  └── capacity = (bound + version + 1) * B - (accepted + running)      │
    agents ──── OpenAI / Anthropic form ──▶ gateway ── token ids ──▶ router ──▶ rollout engines ◀─────────┘
                                             keeps ids, log-probabilities and versions      hash compared

Three kinds of process, carried by Ray on one machine as on many: the orchestrator (with the gateway), rollout engines,
trainer ranks. This file is the fourth, which only says what happens when. Synchronous training is the same page with a
staleness bound of 0.

Any of them may die at any moment. Engines are replaced while everything goes on. A trainer comes back from its last
checkpoint and is given the batches since then again, from the journal (rl/journal.py); so does the whole run when the
orchestrator or this process dies. Finished rollouts are never lost, and in the resulting weights each is trained once.
"""

from glm5.errors import GLM5Error
from glm5.rl.cluster import Cluster, ProcessDied, Run
from glm5.rl.learner import UpdateReport
from glm5.rl.metrics import SYNC, UPDATE
from glm5.rl.monitor import Monitor
from glm5.rl.orchestrator import Batch

_RESTARTS = 8  # of the orchestrator or the trainer, in one run


def reinforce(run: Run, monitor: Monitor) -> None:
    """Train until `updates`, then publish the model to `folder/model`.

    Raises:
        KeyboardInterrupt: it was interrupted; everything finished is saved.
        GLM5Error: it cannot go on; the message says why, and everything finished is saved.
    """
    for _ in range(_RESTARTS):
        try:
            with Cluster(run) as cluster:
                return _train(cluster, monitor)
        except ProcessDied as error:
            last = error
    raise GLM5Error(f"the run's processes died {_RESTARTS} times, the last time: {last}. Start again to go on")


def _train(cluster: Cluster, monitor: Monitor) -> None:
    settings, trainer = cluster.run.settings, cluster.trainer
    update = trainer.ask("updates")
    monitor.begin(cluster, update)
    before = trainer.ask("fingerprint") if update == 0 else None
    push(cluster, update)  # no engine serves before it has the trainer's weights
    cluster.ask("restore", update, update // settings.push_every)
    if update == 0:
        evaluate(cluster, update, monitor)
        trainer.ask("save")
    cluster.ask("start")
    while update < settings.updates:
        batch = monitor.wait_for(cluster.begin("next_batch"), "rollouts")
        with monitor.span("trainer", UPDATE):
            report = train(cluster, batch)
        update = report.update
        if update % settings.push_every == 0:
            with monitor.span("trainer", SYNC):
                push(cluster, update)
        last = update == settings.updates
        if last or update % settings.save_every_updates == 0:
            trainer.ask("save")
        monitor.updated(report, batch)
        if last or update % settings.eval_every_updates == 0:
            evaluate(cluster, update, monitor)
    if before is not None:
        assert_moved(before, trainer.ask("fingerprint"))
    trainer.ask("publish")


def train(cluster: Cluster, batch: Batch) -> UpdateReport:
    """One update; if the trainer dies in it, it is brought back to where it was first."""
    trainer = cluster.trainer
    for _ in range(_RESTARTS):
        try:
            for earlier in _lost(cluster, batch):
                trainer.update(earlier)
            return trainer.update(batch)
        except ProcessDied:
            trainer.restart()
    raise GLM5Error(f"update {batch.update} killed the trainer {_RESTARTS} times; everything before it is saved")


def _lost(cluster: Cluster, batch: Batch) -> list[Batch]:
    """The batches between the trainer's state and this one; none unless it was just brought back."""
    done = cluster.trainer.ask("updates")
    return [] if done == batch.update - 1 else cluster.ask("batches", done, batch.update)


def push(cluster: Cluster, update: int) -> None:
    """Give the engines the trainer's weights. The version is the number of pushes, so that it survives a restart."""
    settings = cluster.run.settings
    version = update // settings.push_every
    whole, delta, expected = cluster.trainer.ask("weights", version, settings.delta_sync)
    cluster.ask("push", whole, delta, version, expected)


def evaluate(cluster: Cluster, update: int, monitor: Monitor) -> None:
    """Held-out tasks, sampled with a fixed seed and greedy, while no new rollouts begin."""
    settings = cluster.run.settings
    cluster.ask("pause", True)
    for task in settings.tasks:
        if task.held_out_tasks:
            arguments = (task.environment, task.held_out_tasks)
            sampled = monitor.wait_for(cluster.begin("evaluate", *arguments, False, settings.eval_seed), "evaluation")
            greedy = monitor.wait_for(cluster.begin("evaluate", *arguments, True, settings.eval_seed), "evaluation")
            monitor.evaluated(update, task.environment, sampled, greedy)
    cluster.ask("pause", False)


def assert_moved(before: dict[str, float], after: dict[str, float]) -> None:
    """No stage may do nothing silently: every parameter it claims to train must have changed."""
    still = [name for name, value in before.items() if after[name] == value]
    if still:
        raise GLM5Error(f"training did not change {len(still)} of {len(before)} parameters: {', '.join(still[:5])}")
