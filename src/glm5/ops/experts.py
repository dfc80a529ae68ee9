"""Routed experts: each token's k chosen SwiGLU experts, weighted and summed.

Tokens are sorted by expert, so that every expert is two matrix products over a contiguous slice, and brought back by
the inverse permutation. Both directions are gathers, never scatters: the result does not depend on the order of
additions, hence not on the number of threads. The whole thing is one custom operator, opaque to `torch.compile`,
because the slice sizes depend on data; around it everything else can be compiled into one graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def experts_reference(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token, masked: slow and obvious. Arguments as `grouped_experts`."""
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        gate, up = F.linear(x, gate_up[expert].to(x.dtype)).chunk(2, dim=-1)
        share = (weights * (chosen == expert)).sum(-1, keepdim=True).to(x.dtype)
        out = out + share * F.linear(F.silu(gate) * up, down[expert].to(x.dtype))
    return out


def grouped_experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sum of each token's chosen experts.

    Args:
        x: [N, d] tokens.
        gate_up: [E, 2i, d], gate rows first; down: [E, d, i]. Any float dtype; used in `x`'s.
        chosen: int64 [N, k] expert of each slot.
        weights: [N, k] fp32 weight of each slot.

    Returns:
        [N, d].
    """
    return _grouped_experts(x, gate_up.to(x.dtype), down.to(x.dtype), chosen, weights)[0]


def _expert_slices(chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Slots in expert order, where each slot went, and how many slots each expert has."""
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    return order, place, torch.bincount(flat, minlength=num_experts).tolist()


@torch.library.custom_op("glm5::grouped_experts", mutates_args=())
def _grouped_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward; also returns what backward needs: pre-activations and outputs, in expert order."""
    top_k = chosen.shape[1]
    order, place, counts = _expert_slices(chosen, gate_up.shape[0])
    sorted_x = x[order // top_k]
    pre = x.new_empty(order.numel(), gate_up.shape[1])
    out = x.new_empty(order.numel(), x.shape[1])
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        torch.mm(sorted_x[rows], gate_up[expert].T, out=pre[rows])
        gate, up = pre[rows].chunk(2, dim=-1)
        torch.mm(F.silu(gate) * up, down[expert].T, out=out[rows])
        start += count
    combined = (out[place].unflatten(0, chosen.shape) * weights.to(x.dtype)[..., None]).sum(1)
    return combined, pre, out


@_grouped_experts.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    slots = chosen.numel()
    return (
        torch.empty_like(x),
        x.new_empty(slots, gate_up.shape[1]),
        x.new_empty(slots, x.shape[1]),
    )


@torch.library.custom_op("glm5::grouped_experts_backward", mutates_args=())
def _grouped_experts_backward(
    grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor, pre: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate_up, down and weights."""
    top_k = chosen.shape[1]
    order, place, counts = _expert_slices(chosen, gate_up.shape[0])
    token = order // top_k
    sorted_x = x[token]
    sorted_grad = grad[token]
    grad_weights = (sorted_grad.float() * out).sum(-1)[place].view_as(chosen).to(weights.dtype)
    grad_out = sorted_grad * weights.reshape(-1)[order].to(x.dtype)[:, None]
    grad_sorted_x = torch.empty_like(sorted_x)
    grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        gate, up = pre[rows].chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        activated = gate * sigmoid
        torch.mm(grad_out[rows].T, activated * up, out=grad_down[expert])
        grad_hidden = grad_out[rows] @ down[expert]
        grad_gate = grad_hidden * up * (sigmoid + activated * (1 - sigmoid))
        grad_pre = torch.cat([grad_gate, grad_hidden * activated], dim=-1)
        torch.mm(grad_pre.T, sorted_x[rows], out=grad_gate_up[expert])
        torch.mm(grad_pre, gate_up[expert], out=grad_sorted_x[rows])
        start += count
    grad_x = grad_sorted_x[place].unflatten(0, chosen.shape).sum(1)
    return grad_x, grad_gate_up, grad_down, grad_weights


@_grouped_experts_backward.register_fake
def _(
    grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor, pre: Tensor, out: Tensor
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down), torch.empty_like(weights)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, pre, out = output
    ctx.save_for_backward(*inputs, pre, out)


def _backward(ctx, grad, *_unused):  # type: ignore[no-untyped-def]
    x, gate_up, down, chosen, weights, pre, out = ctx.saved_tensors
    grads = _grouped_experts_backward(grad.contiguous(), x, gate_up, down, chosen, weights, pre, out)
    return grads[0], grads[1], grads[2], None, grads[3]


torch.library.register_autograd("glm5::grouped_experts", _backward, setup_context=_setup_context)
