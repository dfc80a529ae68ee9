"""Multi-head latent attention with sparse selection (GLM-5 report §2.1), and grouped-query attention as its baseline.

MLA, one token x after the input norm:

    c_q = norm(W_qa x)             q_h = W_qb,h c_q = [q_nope (192) | q_rope (64)]
    [c_kv | k_rope] = W_kva x      c_kv = norm(c_kv): with the rotated k_rope, the 576 numbers the cache keeps
    expanded:  k_h = [W_UK,h c_kv | k_rope]   v_h = W_UV,h c_kv      softmax(q_h · k_h / 16) v_h
    absorbed:  q~_h = [W_UK,h^T q_nope | q_rope] against the cache row itself, W_UV,h applied to the weighted row

The two forms are equal; MLA-256 means query, key and value heads are all 256 wide.
"""

import torch
from torch import Tensor, nn

from glm5.model.cache import Frame
from glm5.model.config import LATENT_NORM_EPS, ModelConfig
from glm5.model.indexer import Indexer
from glm5.model.layers import Linear, RMSNorm
from glm5.ops.attention import absorbed_attention, expanded_attention, sparse_absorbed_attention
from glm5.ops.rotary import rotate_half_split, rotate_interleaved
from glm5.ops.topk import mask_to_indices


class LatentAttention(nn.Module):
    """MLA. A layer that owns an indexer selects keys; one that does not reuses the selection it is handed."""

    def __init__(self, config: ModelConfig, layer: int, owns_indexer: bool) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.topk = config.num_attention_heads, config.index_topk
        self.nope, self.rope, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.kv_rank = config.kv_lora_rank
        self.scale = config.qk_head_dim**-0.5
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
        self.q_b_proj = Linear(config.q_lora_rank, self.heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.kv_rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.kv_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(self.kv_rank, self.heads * (self.nope + self.v_dim))
        self.o_proj = Linear(self.heads * self.v_dim, config.hidden_size)
        self.indexer = Indexer(config) if owns_indexer else None

    def muon_split(self) -> dict[str, tuple[int, ...]]:
        """Rows of one head in each projection that Muon orthogonalises head by head (GLM-5 report §2.1, "Muon Split").

        `kv_b_proj` holds a key block and a value block for every head: W_UK and W_UV are separate matrices in the
        report.
        """
        return {"q_b_proj.weight": (self.nope + self.rope,), "kv_b_proj.weight": (self.nope, self.v_dim)}

    def forward(self, x: Tensor, frame: Frame, selected: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: [B, T, d] after the input norm.
            selected: bool [B, T, S], the nearest earlier layer's selection, or None.

        Returns:
            [B, T, d], and the selection now in force (None: everything visible is attended to).
        """
        batch, length, _ = x.shape
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(q_latent).view(batch, length, self.heads, self.nope + self.rope)
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        q_rope = rotate_interleaved(q_rope, frame.cos, frame.sin)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope], dim=-1)
        k_rope = rotate_interleaved(k_rope[:, :, None], frame.cos, frame.sin)[:, :, 0]
        rows = torch.cat([self.kv_a_layernorm(latent), k_rope], dim=-1)
        if frame.cache is not None:
            rows = frame.cache.extend(self.layer, "latent", rows)

        if self.indexer is not None:
            selected = self._select(x.detach(), q_latent.detach(), rows.shape[1], frame)
        visible = frame.visible if selected is None else selected
        if frame.absorbed:
            out = self._absorbed(q_nope, q_rope, rows, visible, sparse=selected is not None)
        else:
            out = self._expanded(q_nope, q_rope, rows, visible)
        return self.o_proj(out.reshape(batch, length, -1)), selected

    def _select(self, x: Tensor, q_latent: Tensor, keys_seen: int, frame: Frame) -> Tensor | None:
        """Run the indexer where it can leave something out; a cache always gets this layer's keys."""
        assert self.indexer is not None
        choosing = frame.sparse and keys_seen > self.topk
        if frame.cache is None and not choosing:
            return None
        with torch.no_grad():
            keys = self.indexer.keys(x, frame)
            if frame.cache is not None:
                keys = frame.cache.extend(self.layer, "index_key", keys)
            return self.indexer.select(x, q_latent, keys, frame) if choosing else None

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, visible: Tensor | None) -> Tensor:
        """A key and a value for every head. Returns [B, T, H, v]."""
        latent, k_rope = rows.split([self.kv_rank, self.rope], dim=-1)
        kv = self.kv_b_proj(latent).view(*latent.shape[:2], self.heads, self.nope + self.v_dim).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.v_dim], dim=-1)
        q = torch.cat([q_nope.transpose(1, 2), q_rope.transpose(1, 2)], dim=-1)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.heads, -1, -1)], dim=-1)
        return expanded_attention(q, k, v, visible, self.scale).transpose(1, 2)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, visible: Tensor | None, sparse: bool) -> Tensor:
        """All heads against the latent rows themselves. Returns [B, T, H, v]."""
        assert visible is not None, "the absorbed form needs to know what is visible"
        weight = self.kv_b_proj.weight.to(rows.dtype).view(self.heads, self.nope + self.v_dim, self.kv_rank)
        w_uk, w_uv = weight.split([self.nope, self.v_dim], dim=1)
        q = torch.cat([torch.einsum("bthn,hnr->bthr", q_nope, w_uk), q_rope], dim=-1)
        if sparse:
            indices = mask_to_indices(visible, self.topk)
            out = sparse_absorbed_attention(q, rows, indices, self.kv_rank, self.scale)
        else:
            out = absorbed_attention(q, rows, visible, self.kv_rank, self.scale)
        return torch.einsum("bthr,hvr->bthv", out, w_uv)


class GroupedQueryAttention(nn.Module):
    """GLM-4.5's attention: partial half-split rotary, optional query/key norm. The report's baseline for MLA."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.groups, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.rope = int(config.head_dim * config.partial_rotary_factor)
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, self.heads * self.dim, bias=bias)
        self.k_proj = Linear(config.hidden_size, self.groups * self.dim, bias=bias)
        self.v_proj = Linear(config.hidden_size, self.groups * self.dim, bias=bias)
        self.o_proj = Linear(self.heads * self.dim, config.hidden_size)
        self.q_norm = RMSNorm(self.dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()

    def muon_split(self) -> dict[str, tuple[int, ...]]:
        """GQA is trained with whole matrices: Muon Split is MLA's remedy."""
        return {}

    def forward(self, x: Tensor, frame: Frame, selected: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, T, d] -> [B, T, d]; never selects."""
        batch, length, _ = x.shape
        q = self._rotate(self.q_norm(self.q_proj(x).view(batch, length, self.heads, self.dim)), frame)
        k = self._rotate(self.k_norm(self.k_proj(x).view(batch, length, self.groups, self.dim)), frame)
        v = self.v_proj(x).view(batch, length, self.groups, self.dim)
        if frame.cache is not None:
            k = frame.cache.extend(self.layer, "key", k)
            v = frame.cache.extend(self.layer, "value", v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = expanded_attention(q, k, v, frame.visible, self.dim**-0.5).transpose(1, 2)
        return self.o_proj(out.reshape(batch, length, -1)), selected

    def _rotate(self, x: Tensor, frame: Frame) -> Tensor:
        return torch.cat([rotate_half_split(x[..., : self.rope], frame.cos, frame.sin), x[..., self.rope :]], dim=-1)
