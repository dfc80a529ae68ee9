"""What keeps RL from collapsing: IcePop, a deterministic top-k, fresh rollouts; each left out while something is wrong.

    python benchmarks/collapse.py CHECKPOINT [--updates 40] [--seeds 0 1 2] [--quick] [--json FILE]

The checkpoint is a model that was taught the letters tasks. Three things are done to its rollouts, each in several
strengths, and each with the gradient as it is (`policy_gradient`) and with IcePop (GLM-5 report §3.2, eq. 1):

    engine noise    the engine's matrices are off by a share of their size, as low precision and other kernels make them
    top-k           the indexer selects by the high byte of a 16-bit key, and among equal keys by chance, as some fast
                    kernels do; here with so small a top-k that selecting matters (report §3.2: RL collapses)
    staleness       rollouts may be begun so many versions ahead

The loop is the real one without its processes: orchestrator, gateway, engine and trainer take turns in this one. A run
has collapsed if the mean reward of five updates fell below half of its best and stayed there, or nothing is finite.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from glm5.engine import forward
from glm5.engine.engine import Engine
from glm5.engine.records import EngineSettings
from glm5.environments.base import load_environment
from glm5.errors import GLM5Error
from glm5.recipe.rl import LossName, RLSection
from glm5.rl.engines.local import LocalEngine
from glm5.rl.engines.pool import EnginePool
from glm5.rl.gateway import Gateway, GatewaySettings
from glm5.rl.journal import Journal
from glm5.rl.learner import Learner
from glm5.rl.orchestrator import Orchestrator
from glm5.rl.replay import RolloutLog
from glm5.rl.weights import WeightUpdate
from glm5.text.tokenizer import Tokenizer
from glm5.train.parallel import World

TOPK = 32  # keys a token attends to in the top-k arms; a rollout has about twice as many
KINDS = ["reverse", "sort", "count"]  # of letters tasks, those that recipes/nano.toml teaches
WINDOW = 5  # updates that a mean is taken over
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Condition:
    """One arm."""

    wrong: str  # what is done to the rollouts, for the table
    loss: LossName
    noise: float = 0.0  # of the engine's matrices, relative to their root mean square
    sparse: bool = False  # select keys at all
    random_ties: bool = False
    bound: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """One update."""

    reward: float
    entropy: float
    mismatch_kl: float
    masked_share: float
    staleness: float


@dataclass(slots=True)
class Curve:
    """One run. `failure` says why it ended early, if it did."""

    condition: Condition
    seed: int
    points: list[Point] = field(default_factory=list)
    failure: str = ""

    @property
    def means(self) -> list[float]:
        """Rewards, each with those of the updates before it."""
        rewards = [point.reward for point in self.points]
        return [statistics.fmean(rewards[end - WINDOW : end]) for end in range(WINDOW, len(rewards) + 1)]

    @property
    def collapsed_at(self) -> int | None:
        """The update from which on the reward stayed low; None if it did not."""
        if self.failure:
            return len(self.points) + 1
        low = [mean < 0.5 * max(self.means) for mean in self.means]
        return len(self.points) - low[::-1].index(False) + 1 if low[-1:] == [True] else None


def conditions(quick: bool) -> list[Condition]:
    """All arms."""
    losses: tuple[LossName, ...] = ("policy_gradient", "icepop")
    found = []
    for loss in losses:
        found += [Condition(f"engine noise {noise:g}", loss, noise) for noise in ((0, 0.2) if quick else (0, 0.1, 0.2))]
        found.append(Condition("top-k, deterministic", loss, sparse=True))
        found.append(Condition("top-k, ties by chance", loss, sparse=True, random_ties=True))
        found += [Condition(f"staleness {bound}", loss, bound=bound) for bound in ((4,) if quick else (1, 4, 16))]
    return sorted(found, key=lambda each: each.wrong)  # the losses beside each other


class NoisyEngine(LocalEngine):
    """Serves weights that are a little off, differently in every version and alike in every arm."""

    def __init__(self, engine: Engine, noise: float) -> None:
        super().__init__("engine", engine)
        self._noise = noise

    async def update(self, source: WeightUpdate, version: int) -> str:
        """As `LocalEngine.update`, with noise."""
        luck = torch.Generator().manual_seed(version)
        return await super().update(
            WeightUpdate({name: self._off(tensor, luck) for name, tensor in source.tensors.items()}), version
        )

    def _off(self, tensor: Tensor, luck: torch.Generator) -> Tensor:
        if tensor.ndim < 2:
            return tensor
        return tensor + self._noise * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=luck)


def select_by_chance(scores: Tensor, k: int) -> Tensor:
    """As `ops.selection.select_positions`, by the high byte of a half-precision key; equal ones in random order."""
    keys = (scores.half().view(torch.int16) & -256).view(torch.half).float()
    shuffled = torch.randperm(scores.shape[1])
    best = keys[:, shuffled].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = shuffled[best]
    allowed = scores.gather(1, chosen) > float("-inf")
    ordered = torch.where(allowed, chosen, scores.shape[1]).sort(dim=-1).values
    return ordered.masked_fill(ordered == scores.shape[1], -1)


@contextmanager
def selection(by_chance: bool) -> Iterator[None]:
    """Have the engine, and not the trainer, select so."""
    exact = forward.select_positions
    if by_chance:
        forward.select_positions = select_by_chance
    try:
        yield
    finally:
        forward.select_positions = exact


def with_topk(checkpoint: Path, folder: Path, topk: int) -> Path:
    """A copy of a checkpoint that selects so few keys."""
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"index_topk": topk}), encoding="utf-8")
    return folder


def settings(condition: Condition, updates: int, rate: float) -> RLSection:
    """Of an arm. Groups without a difference stay in, so that the rewards are those of all rollouts."""
    values = {
        "tasks": [{"environment": "letters"}], "updates": updates, "prompts_per_step": 16, "samples_per_prompt": 8,
        "context_length": 128, "max_tokens": 64, "staleness_bound": condition.bound,
        "max_version_lag": condition.bound + updates, "filter_zero_variance": False, "loss": condition.loss,
        "lr_muon": rate, "lr_adamw": rate / 5, "schedule": "constant", "dtype": "float32",
    }  # fmt: skip
    return RLSection.model_validate(values)


async def run(condition: Condition, seed: int, updates: int, rate: float, checkpoint: Path, folder: Path) -> Curve:
    """The loop of `rl/driver.py` in one process, with an engine that something is wrong with."""
    section = settings(condition, updates, rate)
    learner = Learner(section, checkpoint, folder / "learner", World())
    engine = NoisyEngine(Engine(checkpoint, EngineSettings(max_sequences=128), dtype=torch.float32), condition.noise)
    gateway = Gateway(EnginePool([engine]), Tokenizer.load(checkpoint), "glm-5", GatewaySettings(128, 64))
    log = RolloutLog(folder / "rollouts.jsonl")
    environments = {"letters": load_environment("letters", {"kinds": KINDS})}
    orchestrator = Orchestrator(section, environments, gateway, Journal(folder / "journal.jsonl"), log, seed)
    await engine.update(WeightUpdate(learner.weights()), 0)
    producing = asyncio.create_task(orchestrator.produce())
    curve = Curve(condition, seed)
    try:
        for update in range(1, updates + 1):
            batch = await orchestrator.next_batch()
            report = learner.update(batch.samples)
            lags = [update - 1 - min(v for v in sample.versions if v >= 0) for sample in batch.samples]
            reward = statistics.fmean(sample.reward for sample in batch.samples)
            told = report.entropy, report.mismatch_kl, report.masked_share
            curve.points.append(Point(reward, *told, statistics.fmean(lags)))
            await engine.update(WeightUpdate(learner.weights()), update)
            await orchestrator.advance(update)
    except GLM5Error as error:
        curve.failure = str(error)
    finally:
        producing.cancel()
        with suppress(asyncio.CancelledError):
            await producing
        await orchestrator.close()
        log.close()
        await engine.close()
    return curve


def sparkline(values: list[float]) -> str:
    """Each value from 0 to 1 as a bar; at most forty of them."""
    thinned = values[:: max(1, -(-len(values) // 40))]
    return "".join(BARS[round(min(1, max(0, value)) * (len(BARS) - 1))] for value in thinned)


def ends(values: list[float]) -> str:
    """The first and the last window's mean."""
    return " → ".join(f"{statistics.fmean(part):.2g}" for part in (values[:WINDOW], values[-WINDOW:]))


def report(curves: list[Curve]) -> None:
    """Print a row for every run."""
    table = Table(title=f"first → last: means of {WINDOW} updates")
    for name in ("wrong", "loss", "seed", "reward", "first → last", "entropy", "mismatch KL", "masked", "behind"):
        table.add_column(name)
    table.add_column("collapsed at")
    for curve in curves:
        rewards, entropies, gaps, masked, behind = (
            [getattr(point, name) for point in curve.points]
            for name in ("reward", "entropy", "mismatch_kl", "masked_share", "staleness")
        )
        row = [curve.condition.wrong, curve.condition.loss, str(curve.seed), sparkline(rewards)]
        if curve.points:  # none where the first update already failed
            row += [ends(rewards), ends(entropies), ends(gaps), f"{statistics.fmean(masked):.1%}"]
            row += [f"{statistics.fmean(behind):.1f}", "" if curve.collapsed_at is None else str(curve.collapsed_at)]
        table.add_row(*row)
    Console(width=160).print(table)


def main() -> None:
    """Run every arm and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=1.5e-3, help="learning rate of the matrices; high on purpose")
    parser.add_argument("--only", default="", help="arms whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="fewer strengths, one seed, 15 updates")
    parser.add_argument("--json", type=Path, help="also write all curves to this file")
    options = parser.parse_args()
    updates, seeds = (15, [0]) if options.quick else (options.updates, options.seeds)
    arms = [each for each in conditions(options.quick) if options.only in each.wrong]
    if not arms:
        parser.error(
            f"no arm has {options.only!r} in its name; there are: {sorted({c.wrong for c in conditions(False)})}"
        )
    torch.set_num_threads(1)
    curves = []
    with tempfile.TemporaryDirectory() as home:
        few = with_topk(options.checkpoint, Path(home) / "few", TOPK)
        for seed in seeds:
            for condition in arms:
                folder = Path(home) / "run"
                checkpoint = few if condition.sparse else options.checkpoint
                with selection(condition.random_ties):
                    curve = asyncio.run(run(condition, seed, updates, options.rate, checkpoint, folder))
                shutil.rmtree(folder)
                curves.append(curve)
                bars = sparkline([point.reward for point in curve.points])
                print(f"{condition.wrong}, {condition.loss}, seed {seed}: {bars} {curve.failure}", flush=True)
    report(curves)
    if options.json:
        options.json.write_text(json.dumps([asdict(curve) for curve in curves]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
