"""Batch-invariant computation: a position's numbers do not depend on what else is computed with it, bit for bit.

Floating-point sums depend on their order, and libraries choose the order by the shape of the whole batch. Here no shape
follows the batch: positions go through the network in tiles of a fixed number of rows, padded; every chosen expert runs
on the whole tile; each position attends alone, over shapes that its own position fixes. What is left to believe is that
a matrix product treats all rows of a tile alike, and that is checked on the real weights at the start.

With this, reinforcement learning can compare log-probabilities of different batches exactly (no public engine does it
for sparse attention). The price is measured by `benchmarks/engine.py`.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glm5.engine.batch import Batch, Context
from glm5.engine.cache import PagedCache
from glm5.engine.forward import Network, Queries, Selections, absorb, expand
from glm5.engine.fuse import FusedBlock
from glm5.errors import GLM5Error
from glm5.model.experts import MoE
from glm5.model.transformer import Transformer
from glm5.ops.gathered import gathered_attention
from glm5.ops.routed import tile_experts
from glm5.ops.selection import select_positions

TILE = 16  # rows; decoding a few sequences pays for all of them, prefilling reads all weights once a tile


class InvariantNetwork(Network):
    """The same network, tile by tile."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        """Raises GLM5Error where matrix products treat the rows of a tile differently."""
        super().__init__(model, cache)
        self._check_rows()

    def forward(self, batch: Batch) -> Tensor:
        """As `Network.forward`."""
        return torch.cat([super(InvariantNetwork, self).forward(tile)[:rows] for tile, rows in self._tiles(batch)])

    def predict(self, batch: Batch, hidden: Tensor, selections: Selections) -> Tensor:
        """As `Network.predict`; selections are not shared between depths."""
        outs = []
        for start, (tile, rows) in zip(range(0, len(batch.ids), TILE), self._tiles(batch)):
            padded = F.pad(hidden[start : start + rows], (0, 0, 0, TILE - rows))
            outs.append(super().predict(tile, padded, Selections())[:rows])
        return torch.cat(outs)

    def logits(self, hidden: Tensor) -> Tensor:
        """As `Network.logits`."""
        padded = F.pad(hidden, (0, 0, 0, -len(hidden) % TILE))
        return torch.cat([super(InvariantNetwork, self).logits(rows) for rows in padded.split(TILE)])[: len(hidden)]

    def _tiles(self, batch: Batch) -> list[tuple[Batch, int]]:
        """The batch in pieces of `TILE` rows, in order, and how many rows of each are real.

        A sequence's positions stay in order, so each finds the rows of all earlier ones in the cache.
        """
        alone = [
            Context(slice(row, row + 1), position, context.slots[: position + 1], None)
            for context in batch.contexts
            for row, position in zip(range(context.rows.start, context.rows.stop), range(context.start, context.end))
        ]
        tiles = []
        for start in range(0, len(alone), TILE):
            contexts = alone[start : start + TILE]
            rows = slice(start, start + len(contexts))
            padding = TILE - len(contexts)
            tile = replace(
                batch,
                ids=F.pad(batch.ids[rows], (0, padding)),
                slots=F.pad(batch.slots[rows], (0, padding), value=self.cache.trash_slot),
                phases=torch.cat([batch.phases[rows], torch.ones_like(batch.phases[:1]).expand(padding, -1, -1)]),
                contexts=contexts,
            )
            tiles.append((tile, len(contexts)))
        return tiles

    def _experts(self, moe: MoE, x: Tensor) -> Tensor:
        _, chosen, weights = moe.gate.choose(x)
        return tile_experts(x, moe.experts.gate_up_proj, moe.experts.down_proj, chosen, weights)

    def _attend(self, fused: FusedBlock, queries: Queries, batch: Batch, selections: Selections) -> Tensor:
        attention = fused.attention
        q = absorb(fused, queries.nope, queries.rope)
        pool = self.cache.latent(attention.layer)
        weighted = q.new_zeros(*q.shape[:2], attention.kv_rank)
        for row, context in enumerate(batch.contexts):
            slots = context.slots
            if self.config.has_indexer and len(slots) > attention.topk:
                if attention.indexer is not None:
                    own = Queries(*(part[row : row + 1].clone() for part in queries))
                    scores = self._index_scores(fused, own, batch.phases[row : row + 1], context.read)
                    selections.chunks[row] = select_positions(scores, attention.topk)[0]
                slots = slots[selections.chunks[row]]
                self.counters.sparse_queries += 1
            else:
                self.counters.dense_queries += 1
            # A copy begins at an aligned address, whatever the row: products may add up otherwise where it does not.
            mine = q[None, None, row].clone()
            weighted[row] = gathered_attention(mine, pool, slots[None], None, attention.kv_rank)[0, 0]
        return expand(fused, weighted)

    @torch.inference_mode()
    def _check_rows(self) -> None:
        """Feed every product a tile of equal rows: the results must be equal rows."""
        generator = torch.Generator().manual_seed(0)  # on the CPU: the rows are then moved to the weights
        blocks = self.layers + ([self.prediction] if self.prediction else [])
        matrices = [self.model.lm_head.weight]
        for fused in blocks:
            matrices += [fused.attention_in, fused.attention.q_b_proj.weight, fused.attention.o_proj.weight]
            mlp = fused.block.mlp
            if isinstance(mlp, MoE):
                matrices += [mlp.gate.weight, mlp.experts.gate_up_proj[0], mlp.experts.down_proj[0]]
            if fused.gate_up is not None and fused.down is not None:
                matrices += [fused.gate_up, fused.down]
        for weight in matrices:
            row = torch.randn(1, weight.shape[1], generator=generator).to(weight)
            _require_equal(F.linear(row.expand(TILE, -1).contiguous(), weight), f"{list(weight.shape)}")
        for fused in blocks:
            for weight in (fused.w_uk, fused.w_uv):
                row = torch.randn(1, weight.shape[0], weight.shape[1], generator=generator).to(weight)
                out = torch.bmm(row.expand(TILE, -1, -1).contiguous().transpose(0, 1), weight).transpose(0, 1)
                _require_equal(out, f"{list(weight.shape)}")


def _require_equal(rows: Tensor, shape: str) -> None:
    if not bool((rows == rows[0]).all()):
        raise GLM5Error(
            f"batch_invariant: this machine's matrix product with weights {shape} treats rows of a tile differently;"
            " the mode cannot be offered here"
        )
