"""Training throughput: ours beside `transformers`, same configuration, weights and tokens, in one interleaved run.

    python benchmarks/training.py                    # nano and the 54M-parameter shape, fp32 and bf16
    python benchmarks/training.py --shapes nano --dtypes bfloat16 --rounds 9

One step is forward, backward and a fused AdamW update of next-token loss on packed rows; `transformers` has no
multi-token prediction, so ours is off. A last row shows ours with Muon Split instead of AdamW. Its network always
runs the lightning indexer, whose answer cannot matter while the row is shorter than top-k; ours does not run it then.
So that this is not mistaken for kernel speed, a second `transformers` row has its indexer replaced by "every earlier
token".

The physical limit is the machine's own matrix product, measured in the same run: share = useful operations per second
over that. Rounds are interleaved and the median taken: other work on the machine hits every contestant alike.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from glm5.model.checkpoint import save_checkpoint
from glm5.model.config import ModelConfig
from glm5.model.counts import count_parameters
from glm5.model.presets import preset
from glm5.model.transformer import Transformer
from glm5.train.objective import MicroBatch, PretrainingObjective
from glm5.train.optimizer import Optimizers

SHAPES: dict[str, tuple[int, int]] = {"nano": (16, 256), "micro": (4, 512)}  # rows, context length
RESULTS = Path(__file__).parent / "results"
Step = Callable[[], float]


def ours(model: Transformer, ids: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype, muon: bool) -> Step:
    """One training step of this package."""
    objective = PretrainingObjective(
        mtp_steps=0,
        mtp_loss_weight=0.0,
        mtp_rows_fraction=1.0,
        balance_loss_weight=0.0,
        loss_chunk_tokens=2048,
        dtype=dtype,
    )
    zeros = torch.zeros_like(ids)
    batch = MicroBatch(ids, targets, zeros, torch.arange(ids.shape[1]).expand_as(ids))
    counts = objective.counts(batch)
    trained = [p for name, p in model.named_parameters() if "indexer" not in name and not name.startswith("mtp.")]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizers = Optimizers.build(model, dtype=dtype) if muon else None
    adamw = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        losses = objective(model, batch, counts, 1.0)
        losses.total.backward()
        if optimizers is not None:
            optimizers.step(1e-4, 1e-4)
        else:
            adamw.step()
            adamw.zero_grad(set_to_none=True)
        return float(losses.main / counts[0])

    return step


def theirs(folder: Path, ids: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype, index: bool) -> Step:
    """One training step of `transformers`: fp32 weights under autocast for bf16, as its Trainer does."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    if not index:
        for layer in model.model.layers:
            layer.self_attn.indexer.forward = _everything
    trained = [p for name, p in model.named_parameters() if "indexer" not in name]
    adamw = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss)

    return step


def _everything(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    batch, length, _ = hidden_states.shape
    return torch.arange(length, dtype=torch.int32).expand(batch, length, length)


def useful_operations(config: ModelConfig, length: int) -> float:
    """Floating-point operations one token of training needs: 6 a weight used, and causal attention."""
    counts = count_parameters(config)
    weights = counts.active - counts.parts["indexer"] + counts.parts["output head"]
    attention = (
        config.num_hidden_layers * config.num_attention_heads * length * (config.qk_head_dim + config.v_head_dim)
    )
    return 6 * weights + 3 * attention  # 2 products of half a square, times 3 for forward and backward


def matrix_peak(dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    best = min(_seconds(lambda: float((a @ b)[0, 0])) for _ in range(12))
    return 2 * 2048 * 1024 * 1024 / best


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def measure(shape: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """All contestants on one shape."""
    rows, length = SHAPES[shape]
    config = preset(shape)
    assert config.index_topk >= length, "above top-k transformers would attend to something else"
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(1, config.vocab_size, (rows, length + 1), generator=generator)
    ids = stream[:, :-1].contiguous()
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100  # `transformers` shifts the labels itself and never predicts past the row
    model = Transformer(config)
    model.init_weights(0)
    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(model, Path(name))
        muon_model = Transformer(config)
        muon_model.load_state_dict(model.state_dict())
        contestants = {
            "transformers": theirs(Path(name), ids, ids, dtype, index=True),
            "transformers, indexer skipped": theirs(Path(name), ids, ids, dtype, index=False),
            "glm5": ours(model, ids, targets, dtype, muon=False),
            "glm5, Muon Split": ours(muon_model, ids, targets, dtype, muon=True),
        }
    first = {who: step() for who, step in contestants.items()}  # warm-up, and the proof that all compute the same
    assert max(first.values()) - min(first.values()) < 2e-2, first
    times: dict[str, list[float]] = {who: [] for who in contestants}
    peaks = []
    for _ in range(rounds):
        peaks.append(matrix_peak(dtype))
        for who, step in contestants.items():
            times[who].append(_seconds(step))
    peak = statistics.median(peaks)
    speed = {who: rows * length / statistics.median(seconds) for who, seconds in times.items()}
    needed = useful_operations(config, length)
    return {
        "shape": shape, "dtype": str(dtype).removeprefix("torch."), "rows": rows, "context": length,
        "first_loss": first,
        "tokens_per_second": speed, "share_of_peak": {who: s * needed / peak for who, s in speed.items()},
        "ratio": {
            who: statistics.median([a / b for a, b in zip(times["transformers"], seconds, strict=True)])
            for who, seconds in times.items()
        },
        "peak_gflops": peak / 1e9, "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("shape", "dtype", "who", "tokens/s", "times transformers", "share of matrix peak")
    results = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            result = measure(shape, getattr(torch, dtype), arguments.rounds)
            results.append(result)
            for who, speed in result["tokens_per_second"].items():
                share = f"{result['share_of_peak'][who]:.0%} of {result['peak_gflops']:.0f} GFLOP/s"
                table.add_row(shape, dtype, who, f"{speed:,.0f}", f"{result['ratio'][who]:.2f}", share)
            table.add_section()
    Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
