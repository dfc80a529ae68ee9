"""Small networks with every tensor perturbed, so that a bug in any of them shows."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from glm5.model.checkpoint import save_checkpoint
from glm5.model.config import ModelConfig
from glm5.model.presets import preset
from glm5.model.transformer import Transformer

# Sixteen index heads: with few, every ReLU is zero so often that the top-k boundary is an exact tie, which the
# reference breaks in whatever order its sort happens to use.
TINY: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 32,
    "index_topk": 16, "index_n_heads": 16, "index_head_dim": 24, "intermediate_size": 96, "first_k_dense_replace": 1,
    "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "initializer_range": 0.06,
    "max_position_embeddings": 512,
}  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "index-share": {"indexer_types": ("full", "full", "shared", "shared")},
    "narrow values, odd sizes": {
        "v_head_dim": 20, "qk_nope_head_dim": 13, "n_routed_experts": 6, "num_experts_per_tok": 3,
    },
    "all dense, one head": {"first_k_dense_replace": 4, "num_attention_heads": 1, "num_key_value_heads": 1},
    "two dense, plain weights": {"first_k_dense_replace": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "mla without indexer": {"index_topk": 0},
    "gqa": {"attention": "gqa", "index_topk": 0, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True},
    "gqa with qk norm": {
        "attention": "gqa", "index_topk": 0, "num_key_value_heads": 4, "head_dim": 24, "use_qk_norm": True,
    },
}  # fmt: skip


def tiny_config(**changes: Any) -> ModelConfig:
    return preset("nano", **{**TINY, **changes})


def perturbed(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("norm.weight"):
                tensor.add_(0.1 * noise)
            elif name.endswith("bias"):
                tensor.add_(0.05 * noise)
    return model.eval()


def saved(config: ModelConfig, folder: Path, seed: int = 0) -> Transformer:
    model = perturbed(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, folder)
    return model


def reference(folder: Path) -> Any:
    """What `transformers` makes of a checkpoint; nothing it needs may be missing, and only our prediction layer
    surplus."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    prediction_layer = f"model.layers.{model.config.num_hidden_layers}."
    assert all(name.startswith(prediction_layer) for name in info["unexpected_keys"])
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random ids, never 0: that is padding, whose embedding gets no gradient in `transformers`."""
    return torch.randint(1, TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Transformer, ids: Tensor, **how: Any) -> Tensor:
    return model.logits(model(ids, **how).hidden)
