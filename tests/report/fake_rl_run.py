"""The folder of an RL stage as a run leaves it: curves that rise, simulated spans, rollouts of a real tokenizer."""

import math
import random
from pathlib import Path

from glm5.rl.costs import Costs, Distribution, Loop
from glm5.rl.metrics import EnvironmentTally, EvalRecord, MetricsLog, UpdateRecord
from glm5.rl.records import Trajectory, Turn
from glm5.rl.replay import RolloutLog
from glm5.rl.simulate import simulate
from glm5.text.tokenizer import Tokenizer
from tests.report.fake_run import dump, stage

ENVIRONMENTS = ("reverse", "repair")
TEXT = "naïve → 漢字 </script>\n<think>s t o n e is the word, so the answer is e n o t s</think> enots\n"
COSTS = Costs(
    Distribution.lognormal(120, 0.8, 900), 0.02, 0.0008, update_seconds=5, push_seconds=0.8,
    turns=Distribution.lognormal(2, 0.4, 4), tool_seconds=Distribution.lognormal(1, 0.9, 20),
)  # fmt: skip


def write_fake_rl_run(folder: Path, updates: int = 40, tokens_per_turn: int = 60) -> Path:
    """Write a run whose second stage is reinforcement, and return its folder."""
    home = folder / "reasoning_rl"
    dump(
        folder / "run.json",
        {
            "name": "rl-a",
            "stages": [
                stage("tokenizer", "done", 3.0, {"vocabulary": 300}, []),
                stage("reasoning_rl", "running", 0, {}, []),
            ],
        },
    )
    tokenizer = Tokenizer.train([TEXT] * 3, vocab_size=300)
    tokenizer.save(folder / "tokenizer")
    write_metrics(home / "metrics.jsonl", updates)
    with RolloutLog(home / "rollouts.jsonl") as log:
        for number in range(updates * 6):
            log.append(rollout(tokenizer, number, version=number // 6, updates=updates, tokens=tokens_per_turn))
    return folder


def write_metrics(path: Path, updates: int) -> None:
    """The record of a stage that learns."""
    noise = random.Random(1)
    log = MetricsLog(path)
    outcome = simulate(Loop(3, 12, 4, 4, 1), COSTS, updates, record_spans=True)
    for span in outcome.spans:
        log.write(span)
    for step in range(updates + 1):
        done = step / updates
        level = 0.15 + 0.7 / (1 + math.exp(8 * (0.45 - done)))
        if step:
            log.write(update(step, level + noise.gauss(0, 0.03), outcome.seconds * done, noise))
        if step % 10 == 0 or step == updates:
            for place, name in enumerate(ENVIRONMENTS):
                score = level - 0.2 * place
                log.write(EvalRecord(step, name, "", 64, score, score + 0.06, 0.09))
    log.close()


def update(step: int, reward: float, seconds: float, noise: random.Random) -> UpdateRecord:
    """One update's record."""
    fresh = noise.randrange(6, 12)
    return UpdateRecord(
        step=step, version=step, seconds=seconds, reward_mean=reward, reward_std=0.4, success=reward * 0.9,
        entropy=0.4 + 1.2 * math.exp(-step / 15), grad_norm=0.5 + abs(noise.gauss(0, 0.2)), loss=-0.01,
        lr_muon=2e-3, lr_adamw=2e-4, tokens_sampled=4200 * step, tokens_trained=3600 * step, samples=16,
        groups_used=4, groups_filtered=step % 3, staleness_mean=1 - fresh / 16, staleness_max=1,
        staleness_histogram=[fresh, 16 - fresh], mismatch_kl=3e-4 + abs(noise.gauss(0, 1e-4)), mismatch_max=0.2,
        masked_share=0.004, acceptance_length=1.8, prefix_reuse=0.6, dropped={"environment": 1, "stale": step % 2},
        wait_seconds={"rollouts": 3.0, "evaluation": 0.4},
        per_environment={name: EnvironmentTally(reward - 0.2 * i, 0.5, 8) for i, name in enumerate(ENVIRONMENTS)},
    )  # fmt: skip


def rollout(tokenizer: Tokenizer, number: int, version: int, updates: int, tokens: int) -> Trajectory:
    """A rollout of two turns whose second begins as the first ended; each seventh failed."""
    luck = random.Random(number)
    context = tokenizer.encode("Reverse the word: stone.")
    made = Trajectory(f"r{number}", f"t{number}", ENVIRONMENTS[number % 2], f"g{number // 2}", kind="words")
    for place in range(2):
        ids = (tokenizer.encode(TEXT) * (1 + tokens // 20))[:tokens]
        logprobs = [-luck.expovariate(2) for _ in ids]
        versions = [version] * (tokens // 2) + [version + place] * (tokens - tokens // 2)
        made.turns.append(Turn(context, ids, logprobs, versions, "tool_calls", "engine 0"))
        context = context + ids + tokenizer.encode("tool: enots\n")
    made.started, made.ended = 0.0, luck.uniform(1, 40)
    if number % 7 == 6:
        made.failure = "environment: the sandbox <b>died</b>"
    else:
        made.reward = float(luck.random() < version / updates)
        made.reward_parts, made.evidence = {"exact": made.reward}, "expected enots"
    return made
