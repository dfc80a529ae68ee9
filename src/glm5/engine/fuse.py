"""Weights side by side in memory, so that one matrix product does the work of several.

Matrices that read the same input are moved into one tensor and the parameters become views of it: nothing is stored
twice, the module tree stays what it was, and writing new weights into a parameter is seen by the fused product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glm5.model.attention import LatentAttention
from glm5.model.experts import MoE
from glm5.model.layers import MLP
from glm5.model.transformer import Block


@dataclass(frozen=True, slots=True)
class FusedBlock:
    """A decoder layer and its stacked matrices.

    Attributes:
        attention_in: q_a_proj, kv_a_proj_with_mqa and the indexer's wk: what reads the normed hidden state.
        query_up: q_b_proj and the indexer's wq_b: what reads the query latent.
        w_uk [H, nope, r], w_uv [H, r, v]: views of kv_b_proj.
        gate_up, down: of the dense feed-forward network, or of the shared expert, or None.
    """

    block: Block
    attention: LatentAttention
    attention_in: Tensor
    query_up: Tensor
    w_uk: Tensor
    w_uv: Tensor
    gate_up: Tensor | None
    down: Tensor | None


def fuse(block: Block) -> FusedBlock:
    """Stack a block's matrices in place."""
    attention = block.self_attn
    assert isinstance(attention, LatentAttention)
    reads_x, reads_latent = [attention.q_a_proj, attention.kv_a_proj_with_mqa], [attention.q_b_proj]
    if attention.indexer is not None:
        reads_x.append(attention.indexer.wk)
        reads_latent.append(attention.indexer.wq_b)
        _to_fp32(attention.indexer.weights_proj)
    kv_b = attention.kv_b_proj.weight.detach().view(attention.heads, -1, attention.kv_rank)
    mlp: MLP | None
    if isinstance(block.mlp, MoE):
        _to_fp32(block.mlp.gate)
        mlp = block.mlp.shared_experts
    else:
        mlp = block.mlp
    return FusedBlock(
        block=block,
        attention=attention,
        attention_in=_stack(reads_x),
        query_up=_stack(reads_latent),
        w_uk=kv_b[:, : attention.nope],
        w_uv=kv_b[:, attention.nope :].transpose(1, 2),
        gate_up=None if mlp is None else _stack([mlp.gate_proj, mlp.up_proj]),
        down=None if mlp is None else mlp.down_proj.weight,
    )


def _stack(layers: Sequence[nn.Linear]) -> Tensor:
    """One tensor of all rows; the layers' weights become views of it."""
    stacked = torch.cat([layer.weight.detach() for layer in layers])
    start = 0
    for layer in layers:
        rows = layer.weight.shape[0]
        layer.weight.data = stacked[start : start + rows]
        start += rows
    return stacked


def _to_fp32(module: nn.Module) -> None:
    """The router and the indexer's head weights compute in fp32: converted once, not at every step."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.float()
