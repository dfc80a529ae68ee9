"""A run's folder as a nano run would leave it, made of smooth curves and seeded noise; the same every time."""

import json
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm5.data.manifest import FORMAT
from glm5.train.metrics import EvalRecord, MetricsLog, SampleRecord, StepRecord

TOKENS_PER_STEP = 8192
PHASES = [("general", 0.0), ("code and reasoning", 0.62), ("anneal", 0.88)]
SOURCES = {
    "python": ("code", {"PSF-2.0": 2210}, 2210, 31_400_000, 9_020_000, {"too long a line": 214, "near duplicate": 131}),
    "manuals": (
        "reference",
        {"MIT": 800, "BSD-3-Clause": 700, "GFDL-1.3": 300, "CC0-1.0": 40},
        1840,
        12_900_000,
        3_480_000,
        {"too short": 92},
    ),
    "factbook": ("prose", {"public domain": 262}, 262, 4_100_000, 1_010_000, {"near duplicate": 7}),
    "reasoning": ("procedural", {"Apache-2.0": 40_000}, 40_000, 9_800_000, 3_730_000, {}),
}
# Prompt → what is made of it, from the first step to the last.
SAMPLES = {
    "def add(": [
        "e e  tht\n\n a eeo,nn  s  r tea((i",
        "self, self, self):\n    self.self = self",
        "x, y):\n    return x.x(y)\n\n\ndef x(",
        "x, y):\n    return x + y\n\n\ndef sub(x, y):\n    return x",
        "a: int, b: int) -> int:\n    # a <b>sum</b> & nothing else\n    return a + b\n",
    ],
    "The capital of Iceland is": [
        " tn  aeo\nh(r  e s, .e t  di",
        " the the of the and the of the country",
        " the capital of the Republic of the Sea",
        " located in the North Atlantic, and the population is",
        " Reykjavik, the northernmost capital of a sovereign state.",
    ],
    "Q: 17 + 25 = ?</script><script>alert(1)</script>\nA:": [" e1 t", " 1 1 1 1", " 32", " 41", " 42"],
}
RECIPE = """# A model of a few million weights, in minutes.
name = "nano <b>"           # escaped, of course

[model]
hidden_size = 128
rope_theta = 1_000_000.0
tie_word_embeddings = false

[[data.source]]
name = "python"
weight = 0.5
phases = ["general", 'anneal']
"""


@dataclass
class Shape:
    """What differs between the fake runs."""

    steps: int = 600
    nan_at: tuple[int, ...] = ()
    status: str = "done"
    eval_every: int = 50
    baselines: dict[str, float] = field(
        default_factory=lambda: {"trigram with backoff": 2.21, "xz -9e": 1.93, "gzip -9": 2.38}
    )


def write_fake_run(folder: Path, shape: Shape | None = None) -> Path:
    """Write a whole run into `folder` and return it."""
    shape = shape or Shape()
    seconds = shape.steps * TOKENS_PER_STEP / 5800
    stages = [
        stage("tokenizer", "done", 14.2, {"vocabulary": 2048, "bytes per token": 3.42}, ["tokenizer/tokenizer.json"]),
        stage("data", "done", 41.7, {"documents": 44312, "left out": 444, "contaminated": 0}, ["data/shards"]),
        stage("pretrain", shape.status, seconds, {"resumed": 1, "moved": "every weight"}, ["pretrain/model"]),
        stage("sft", "pending", 0.0, {}, []),
        stage("reasoning_rl", "pending", 0.0, {}, []),
        stage("agentic_rl", "skipped", 0.0, {}, []),
    ]
    dump(folder / "run.json", {"name": "nano-a", "recipe": "recipes/nano.toml", "stages": stages})
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    dump(folder / "data/manifest.json", manifest())
    write_training(folder / "pretrain", shape)
    dump(folder / "pretrain/model/config.json", config())
    parts = {
        "embedding": 524288,
        "attention": 610304,
        "indexer": 70144,
        "experts": 2949120,
        "mtp": 730112,
        "head": 262144,
    }
    counts = {"parameters": {"total": 4_416_000, "stored": 5_146_112, "active": 1_812_480}, "parts": parts}
    dump(folder / "pretrain/counts.json", counts)
    dump(folder / "pretrain/baselines.json", {"held_out bits per byte": shape.baselines})
    for path in folder.rglob("*"):  # the page tells when its files were written
        os.utime(path, (1_767_268_800, 1_767_268_800))
    return folder


def stage(name: str, status: str, seconds: float, summary: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    """An entry of run.json."""
    return {"name": name, "status": status, "seconds": seconds, "summary": summary, "outputs": outputs}


def manifest() -> dict[str, Any]:
    """A corpus of four sources."""
    sources = [
        {
            "name": name,
            "kind": kind,
            "folder": name,
            "documents": documents,
            "bytes": size,
            "tokens": tokens,
            "held_out_documents": documents // 50,
            "held_out_bytes": size // 50,
            "licenses": licenses,
            "dropped": dropped,
        }
        for name, (kind, licenses, documents, size, tokens, dropped) in SOURCES.items()
    ]
    return {
        "tokenizer": "0123456789abcdef",
        "vocab_size": 2048,
        "eos_id": 0,
        "held_out_fraction": 0.02,
        "seed": 0,
        "sources": sources,
        "format": FORMAT,
    }


def config() -> dict[str, Any]:
    """A nano model in the names of its config.json."""
    return {
        "model_type": "glm_moe_dsa",
        "num_hidden_layers": 6,
        "first_k_dense_replace": 1,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "kv_lora_rank": 64,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 96,
        "index_topk": 64,
        "num_nextn_predict_layers": 1,
        "vocab_size": 2048,
        "max_position_embeddings": 1024,
    }


def write_training(home: Path, shape: Shape) -> None:
    """metrics.jsonl of one training stage."""
    noise = random.Random(5)
    log = MetricsLog(home / "metrics.jsonl")
    for step in range(shape.steps + 1):
        done = step / max(1, shape.steps)
        tokens = step * TOKENS_PER_STEP
        if step:
            log.write(step_record(step, done, tokens, shape, noise))
        if step % shape.eval_every == 0 or step == shape.steps:
            log.write(eval_record(step, done, tokens, noise))
        if step % (2 * shape.eval_every) == 0 or step == shape.steps:
            for prompt, texts in SAMPLES.items():
                log.write(SampleRecord(step, tokens, prompt, texts[min(4, int(5 * done))]))
    log.close()


def step_record(step: int, done: float, tokens: int, shape: Shape, noise: random.Random) -> StepRecord:
    """A step at `done` (0 … 1) of the training."""
    loss = 2.05 + 5.6 * math.exp(-14 * done) + 0.9 * (1 - done) + noise.gauss(0, 0.09)
    warm = min(1.0, done / 0.02)
    decay = 1.0 if done < 0.5 else 0.5 * (1 + math.cos(math.pi * (done - 0.5) * 2)) * 0.95 + 0.05
    spike = 9.0 if step % 197 == 0 else 1.0
    return StepRecord(
        step=step,
        tokens=tokens,
        phase=next(name for name, begin in reversed(PHASES) if done >= begin),
        loss=math.nan if step in shape.nan_at else loss,
        mtp_loss=[loss + 0.7 + 0.25 * d + noise.gauss(0, 0.03) for d in range(3)],
        balance_loss=1e-4 * (1.02 + 0.5 * math.exp(-9 * done) + noise.gauss(0, 0.01)),
        grad_norm=math.nan
        if step in shape.nan_at
        else spike * (0.35 + 3 * math.exp(-20 * done)) * math.exp(noise.gauss(0, 0.2)),
        lr_muon=0.02 * warm * decay,
        lr_adamw=0.003 * warm * decay,
        tokens_per_second=5800 + noise.gauss(0, 160) - (2600 if step % 150 == 1 else 0),
        seconds=tokens / 5800,
        load_violation=0.25 + 2.2 * math.exp(-11 * done) + abs(noise.gauss(0, 0.05)),
    )


def eval_record(step: int, done: float, tokens: int, noise: random.Random) -> EvalRecord:
    """Held-out scores and expert loads at `done` of the training."""
    ends = {"python": 1.52, "manuals": 1.86, "factbook": 2.12, "reasoning": 1.02}
    scores = {name: end + (2.6 - 0.8 * end) * math.exp(-9 * done) + 0.35 * (1 - done) for name, end in ends.items()}
    unevenness = 0.12 + 0.9 * math.exp(-6 * done)
    loads = [[math.exp(noise.gauss(0, unevenness)) for _ in range(16)] for _ in range(5)]
    shares = [[load / sum(layer) for load in layer] for layer in loads]
    return EvalRecord(step, tokens, {**scores, "all": sum(scores.values()) / 4}, shares)


def dump(path: Path, value: Any) -> None:
    """Write JSON, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
