"""What reasoning RL teaches, and what the same updates teach when the rewards are dealt out by chance.

    python benchmarks/reasoning_rl.py CHECKPOINT [KEY=VALUE ...] [--recipe recipes/nano.toml] [--seeds 0 1 2]

The checkpoint is the model that supervised fine-tuning ended with. Every seed trains with the recipe's `[reasoning_rl]`
twice: with its rewards, and with the rewards of each group in random order among its rollouts. Then everything is the
same but what is rewarded, so whatever the second run gains is not learned from the reward. Held-out tasks are answered
before and after, sampled and greedily; ± is the 95 % interval of a success rate on so many tasks.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rl_run import ENVIRONMENTS, binomial_interval, trained

from glm5.recipe import load_recipe
from glm5.recipe.rl import RLSection
from glm5.rl.metrics import EvalRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: evaluations of all tasks and of their kinds before and after, and the rewards of its updates."""

    seed: int
    rewards: str  # "true" or "shuffled"
    before: list[EvalRecord]
    after: list[EvalRecord]
    curve: list[float]
    minutes: float

    def gain(self, way: str) -> float:
        """Of success on all held-out tasks."""
        return float(getattr(self.after[0], way) - getattr(self.before[0], way))


def settings(section: RLSection, seed: int, shuffled: bool) -> RLSection:
    """The recipe's, with evaluations at the beginning and the end only."""
    values = section.model_dump(exclude_unset=True)
    values |= {"eval_every_updates": section.updates, "eval_seed": seed}
    for task in values["tasks"]:
        if shuffled:
            options = {"wrapped": task["environment"], "samples": section.samples_per_prompt}
            task["options"] = options | {"options": task.get("options", {})}
            task["environment"] = f"{ENVIRONMENTS}:Shuffled"
    return RLSection.model_validate(values)


def measure(section: RLSection, checkpoint: Path, seed: int, shuffled: bool) -> Outcome:
    """One run."""
    rewards = "shuffled" if shuffled else "true"
    began = time.perf_counter()
    told = trained(f"seed {seed}, {rewards} rewards", settings(section, seed, shuffled), checkpoint, seed)
    minutes = (time.perf_counter() - began) / 60
    before, after = ([r for r in told.evaluations if r.step == step] for step in (0, section.updates))
    return Outcome(seed, rewards, before, after, [update.reward_mean for update in told.updates], minutes)


def report(outcomes: list[Outcome]) -> None:
    """Print a row for every run, the kinds of tasks, and what both ways gain on average."""
    console = Console(width=130)
    table = Table(title=f"{outcomes[0].before[0].n} held-out tasks")
    for name in ("seed", "rewards", "sampled before", "after", "greedy before", "after", "minutes"):
        table.add_column(name, justify="right")
    for each in outcomes:
        scores = [score(record, way) for way in ("sampled", "greedy") for record in (each.before[0], each.after[0])]
        table.add_row(str(each.seed), each.rewards, *scores, f"{each.minutes:.1f}")
    console.print(table)
    table = Table(title="by kind, true rewards, mean over seeds")
    for name in ("kind", "sampled before", "after", "greedy before", "after"):
        table.add_column(name, justify="right")
    true = [each for each in outcomes if each.rewards == "true"]
    for place, kind in enumerate(record.kind for record in true[0].before):
        means = [
            f"{statistics.fmean(getattr(records[place], way) for records in side):.3f}"
            for way in ("sampled", "greedy")
            for side in ([each.before for each in true], [each.after for each in true])
        ]
        table.add_row(kind or "all", *means)
    console.print(table)
    for rewards in ("true", "shuffled"):
        gains = [each.gain("sampled") for each in outcomes if each.rewards == rewards]
        spread = f" ± {statistics.stdev(gains):.3f} (deviation over seeds)" if len(gains) > 1 else ""
        console.print(f"{rewards} rewards: {statistics.fmean(gains):+.3f}{spread}, sampled")


def score(record: EvalRecord, way: str) -> str:
    """With its interval."""
    share = getattr(record, way)
    return f"{share:.3f} ± {binomial_interval(share, record.n):.3f}"


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe: reasoning_rl.updates=20")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/nano.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    section = load_recipe(options.recipe, options.overrides).reasoning_rl
    if section is None:
        parser.error(f"{options.recipe} has no [reasoning_rl]")
    outcomes = []
    for seed in options.seeds:
        for shuffled in (False, True):
            outcomes.append(measure(section, options.checkpoint, seed, shuffled))
    report(outcomes)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
