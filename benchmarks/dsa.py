"""What sparse attention saves on a CPU, with GLM-5's head dimensions: one decoding step of one layer, one thread.

    python benchmarks/dsa.py [--lengths 32768 131072]

Core: indexer, selection and attention over the chosen rows against absorbed attention over all rows. Module: the same
with all projections of the layer. Keys and rows are bf16; the indexer's arithmetic is fp32. Median of interleaved
rounds.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from timing import interleaved

from glm5.model.presets import preset
from glm5.ops.gathered import contiguous_attention, gathered_attention
from glm5.ops.index_scores import index_scores
from glm5.ops.rows import linear
from glm5.ops.selection import select_positions

CONFIG = preset("glm-5")
ROUNDS = 5


@torch.inference_mode()
def measure(length: int) -> dict[str, float]:
    """Seconds of both cores, and of the projections each form needs."""
    config, dtype = CONFIG, torch.bfloat16
    heads, width = config.num_attention_heads, config.kv_lora_rank + config.qk_rope_head_dim
    pool = torch.randn(length, width).to(dtype)
    keys = torch.randn(length, config.index_head_dim).to(dtype)
    q = torch.randn(1, 1, heads, width).to(dtype) * config.qk_head_dim**-0.5
    index_q = torch.randn(1, config.index_n_heads, config.index_head_dim)
    head_weights = torch.randn(1, config.index_n_heads)
    x = {size: torch.randn(1, size).to(dtype) for size in (config.hidden_size, config.q_lora_rank)}
    value = torch.randn(1, heads * config.v_head_dim).to(dtype)
    q_a = torch.randn(config.q_lora_rank + width, config.hidden_size).to(dtype)
    q_b = torch.randn(heads * config.qk_head_dim, config.q_lora_rank).to(dtype)
    kv_b = torch.randn(heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank).to(dtype)
    o = torch.randn(config.hidden_size, heads * config.v_head_dim).to(dtype)
    index_b = torch.randn(config.index_n_heads * config.index_head_dim, config.q_lora_rank).to(dtype)
    index_k = torch.randn(config.index_head_dim + config.index_n_heads, config.hidden_size).to(dtype)
    query, latent = torch.randn(heads, 1, config.qk_nope_head_dim).to(dtype), q[0].transpose(0, 1)

    def sparse() -> object:
        scores = index_scores(index_q, head_weights, keys)
        slots = select_positions(scores, config.index_topk)
        return gathered_attention(q, pool, slots, None, config.kv_lora_rank)

    def projections() -> object:
        linear(x[config.hidden_size], q_a)
        linear(x[config.q_lora_rank], q_b)
        torch.bmm(query, kv_b[:, : config.qk_nope_head_dim])
        values = kv_b[:, config.qk_nope_head_dim :].transpose(1, 2)
        torch.bmm(latent[..., : config.kv_lora_rank], values)
        return linear(value, o)

    def index_projections() -> object:
        return linear(x[config.q_lora_rank], index_b), linear(x[config.hidden_size], index_k)

    return interleaved(
        {
            "dense": lambda: contiguous_attention(q, pool, None, config.kv_lora_rank),
            "sparse": sparse,
            "projections": projections,
            "index projections": index_projections,
        },
        ROUNDS,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 131072])
    torch.set_num_threads(1)
    columns = ("keys", "dense core ms", "sparse core ms", "core gain", "dense module ms", "sparse module ms", "gain")
    table = Table(*columns, "GB/s dense", title="one token, one layer of GLM-5")
    row_bytes = 2 * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim)
    for length in parser.parse_args().lengths:
        times = measure(length)
        dense, sparse = times["dense"], times["sparse"]
        dense_module = dense + times["projections"]
        sparse_module = sparse + times["projections"] + times["index projections"]
        numbers = (dense * 1e3, sparse * 1e3, dense / sparse, dense_module * 1e3, sparse_module * 1e3)
        shown = [f"{number:.1f}" for number in (*numbers, dense_module / sparse_module)]
        table.add_row(str(length), *shown, f"{length * row_bytes / dense / 1e9:.1f}")
    Console(width=120).print(table)
    index_bytes = 2 * CONFIG.index_head_dim
    print(f"cache: {row_bytes} + {index_bytes} bytes a token and layer; a page holds both")


if __name__ == "__main__":
    main()
