"""A recipe that goes through every stage in seconds, and the real command line to run it with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.data.small_files import make_files

STEPS = 12

_RECIPE = """
name = "small"
output = "{folder}/run"
stages = ["tokenizer", "data", "pretrain", "report"]
threads = 1

[model]
preset = "nano"
vocab_size = 300
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
q_lora_rank = 16
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 16
index_n_heads = 4
index_head_dim = 16
intermediate_size = 48
moe_intermediate_size = 16
n_routed_experts = 4

[tokenizer]
train_bytes = 20_000

[data]
sources = ["path:{folder}/texts"]
held_out_fraction = 0.2

[pretrain]
context_length = 32
tokens = {tokens}
rows_per_step = 8
tokens_per_microbatch = 64
lr_muon = 0.02
lr_adamw = 0.003
warmup_steps = 2
dtype = "float32"
mtp_steps = 1
eval_every_steps = 5
eval_bytes = 500
save_every_steps = 3

[[pretrain.phases]]
name = "all"
until = 1.0
weights = {{ general = 1.0 }}
"""


def small_recipe(folder: Path, steps: int = STEPS) -> Path:
    """Write `recipe.toml` and the texts it reads into `folder`; its output is `folder / "run"`."""
    make_files(folder / "texts", count=60, words=40, seed=1)
    recipe = folder / "recipe.toml"
    recipe.write_text(_RECIPE.format(folder=folder, tokens=steps * 8 * 32))
    return recipe


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "glm5.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, plain text as wide as a message is long."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}


def glm5(*arguments: Any, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments), input=text, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )


def statuses(run: Path) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in json.loads((run / "run.json").read_text())["stages"]}
