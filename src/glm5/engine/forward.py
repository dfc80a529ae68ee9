"""The network over a ragged batch, its keys in a paged cache. Same modules, same weights as `model.Transformer`.

What is different from the plain forward pass is only what serving needs: tokens of many sequences lie flat, keys are
read through slots, fused matrices replace pairs of small ones, and each kind of attention (see `batch`) has its own
path. The plain model is the reference (tests/engine/test_forward.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glm5.engine.batch import FEW_QUERIES, Batch, Context
from glm5.engine.cache import PagedCache
from glm5.engine.fuse import FusedBlock, fuse
from glm5.errors import UsageError
from glm5.model.experts import MoE
from glm5.model.layers import RMSNorm
from glm5.model.transformer import Block, Transformer
from glm5.ops.gathered import contiguous_attention, gathered_attention
from glm5.ops.index_scores import index_scores
from glm5.ops.norm import rms_norm
from glm5.ops.pairs import rotate_pairs
from glm5.ops.prefill import chunk_attention
from glm5.ops.routed import routed_experts, swiglu
from glm5.ops.rows import linear
from glm5.ops.selection import select_positions


@dataclass(slots=True)
class Counters:
    """Positions times layers whose attention left keys out, and whose attention did not."""

    sparse_queries: int = 0
    dense_queries: int = 0


@dataclass(slots=True)
class Selections:
    """What the last layer with an indexer selected; layers without one reuse it (GLM-5.2).

    Attributes:
        few: slots int64 [m, k] and bias fp32 [m, 1, k] of the sparse rows.
        chunks: positions int64 [T, k], -1 padded, of each chunk that selects, by its first row.
        is_final: layers with an indexer reuse it too.
    """

    few: tuple[Tensor, Tensor] | None = None
    chunks: dict[int, Tensor] = field(default_factory=dict)
    is_final: bool = False


class Network:
    """A transformer made ready to serve.

    Attributes:
        counters: shows that sparse selection ran where it should.
    """

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        """Fuse `model`'s weights in place.

        Raises:
            UsageError: the network has grouped-query attention; `engine.generate` runs it.
        """
        if model.config.attention != "mla":
            raise UsageError("the serving engine is for latent attention; generate from a GQA network with `generate`")
        self.model, self.config, self.cache = model, model.config, cache
        self.layers = [fuse(block) for block in model.model.layers if isinstance(block, Block)]
        self.prediction = None if model.mtp is None else fuse(model.mtp.block)
        self.counters = Counters()
        head = self.layers[0].attention
        # Cost of one key for one query and head: expanded, and absorbed. Beyond top-k the expanded form still computes
        # every key and the absorbed one only the selected, so up to this length masking is cheaper than gathering.
        expanded, absorbed = head.nope + head.rope + head.v_dim, 2 * head.kv_rank + head.rope
        self._masked_until = (
            3 * self.config.index_topk * absorbed // (2 * expanded)
        )  # copying rows costs half as much again

    def forward(self, batch: Batch) -> Tensor:
        """Compute a step. Returns [N, d] after the final norm."""
        x = F.embedding(batch.ids, self.model.model.embed_tokens.weight)
        selections = Selections()
        for fused in self.layers:
            x = self._block(fused, x, batch, selections)
        return self._norm(self.model.model.norm, x)

    def predict(self, batch: Batch, hidden: Tensor, selections: Selections) -> Tensor:
        """One prediction depth: from hidden states and their next tokens (the batch's ids) to the next hidden states.

        Args:
            hidden: [N, d] of the positions in `batch`, from `forward` or from the previous depth.
            selections: reused where it is filled, filled where it is not.
        """
        mtp = self.model.mtp
        assert mtp is not None
        assert self.prediction is not None
        embedded = F.embedding(batch.ids, self.model.model.embed_tokens.weight)
        joined = torch.cat([self._norm(mtp.enorm, embedded), self._norm(mtp.hnorm, hidden)], dim=-1)
        x = linear(joined, mtp.eh_proj.weight)
        return self._norm(mtp.norm, self._block(self.prediction, x, batch, selections))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> fp32 [n, V]."""
        return linear(hidden, self.model.lm_head.weight).float()

    @staticmethod
    def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, norm.eps)

    def _block(self, fused: FusedBlock, x: Tensor, batch: Batch, selections: Selections) -> Tensor:
        block = fused.block
        x = x + self._attention(fused, self._norm(block.input_layernorm, x), batch, selections)
        normed = self._norm(block.post_attention_layernorm, x)
        if fused.gate_up is not None and fused.down is not None:
            x = x.add_(swiglu(normed, fused.gate_up, fused.down))
        return x.add_(self._experts(block.mlp, normed)) if isinstance(block.mlp, MoE) else x

    def _experts(self, moe: MoE, x: Tensor) -> Tensor:
        _, chosen, weights = moe.gate.choose(x)
        return routed_experts(x, moe.experts.gate_up_proj, moe.experts.down_proj, chosen, weights)

    # -- attention -----------------------------------------------------------------------------------------------

    def _attention(self, fused: FusedBlock, x: Tensor, batch: Batch, selections: Selections) -> Tensor:
        attention = fused.attention
        tokens, heads, nope = x.shape[0], attention.heads, attention.nope
        parts = [attention.q_a_proj.weight.shape[0], attention.kv_rank, attention.rope]
        latent_in = linear(x, fused.attention_in)
        q_latent, latent, k_rope, *rest = latent_in.split([*parts, latent_in.shape[1] - sum(parts)], dim=1)
        q_latent = self._norm(attention.q_a_layernorm, q_latent)
        k_rope = rotate_pairs(k_rope[:, None], batch.phases)[:, 0]
        rows = torch.cat([self._norm(attention.kv_a_layernorm, latent), k_rope], dim=1)
        self.cache.latent(attention.layer).index_copy_(0, batch.slots, rows)

        q = linear(q_latent, attention.q_b_proj.weight).view(tokens, heads, -1)
        q_nope, q_rope = q[..., :nope], rotate_pairs(q[..., nope:], batch.phases)
        if attention.indexer is not None:
            self._store_index_keys(fused, rest[0], batch)
        out = self._attend(fused, Queries(x, q_latent, q_nope, q_rope), batch, selections)
        return linear(out.reshape(tokens, -1), attention.o_proj.weight)

    def _attend(self, fused: FusedBlock, queries: "Queries", batch: Batch, selections: Selections) -> Tensor:
        """Every row over its own keys: [N, H, v]."""
        if fused.attention.indexer is not None and batch.selects and not selections.is_final:
            self._select(fused, queries, batch, selections)
        q_nope, q_rope = queries.nope, queries.rope
        out = q_nope.new_empty(*q_nope.shape[:2], fused.attention.v_dim)
        if batch.few:
            few = slice(0, batch.few)
            weighted = self._attend_few(fused, absorb(fused, q_nope[few], q_rope[few]), batch, selections)
            out[few] = expand(fused, weighted)
        for chunk in batch.chunks:
            out[chunk.rows] = self._attend_chunk(fused, q_nope[chunk.rows], q_rope[chunk.rows], chunk, selections)
        return out

    def _attend_few(self, fused: FusedBlock, q: Tensor, batch: Batch, selections: Selections) -> Tensor:
        """Absorbed attention of the rows of few queries: [few, H, r + rope] -> [few, H, r]."""
        attention = fused.attention
        pool = self.cache.latent(attention.layer)
        out = q.new_empty(*q.shape[:2], attention.kv_rank)
        for group in batch.dense:
            rows = q[group.rows].unflatten(0, (-1, group.queries))
            if group.stretch is not None:
                weighted = contiguous_attention(rows, pool[group.stretch], group.bias, attention.kv_rank)
            else:
                weighted = gathered_attention(rows, pool, group.slots, group.bias, attention.kv_rank)
            out[group.rows] = weighted.flatten(0, 1)
            self.counters.dense_queries += rows.shape[0] * group.queries
        if batch.sparse:
            assert selections.few is not None
            rest = slice(batch.sparse[0].rows.start, batch.sparse[-1].rows.stop)
            weighted = gathered_attention(q[rest, None], pool, *selections.few, attention.kv_rank)
            out[rest] = weighted[:, 0]
            self.counters.sparse_queries += rest.stop - rest.start
        return out

    def _attend_chunk(
        self, fused: FusedBlock, q_nope: Tensor, q_rope: Tensor, chunk: Context, selections: Selections
    ) -> Tensor:
        """A stretch of a prompt: [T, H, nope], [T, H, rope] -> [T, H, v]."""
        attention = fused.attention
        pool = self.cache.latent(attention.layer)
        positions = selections.chunks.get(chunk.rows.start)
        if positions is None:
            self.counters.dense_queries += len(q_nope)
        else:
            self.counters.sparse_queries += len(q_nope)
        if positions is not None and chunk.end > self._masked_until:
            q = absorb(fused, q_nope, q_rope)[:, None]
            return expand(fused, gathered_attention(q, pool, *_to_slots(positions, chunk), attention.kv_rank)[:, 0])
        rows = chunk.read(pool)
        kv = linear(rows[:, : attention.kv_rank], attention.kv_b_proj.weight).view(chunk.end, attention.heads, -1)
        k_rope = rows[:, None, attention.kv_rank :].expand(-1, attention.heads, -1)
        k = torch.cat([kv[..., : attention.nope], k_rope], dim=-1).transpose(0, 1)
        q = torch.cat([q_nope, q_rope], dim=-1).mul_(attention.scale).transpose(0, 1)
        selected = None
        if positions is not None:  # one column more than there are keys takes the padding
            marks = torch.zeros(len(positions), chunk.end + 1, dtype=torch.bool, device=positions.device)
            selected = marks.scatter_(1, positions.where(positions >= 0, chunk.end), True)[:, :-1]
        return chunk_attention(q, k, kv[..., attention.nope :].transpose(0, 1), selected).transpose(0, 1)

    # -- selection -----------------------------------------------------------------------------------------------

    def _store_index_keys(self, fused: FusedBlock, keys: Tensor, batch: Batch) -> None:
        indexer = fused.attention.indexer
        assert indexer is not None
        norm = indexer.k_norm
        keys = F.layer_norm(keys, (indexer.dim,), norm.weight, norm.bias, norm.eps)
        keys = torch.cat([rotate_pairs(keys[:, None, : indexer.rope], batch.phases)[:, 0], keys[:, indexer.rope :]], 1)
        self.cache.index_keys(fused.attention.layer).index_copy_(0, batch.slots, keys)

    def _select(self, fused: FusedBlock, queries: "Queries", batch: Batch, selections: Selections) -> None:
        """Run the indexer for everybody who has more keys than top-k."""
        indexer = fused.attention.indexer
        assert indexer is not None
        chosen = []
        for context in [*batch.sparse, *batch.chunks]:
            if context.end <= indexer.topk:
                continue
            own = Queries(*(part[context.rows] for part in queries))
            scores = self._index_scores(fused, own, batch.phases[context.rows], context.read)
            if len(scores) > 1:
                keys = torch.arange(context.end, device=scores.device)
                future = keys > keys[context.start :, None]
                scores.masked_fill_(future, float("-inf"))
            positions = select_positions(scores, indexer.topk)
            if len(scores) > FEW_QUERIES:
                selections.chunks[context.rows.start] = positions
            else:
                chosen.append(_to_slots(positions, context))
        if chosen:
            selections.few = torch.cat([slots for slots, _ in chosen]), torch.cat([bias for _, bias in chosen])

    def _index_scores(
        self, fused: FusedBlock, queries: "Queries", phases: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Scores fp32 [rows, S] of the index keys that `read` takes from the layer's cache."""
        indexer = fused.attention.indexer
        assert indexer is not None
        q = linear(queries.latent, indexer.wq_b.weight).unflatten(1, (indexer.heads, -1))
        q = torch.cat([rotate_pairs(q[..., : indexer.rope], phases), q[..., indexer.rope :]], dim=-1)
        weights = linear(queries.x.float(), indexer.weights_proj.weight) * (indexer.heads * indexer.dim) ** -0.5
        return index_scores(q, weights, read(self.cache.index_keys(fused.attention.layer)))


class Queries(NamedTuple):
    """What a layer asks with: its normed input [N, d], the query latent [N, q_lora_rank], and each head's positionless
    [N, H, nope] and rotated [N, H, rope] parts."""

    x: Tensor
    latent: Tensor
    nope: Tensor
    rope: Tensor


def absorb(fused: FusedBlock, q_nope: Tensor, q_rope: Tensor) -> Tensor:
    """Scaled queries in the space of the cached rows: W_UK into each head. [N, H, kv_lora_rank + rope]."""
    absorbed = torch.bmm(q_nope.transpose(0, 1), fused.w_uk).transpose(0, 1)
    return torch.cat([absorbed, q_rope], dim=-1).mul_(fused.attention.scale)


def expand(fused: FusedBlock, weighted: Tensor) -> Tensor:
    """Weighted latent rows [N, H, kv_lora_rank] to each head's value by W_UV: [N, H, v]."""
    return torch.bmm(weighted.transpose(0, 1), fused.w_uv).transpose(0, 1)


def _to_slots(positions: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Chosen positions [m, k] as slots, and a bias [m, 1, k] that hides the padding."""
    slots = context.slots[positions]  # -1 picks the last position: some slot, and hidden
    bias = torch.zeros(positions.shape, device=positions.device).masked_fill_(positions < 0, float("-inf"))
    return slots, bias[:, None]
