"""Asynchronous against synchronous RL where tools are slow: the same updates, wall clock, reward, and who waited.

    python benchmarks/async_rl.py CHECKPOINT [--updates 8] [--repeats 2] [--json FILE]

The checkpoint is a model that was taught the letters tasks. Grading a rollout takes as long as an agent's tests might:
seconds, with a long tail, asleep. The k-th rollout of a task sleeps equally long in every arm of a repeat. The arms
differ in nothing but `staleness_bound` and take turns, the other way round in every second repeat, so that whatever
else the machine does falls on all of them alike.

Then the simulation (docs/simulation.md) is fitted to the synchronous runs alone and foretells all of them, and with the
same costs says what many machines would do: each GPU brings an engine as fast as the one measured, and a prompt. What
is foretold of an arm can only be right if the machine was as busy in both: look at the loads, and repeat.
"""

import argparse
import json
import os
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rl_run import ENVIRONMENTS, Told, mean_over, trained

from glm5.recipe.rl import RLSection
from glm5.rl.calibrate import fit
from glm5.rl.costs import Costs, Loop
from glm5.rl.metrics import GENERATE, IDLE, SYNC, UPDATE, EvalRecord
from glm5.rl.simulate import simulate

TARGET, TOLERANCE = 1.6, 0.15  # at least so much faster than synchronous; foretold within
PROMPTS, SAMPLES, SLOTS, MAX_VERSION_LAG = 8, 8, 128, 6
TAIL = {"median": 1.2, "sigma": 1.0, "most": 12.0}  # of the tool's seconds
KINDS = ["reverse", "sort", "count"]  # of letters tasks, those that recipes/nano.toml teaches
GPUS = (64, 256, 1024)
LUCK = range(20)  # seeds of a simulation that foretells; the mean is what is told


@dataclass(frozen=True, slots=True)
class Arm:
    """One run. Seconds from the first rollouts asked for to the last push; idle shares are of them."""

    bound: int
    repeat: int
    seconds: float
    trainer_idle: float
    engine_idle: float  # nothing being generated
    staleness: float  # versions, mean over samples
    load: float  # of the machine in the run's last minute, the run itself included
    before: EvalRecord
    after: EvalRecord


@dataclass(frozen=True, slots=True)
class Foretold:
    """What the simulation says of one bound, and how far that is from the mean of what was measured."""

    bound: int
    measured: float
    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """Simulated seconds of one update and idle shares, with as many GPUs that make rollouts."""

    gpus: int
    bound: int
    seconds: float
    faster: float  # than synchronous
    trainer_idle: float
    engine_idle: float


def settings(bound: int, repeat: int, updates: int, held_out: int) -> RLSection:
    """Equal for all arms of a repeat but for the bound."""
    options = {**TAIL, "luck": repeat, "kinds": KINDS}
    task = {"environment": f"{ENVIRONMENTS}:SlowLetters", "options": options, "held_out_tasks": held_out}
    values = {
        "tasks": [task], "updates": updates, "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES,
        "staleness_bound": bound, "max_version_lag": MAX_VERSION_LAG, "context_length": 128, "max_tokens": 64,
        "lr_muon": 1e-3, "lr_adamw": 2e-4, "schedule": "constant", "eval_every_updates": updates, "eval_seed": repeat,
        "save_every_updates": updates, "engine": {"max_sequences": SLOTS, "max_batch_tokens": 1024},
    }  # fmt: skip
    return RLSection.model_validate(values)


def arm(told: Told, bound: int, repeat: int) -> Arm:
    """Read a run's spans."""
    trainer = [span for span in told.spans if span.who == "trainer"]
    waits = [span for span in trainer if span.what == IDLE + "waiting for rollouts"]
    start = min(span.start for span in waits)
    end = max(span.end for span in trainer if span.what in (UPDATE, SYNC))
    idle = sum(span.end - span.start for span in waits)
    generating, until = 0.0, start
    for span in sorted((s for s in told.spans if s.what == GENERATE), key=lambda s: s.start):
        generating += max(0.0, min(span.end, end) - max(span.start, until))
        until = max(until, span.end)
    seconds = end - start
    lag = statistics.fmean(update.staleness_mean for update in told.updates)
    return Arm(
        bound, repeat, seconds, idle / seconds, 1 - generating / seconds, lag, os.getloadavg()[0], *told.held_out
    )


def foretell(costs: list[Costs], updates: int, arms: list[Arm]) -> list[Foretold]:
    """Simulate every bound that was measured, with the costs of each synchronous run."""
    rows = []
    for bound in sorted({each.bound for each in arms}):
        loop = Loop(1, SLOTS, PROMPTS, SAMPLES, bound, MAX_VERSION_LAG)
        seconds = statistics.fmean(simulate(loop, each, updates, luck).seconds for each in costs for luck in LUCK)
        measured = statistics.fmean(each.seconds for each in arms if each.bound == bound)
        rows.append(Foretold(bound, measured, seconds, seconds / measured - 1))
    return rows


def clusters(costs: Costs, bounds: list[int], updates: int) -> list[Cluster]:
    """The measured costs with many engines; the trainer grows with its batch, so that an update takes what it took."""
    rows = []
    for gpus in GPUS:
        grown = replace(costs, update_seconds_per_token=costs.update_seconds_per_token * PROMPTS / gpus)
        loops = [Loop(gpus, SLOTS, gpus, SAMPLES, bound, MAX_VERSION_LAG) for bound in bounds]
        outcomes = [simulate(loop, grown, updates) for loop in loops]
        for loop, each in zip(loops, outcomes):
            faster = outcomes[0].seconds / each.seconds
            idle = each.trainer_idle, each.engine_idle
            rows.append(Cluster(gpus, loop.staleness_bound, each.seconds / updates, faster, *idle))
    return rows


def report(arms: list[Arm], foretold: list[Foretold], extended: list[Cluster]) -> None:
    """Print the three tables."""
    console = Console(width=130)
    bounds = sorted({each.bound for each in arms})
    times = {(each.bound, each.repeat): each.seconds for each in arms}
    repeats = sorted({each.repeat for each in arms})
    table = Table(title=f"measured: {len(repeats)} runs each, medians; held-out tasks sampled, all runs together")
    for name in ("bound", "seconds", "faster", f"≥ {TARGET}", "trainer idle", "engine idle", "versions behind", "load"):
        table.add_column(name, justify="right")
    table.add_column("success before", justify="right")
    table.add_column("after", justify="right")
    for bound in bounds:
        own = [each for each in arms if each.bound == bound]
        faster = statistics.median(times[0, repeat] / times[bound, repeat] for repeat in repeats)
        seconds, trainer, engine, lag, load = (
            statistics.median(getattr(each, name) for each in own)
            for name in ("seconds", "trainer_idle", "engine_idle", "staleness", "load")
        )
        verdict = "" if bound == 0 else "yes" if faster >= TARGET else "no"
        before, after = (mean_over([getattr(each, when) for each in own], "sampled") for when in ("before", "after"))
        table.add_row(
            str(bound), f"{seconds:.1f}", f"{faster:.2f}", verdict, f"{trainer:.0%}", f"{engine:.0%}", f"{lag:.2f}",
            f"{load:.1f}",
            f"{before[0]:.3f} ± {before[1]:.3f}", f"{after[0]:.3f} ± {after[1]:.3f}",
        )  # fmt: skip
    console.print(table)
    table = Table(
        "bound", "measured s", "foretold s", "error", f"within {TOLERANCE:.0%}", title="simulated from bound 0"
    )
    for row in foretold:
        met = "yes" if abs(row.error) <= TOLERANCE else "no"
        table.add_row(str(row.bound), f"{row.measured:.1f}", f"{row.seconds:.1f}", f"{row.error:+.1%}", met)
    console.print(table)
    table = Table(
        "GPUs", "bound", "s an update", "faster", "trainer idle", "engine idle", title="the same costs, grown"
    )
    for each in extended:
        idle = f"{each.trainer_idle:.0%}", f"{each.engine_idle:.0%}"
        table.add_row(str(each.gpus), str(each.bound), f"{each.seconds:.1f}", f"{each.faster:.2f}", *idle)
    console.print(table)


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--updates", type=int, default=8, help="of every run")
    parser.add_argument("--repeats", type=int, default=2, help="of every arm")
    parser.add_argument("--bounds", type=int, nargs="+", default=[1, 2], help="to be compared with 0")
    parser.add_argument("--held-out", type=int, default=200, help="tasks of an evaluation")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if min(options.updates, options.repeats, options.held_out) < 1:
        parser.error("--updates, --repeats and --held-out must be at least 1")
    bounds = sorted({0, *options.bounds})
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    arms, costs = [], []
    for repeat in range(options.repeats):
        for bound in bounds if repeat % 2 == 0 else reversed(bounds):
            name = f"repeat {repeat + 1}, bound {bound}"
            told = trained(name, settings(bound, repeat, options.updates, options.held_out), options.checkpoint, repeat)
            arms.append(arm(told, bound, repeat))
            if bound == 0:
                costs.append(fit(told.updates, told.spans, told.lifetimes))
    foretold = foretell(costs, options.updates, arms)
    extended = clusters(costs[0], bounds, updates=8)
    report(arms, foretold, extended)
    if options.json:
        written = {
            "arms": [asdict(row) for row in arms],
            "foretold": [asdict(row) for row in foretold],
            "clusters": [asdict(row) for row in extended],
        }
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
