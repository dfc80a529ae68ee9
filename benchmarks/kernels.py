"""Kernels of a training step on CPU beside torch's own, and beside the machine's matrix product.

    python benchmarks/kernels.py

Attention: ours against `scaled_dot_product_attention`, forward and backward, causal. Experts: ours against every
expert on every token. Each line is the median of interleaved rounds.
"""

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import interleaved

from glm5.ops.attention import expanded_attention
from glm5.ops.experts import experts_reference, grouped_experts

ROUNDS = 9


def attention(dtype: torch.dtype, rows: int, heads: int, length: int, width: int) -> dict[str, float]:
    """Forward and backward of causal attention."""
    q, k, v = (torch.randn(rows, heads, length, width).to(dtype).requires_grad_() for _ in range(3))
    grad = torch.randn(rows, heads, length, width).to(dtype)
    scale = width**-0.5
    return interleaved(
        {
            "torch": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).backward(grad),
            "glm5": lambda: expanded_attention(q, k, v, None, scale).backward(grad),
        },
        ROUNDS,
    )


def experts(dtype: torch.dtype, tokens: int, hidden: int, width: int, count: int, top_k: int) -> dict[str, float]:
    """Forward and backward of routed experts."""
    x = torch.randn(tokens, hidden).to(dtype).requires_grad_()
    gate_up, down = (
        (torch.randn(*shape) * 0.05).to(dtype).requires_grad_()
        for shape in ((count, 2 * width, hidden), (count, hidden, width))
    )
    chosen = torch.stack([torch.randperm(count)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    grad = torch.randn(tokens, hidden).to(dtype)
    return interleaved(
        {
            "torch": lambda: experts_reference(x, gate_up, down, chosen, weights).backward(grad),
            "glm5": lambda: grouped_experts(x, gate_up, down, chosen, weights).backward(grad),
        },
        ROUNDS,
    )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = Table("kernel", "dtype", "torch ms", "glm5 ms", "times")
    for dtype in (torch.float32, torch.bfloat16):
        lines = {
            "attention 16 x 4 heads x 256 x 48": attention(dtype, 16, 4, 256, 48),
            "attention 4 x 8 heads x 1024 x 64": attention(dtype, 4, 8, 1024, 64),
            "experts 4096 x 128, 8 of width 128, top 2": experts(dtype, 4096, 128, 128, 8, 2),
            "experts 2048 x 384, 12 of width 384, top 3": experts(dtype, 2048, 384, 384, 12, 3),
        }
        for name, seconds in lines.items():
            figures = [f"{1e3 * seconds[who]:.1f}" for who in ("torch", "glm5")]
            short = str(dtype).removeprefix("torch.")
            table.add_row(name, short, *figures, f"{seconds['torch'] / seconds['glm5']:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
