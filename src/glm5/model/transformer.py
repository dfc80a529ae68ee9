"""The network: embedding, decoder blocks, final norm, output head, and the prediction layer beside them.

Parameter names are those of the released checkpoints, so that a reader of either can read both. The network knows no
optimiser and no parallelism; both are applied to it from outside.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glm5.model.attention import GroupedQueryAttention, LatentAttention
from glm5.model.cache import Cache, Frame
from glm5.model.config import ModelConfig
from glm5.model.experts import Experts, MoE, Router, Routing
from glm5.model.layers import MLP, Linear, RMSNorm
from glm5.ops.attention import visibility
from glm5.ops.rotary import rotary_tables


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        hidden: [B, T, d] after the final norm: what the head reads and what the prediction layer continues from.
        routing: one record for each MoE layer.
    """

    hidden: Tensor
    routing: list[Routing]


class Block(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, owns_indexer: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = (
            LatentAttention(config, layer, owns_indexer)
            if config.attention == "mla"
            else GroupedQueryAttention(config, layer)
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if config.is_dense(layer) else MoE(config)
        self.recompute = False  # activation checkpointing: keep only this block's input for backward

    def forward(self, x: Tensor, frame: Frame, selected: Tensor | None) -> tuple[Tensor, Tensor | None, Routing | None]:
        """[B, T, d] -> [B, T, d], the selection in force, and the router's record if there is a router."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, frame, selected, use_reentrant=False)
        return self._forward(x, frame, selected)

    def _forward(
        self, x: Tensor, frame: Frame, selected: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Routing | None]:
        attended, selected = self.self_attn(self.input_layernorm(x), frame, selected)
        x = x + attended
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            fed, routing = self.mlp(normed)
            return x + fed, selected, routing
        return x + self.mlp(normed), selected, None


class Decoder(nn.Module):
    """Embedding, blocks and final norm (`model.*` in the checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer, config.owns_indexer(layer)) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class PredictionLayer(nn.Module):
    """Multi-token prediction: from a token's hidden state and the *next* token to the hidden state of that next token.

    Applied d times it predicts d tokens further ahead, with the same parameters each time (GLM-5 report §2.1). It is
    stored as layer `num_hidden_layers` and shares embedding and head with the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = Block(config, config.num_hidden_layers, owns_indexer=config.has_indexer)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, next_embedding: Tensor, frame: Frame) -> tuple[Tensor, Routing | None]:
        """One prediction depth.

        Args:
            hidden: [B, T, d] after the final norm, of the network or of the previous depth.
            next_embedding: [B, T, d] embedding of each position's next token.

        Returns:
            [B, T, d] after this layer's norm: input of the head and of the next depth.
        """
        # The embedding comes first in the concatenation: DeepSeek's checkpoints and GLM's fix the order of eh_proj's
        # columns.
        x = self.eh_proj(torch.cat([self.enorm(next_embedding), self.hnorm(hidden)], dim=-1))
        x, _, routing = self.block(x, frame, None)
        return self.norm(x), routing


class Transformer(nn.Module):
    """A GLM-5-family language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.mtp = PredictionLayer(config) if config.num_nextn_predict_layers else None

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        cache: Cache | None = None,
        sparse: bool = True,
        absorbed: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Output:
        """Run the decoder.

        Args:
            input_ids: int64 [B, T].
            positions: int64 [B, T]; counted from 0 (or from the end of the cache) when absent.
            document_ids: int64 [B, T]; tokens see only their own document. Absent: a row is one document. Padding is a
                document of its own, by custom -1.
            cache: earlier tokens; these are added to it.
            sparse: whether indexers select (see `Frame`).
            absorbed: which form of MLA computes.
            dtype: of the activations; the embedding's own when absent.
        """
        frame = self.frame(input_ids, positions, document_ids, cache, sparse, absorbed)
        x = self.embed(input_ids, dtype)
        selected = None
        routing = []
        for block in self.model.layers:
            x, selected, routed = block(x, frame, selected)
            if routed is not None:
                routing.append(routed)
        if cache is not None:
            cache.commit(input_ids.shape[1])
        return Output(self.model.norm(x), routing)

    def checkpoint_activations(self) -> None:
        """From now on keep only the blocks' inputs for backward and recompute the rest: less memory, a third more work.

        The router's statistics are outputs of a block, not side effects, so recomputing does not count a token twice.
        """
        for block in [*self.model.layers, *([] if self.mtp is None else [self.mtp.block])]:
            block.recompute = True

    def embed(self, input_ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Token embeddings in the dtype activations shall have: [B, T] -> [B, T, d]."""
        return self.model.embed_tokens(input_ids).to(dtype or self.model.embed_tokens.weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final hidden states onto the vocabulary: [..., d] -> fp32 [..., V]."""
        return self.lm_head(hidden).float()

    def frame(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Cache | None = None,
        sparse: bool = True,
        absorbed: bool = False,
    ) -> Frame:
        """What every layer needs to know about a pass over `input_ids`; arguments as in `forward`."""
        config = self.config
        batch, length = input_ids.shape
        start = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(start, start + length, device=input_ids.device).expand(batch, length)
        rotary = (
            config.qk_rope_head_dim
            if config.attention == "mla"
            else int(config.head_dim * config.partial_rotary_factor)
        )
        cos, sin = rotary_tables(positions, rotary, config.rope_theta)
        sparse = sparse and config.has_indexer
        visible = None
        if document_ids is not None or cache is not None or absorbed or (sparse and length > config.index_topk):
            documents = torch.zeros_like(positions) if document_ids is None else document_ids
            key_positions, key_documents = (
                (positions, documents) if cache is None else cache.begin(positions, documents)
            )
            visible = visibility(positions, documents, key_positions, key_documents)
        return Frame(cos, sin, visible, sparse, absorbed, cache)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights: normal with `initializer_range` for every matrix, ones and zeros for norms and biases."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, RMSNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear | nn.Embedding | Router | Experts):
                for name, parameter in module.named_parameters(recurse=False):
                    if name == "bias":
                        nn.init.zeros_(parameter)
                    else:
                        nn.init.normal_(parameter, std=std, generator=generator)
                if isinstance(module, Router):
                    nn.init.zeros_(module.e_score_correction_bias)
