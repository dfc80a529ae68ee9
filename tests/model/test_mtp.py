"""The prediction layer against one put together from the reference's own decoder layer.

`transformers` drops these weights at load, so the oracle reads them from the file: norms of the next token's
embedding and of the hidden state, side by side through `eh_proj`, one decoder layer with experts and an indexer of
its own, a final norm.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaDecoderLayer, GlmMoeDsaRMSNorm

from glm5.model.checkpoint import WEIGHTS
from glm5.model.transformer import Transformer
from tests.model.shapes import SHAPES, TINY, reference, saved, tiny_config, tokens

DEEPEST = 2


class Oracle:
    """The stored prediction layer, read with the reference's modules alone."""

    def __init__(self, folder: Path, decoder: Any) -> None:
        config = copy.deepcopy(decoder.config)
        layer = config.num_hidden_layers
        config.mlp_layer_types = [*config.mlp_layer_types, "sparse"]
        config.indexer_types = [*config.indexer_types, "full"]
        config._attn_implementation = config._experts_implementation = "eager"
        prefix = f"model.layers.{layer}."
        stored = {name.removeprefix(prefix): t for name, t in load_file(folder / WEIGHTS).items() if prefix in name}
        experts = [
            [stored.pop(f"mlp.experts.{expert}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for expert in range(config.n_routed_experts)
        ]
        stored["mlp.experts.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        stored["mlp.experts.down_proj"] = torch.stack([down for *_, down in experts])
        self.norms = {}
        for name in ("enorm", "hnorm", "shared_head.norm"):
            self.norms[name] = GlmMoeDsaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.norms[name].weight.data = stored.pop(f"{name}.weight")
        self.eh_proj = stored.pop("eh_proj.weight")
        self.layer = GlmMoeDsaDecoderLayer(config, layer).eval()
        self.layer.load_state_dict(stored)  # strict: nothing stored may be left over
        self.decoder = decoder

    def deepen(self, hidden: Tensor, next_ids: Tensor) -> Tensor:
        """[B, T, d] and the tokens that follow, [B, T] -> [B, T, d]."""
        embedding = self.decoder.model.embed_tokens(next_ids)
        x = torch.cat([self.norms["enorm"](embedding), self.norms["hnorm"](hidden)], -1) @ self.eh_proj.T
        length = x.shape[1]
        positions = torch.arange(length)[None]
        future = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        rotary = self.decoder.model.rotary_emb(x, positions)
        y, _ = self.layer(x, attention_mask=future, position_ids=positions, position_embeddings=rotary)
        return self.norms["shared_head.norm"](y)


def deepen(model: Transformer, hidden: Tensor, next_ids: Tensor) -> Tensor:
    assert model.mtp is not None
    return model.mtp(hidden, model.embed(next_ids), model.frame(next_ids))[0]


@pytest.mark.parametrize("name", ["tiny", "index-share", "narrow values, odd sizes"])
@torch.no_grad()
def test_every_depth_equals_the_oracle(name: str, tmp_path: Path) -> None:
    """Past `index_topk` tokens, so that the layer's own indexer selects."""
    ours = saved(tiny_config(**SHAPES[name]), tmp_path)
    theirs = reference(tmp_path)
    oracle, ids = Oracle(tmp_path, theirs), tokens(2, 4 * TINY["index_topk"])
    mine, expected = ours(ids).hidden, theirs.model(ids).last_hidden_state
    for depth in range(1, DEEPEST + 1):
        following = ids[:, depth:]
        mine = deepen(ours, mine[:, : following.shape[1]], following)
        expected = oracle.deepen(expected[:, : following.shape[1]], following)
        torch.testing.assert_close(ours.logits(mine), theirs.lm_head(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_it_selects_for_itself(tmp_path: Path) -> None:
    model, ids = saved(tiny_config(**SHAPES["index-share"]), tmp_path), tokens(2, 60)
    assert model.mtp is not None
    assert model.mtp.block.self_attn.indexer is not None
    hidden, embedded = model(ids).hidden[:, :-1], model.embed(ids[:, 1:])
    sparse, _ = model.mtp(hidden, embedded, model.frame(ids[:, 1:]))
    dense, _ = model.mtp(hidden, embedded, model.frame(ids[:, 1:], sparse=False))
    apart = (sparse - dense).abs().amax(-1)
    assert apart[:, : TINY["index_topk"]].max() < 1e-5
    assert apart[:, TINY["index_topk"] :].mean() > 0.1


def test_the_decoder_does_not_depend_on_it() -> None:
    """Its weights get a gradient from its own output only, and the decoder's output gives it none."""
    model, ids = Transformer(tiny_config()), tokens(1, 20)
    model.init_weights(0)
    assert model.mtp is not None
    model(ids).hidden.sum().backward()
    assert all(parameter.grad is None for parameter in model.mtp.parameters())
    deepen(model, model(ids).hidden[:, :-1], ids[:, 1:]).square().sum().backward()
    learns = {name for name, parameter in model.mtp.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in model.mtp.named_parameters() if ".indexer." not in name}
