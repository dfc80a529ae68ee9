"""Routed experts without gradients: only the experts somebody chose, each with all its tokens at once.

Three forms with one result. `routed_experts` groups tokens by expert, so its matrix shapes follow the batch; where a
few tokens meet experts so small that calling them one by one costs more than computing them, it runs `all_experts`
instead. `tile_experts` runs every chosen expert on the whole tile, so its shapes never change. The reference is
`ops.experts.experts_reference`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm5.ops.rows import linear

_FEW_TOKENS = range(3, 17)  # with one or two tokens the chosen experts alone are quicker, with many the waste shows
_SMALL_EXPERTS = 1 << 19  # weights of all gate and up projections together: they stay in a core's cache


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate x) * up x): [N, d], [2i, d] (gate rows first), [d, i] -> [N, d]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate).mul_(up), down)


def routed_experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sum of each token's chosen experts.

    Args:
        x: [N, d]; gate_up: [E, 2i, d]; down: [E, d, i]; chosen: int64 [N, k]; weights: fp32 [N, k].

    Returns:
        [N, d].
    """
    tokens, top_k = chosen.shape
    if tokens == 1:
        outs = torch.cat([swiglu(x, gate_up[expert], down[expert]) for expert in chosen[0].tolist()])
        return weights.to(x.dtype) @ outs
    if tokens in _FEW_TOKENS and gate_up.numel() <= _SMALL_EXPERTS and x.device.type == "cpu":
        return all_experts(x, gate_up, down, chosen, weights)
    flat = chosen.view(-1)
    order = flat.argsort(stable=True)
    sorted_x = x.index_select(0, order // top_k)
    outs = torch.empty_like(sorted_x)
    start = 0
    for expert, count in enumerate(torch.bincount(flat, minlength=gate_up.shape[0]).tolist()):
        if count:
            rows = slice(start, start + count)
            outs[rows] = swiglu(sorted_x[rows], gate_up[expert], down[expert])
            start += count
    # Back by the inverse permutation, a gather: the order of additions is fixed.
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    back = outs.index_select(0, place).view(tokens, top_k, -1)
    return torch.bmm(weights.to(x.dtype)[:, None], back)[:, 0]


def all_experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As `routed_experts`, every expert on every token, those not chosen with weight 0: two products in all."""
    tokens, experts = x.shape[0], gate_up.shape[0]
    shares = x.new_zeros(tokens, experts).scatter_(1, chosen, weights.to(x.dtype))
    gate, up = linear(x, gate_up.flatten(0, 1)).view(tokens, experts, 2, -1).unbind(2)
    hidden = F.silu(gate).mul_(up).mul_(shares[:, :, None])
    return torch.bmm(hidden.transpose(0, 1), down.transpose(1, 2)).sum(0)


def tile_experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As `routed_experts`, every product over all of `x`: a token's result cannot depend on who else chose what."""
    tokens, top_k = chosen.shape
    outs = x.new_empty(tokens, top_k, x.shape[1])
    for expert in chosen.unique().tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        outs[token, place] = swiglu(x, gate_up[expert], down[expert])[token]
    total = torch.zeros_like(x)
    for place in range(top_k):
        total += weights[:, place, None].to(x.dtype) * outs[:, place]
    return total
