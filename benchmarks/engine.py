"""The engine beside transformers, llama.cpp and the machine's limits: one model, one thread, turn by turn.

    python benchmarks/engine.py [--rounds 3] [--quick]

Random weights in fp32, GLM-5's architecture at 115 M parameters. Decoding is the median step, prefill the best round.
The limit of decoding is the memory bandwidth (weights and cache rows a step must read), that of prefill the machine's
matrix product (multiplications of the network alone, selection included).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llamacpp
import torch
import transformers
from rich.console import Console
from rich.table import Table

from glm5.deploy.gguf import write_gguf
from glm5.engine.core import EngineCore
from glm5.engine.records import EngineSettings, SamplingParams
from glm5.model.checkpoint import load_checkpoint, save_checkpoint
from glm5.model.config import ModelConfig
from glm5.model.presets import preset
from glm5.model.transformer import Transformer

CONFIG = preset(
    "nano", vocab_size=4096, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
    q_lora_rank=256, kv_lora_rank=512, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64, index_topk=512,
    index_n_heads=16, index_head_dim=128, intermediate_size=2048, moe_intermediate_size=256, n_routed_experts=32,
    num_experts_per_tok=4, max_position_embeddings=16384, num_nextn_predict_layers=0, eos_token_id=(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many sequences with prompts of so many tokens, continued by `count` tokens."""

    batch: int
    prompt: int
    count: int = 16


@dataclass(slots=True)
class Times:
    """Seconds of prefill rounds, and of single decoding steps."""

    prefill: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def ours(core: EngineCore, prompts: list[list[int]], count: int, times: Times) -> None:
    """Through the scheduler and the sampler, as a server would."""
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    for number, ids in enumerate(prompts):
        core.add(core.prepare(str(number), ids, params))
    began = time.perf_counter()
    while any(each.pending > 1 for each in core.scheduler.waiting + core.scheduler.running):
        core.step()
    times.prefill.append(time.perf_counter() - began)
    while core.has_work:
        began = time.perf_counter()
        made = core.step()
        if len(made) == len(prompts):
            times.steps.append(time.perf_counter() - began)


class Clock(transformers.LogitsProcessor):
    """Notes when `generate` has each step's logits."""

    def __init__(self) -> None:
        self.ticks = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.ticks.append(time.perf_counter())
        return scores


@torch.no_grad()
def theirs(model: Any, prompts: list[list[int]], count: int, times: Times) -> None:
    """`transformers.generate`."""
    clock = Clock()
    ids = torch.tensor(prompts)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
        logits_processor=[clock],
    )  # fmt: skip
    spans = [end - start for start, end in zip(clock.ticks, clock.ticks[1:])]
    times.prefill.append(spans[0])
    times.steps += spans[1:]


def llama(file: Path, prompts: list[list[int]], count: int, times: Times) -> None:
    """llama.cpp, one sequence at a time."""
    [result] = llamacpp.continuations(file, prompts, count, flash=True)
    times.prefill.append(result.prefill_seconds)
    times.steps.append(result.decode_seconds / (count - 1))


def bandwidth() -> float:
    """Bytes a second one thread reads."""
    x = torch.ones(64 * 2**20)
    return x.nbytes / _best(lambda: x.sum())


def product_rate() -> float:
    """Floating-point operations a second of a large fp32 matrix product on one thread."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / _best(lambda: a @ a)


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def step_bytes(config: ModelConfig, model: Transformer, scenario: Scenario) -> float:
    """What one decoding step must read: used weights once, and per sequence the selected rows and all index keys."""
    experts = sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
    rest = sum(p.nbytes for p in model.parameters()) - experts - model.model.embed_tokens.weight.nbytes
    used = 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** scenario.batch
    rows = min(scenario.prompt, config.index_topk) * (config.kv_lora_rank + config.qk_rope_head_dim)
    keys = scenario.prompt * config.index_head_dim if scenario.prompt > config.index_topk else 0
    return rest + experts * used + 4 * scenario.batch * config.num_hidden_layers * (rows + keys)


def prefill_operations(config: ModelConfig, model: Transformer, length: int) -> float:
    """Multiplications and additions of a prompt: weights, index scores, attention in its cheaper form."""
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    total = sum(p.numel() for p in model.parameters()) - 2 * model.lm_head.weight.numel()
    weights = 2 * length * (total - experts * (1 - config.num_experts_per_tok / config.n_routed_experts))
    index = length**2 * config.index_n_heads * config.index_head_dim if length > config.index_topk else 0
    visible = sum(min(position, config.index_topk) for position in range(length))
    attention = 2 * visible * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return weights + config.num_hidden_layers * (index + attention)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short prompts only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    scenarios = [Scenario(1, 512), Scenario(32, 512), Scenario(1, 2048), Scenario(1, 8192, 8)]
    if arguments.quick:
        scenarios = [Scenario(1, 512), Scenario(8, 128)]
    generator = torch.Generator().manual_seed(0)
    bytes_a_second, operations_a_second = bandwidth(), product_rate()
    table = Table("", "prompt", "ours", "batch-invariant", "transformers", "llama.cpp", "limit", title="tokens/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Transformer(CONFIG)
        model.init_weights(0)
        save_checkpoint(model, folder)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        has_llama = llamacpp.install() is None
        if has_llama:
            write_gguf(model, folder / "model.gguf")
        settings = EngineSettings(cache_bytes=2 * 2**30, prefix_cache=False)
        fast = EngineCore(model, settings, None)
        exact = EngineCore(
            load_checkpoint(folder), EngineSettings(cache_bytes=2**30, prefix_cache=False, batch_invariant=True), None
        )
        for scenario in scenarios:
            times = {name: Times() for name in ("ours", "batch-invariant", "transformers", "llama.cpp")}
            for _ in range(arguments.rounds):
                shape = (scenario.batch, scenario.prompt)
                prompts = torch.randint(1, CONFIG.vocab_size, shape, generator=generator).tolist()
                ours(fast, prompts, scenario.count, times["ours"])
                theirs(reference, prompts, scenario.count, times["transformers"])
                if scenario.prompt <= 2048:
                    ours(exact, prompts, scenario.count, times["batch-invariant"])
                if has_llama and scenario.batch == 1:
                    llama(folder / "model.gguf", prompts, scenario.count, times["llama.cpp"])
            tokens = scenario.batch * scenario.prompt
            limit = operations_a_second * tokens / scenario.batch
            limit /= prefill_operations(CONFIG, model, scenario.prompt)
            shown = [f"{tokens / min(each.prefill):.0f}" if each.prefill else "-" for each in times.values()]
            table.add_row(f"prefill, {scenario.batch} sequences", str(scenario.prompt), *shown, f"{limit:.0f}")
            limit = bytes_a_second * scenario.batch / step_bytes(CONFIG, model, scenario)
            shown = [
                f"{scenario.batch / statistics.median(each.steps):.1f}" if each.steps else "-"
                for each in times.values()
            ]
            table.add_row(f"decode, {scenario.batch} sequences", str(scenario.prompt), *shown, f"{limit:.1f}")
    Console(width=120).print(table)
    print(f"one thread: {bytes_a_second / 1e9:.1f} GB/s read, {operations_a_second / 1e9:.0f} GFLOP/s fp32")


if __name__ == "__main__":
    main()
