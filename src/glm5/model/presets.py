"""Named shapes, from what a laptop trains in minutes to the released models."""

from typing import Any

from glm5.errors import UsageError
from glm5.model.config import ModelConfig, index_share_pattern

_SMALL_IDS: dict[str, Any] = {"eos_token_id": (0,), "pad_token_id": 0}  # replaced by the run's tokenizer

# Every preset keeps what makes GLM-5 GLM-5: query and value heads of equal width (MLA-256), dense first layers, one
# shared expert, one prediction layer. Indexers have 16 heads or more: with few, all ReLUs are zero at once so often
# that the top-k boundary is usually a tie.
PRESETS: dict[str, ModelConfig] = {
    # two cores, minutes; ours (facts behind the sizes: docs/log.md)
    "nano": ModelConfig(
        vocab_size=2048, hidden_size=128, num_hidden_layers=4, max_position_embeddings=4096, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=48,
        index_topk=512, index_n_heads=16, index_head_dim=64, intermediate_size=512, first_k_dense_replace=1,
        moe_intermediate_size=128, n_routed_experts=8, num_experts_per_tok=2, **_SMALL_IDS,
    ),
    # two cores, hours; ours
    "micro": ModelConfig(
        vocab_size=8192, hidden_size=384, num_hidden_layers=8, max_position_embeddings=8192, num_attention_heads=8,
        num_key_value_heads=8, q_lora_rank=192, kv_lora_rank=128, qk_nope_head_dim=48, qk_rope_head_dim=16,
        v_head_dim=64, index_topk=1024, index_n_heads=16, index_head_dim=64, intermediate_size=1536,
        first_k_dense_replace=1, moe_intermediate_size=384, n_routed_experts=12, num_experts_per_tok=3, **_SMALL_IDS,
    ),
    # one large GPU, a day; ours
    "mini": ModelConfig(
        vocab_size=32768, hidden_size=1024, num_hidden_layers=16, max_position_embeddings=32768, num_attention_heads=16,
        num_key_value_heads=16, q_lora_rank=512, kv_lora_rank=256, qk_nope_head_dim=96, qk_rope_head_dim=32,
        v_head_dim=128, index_topk=2048, index_n_heads=16, index_head_dim=64, intermediate_size=4096,
        first_k_dense_replace=1, moe_intermediate_size=512, n_routed_experts=64, num_experts_per_tok=6, **_SMALL_IDS,
    ),
    # released: GLM-5 report, Table 10, and the published config.json; GLM-5.1 has the same shape
    "glm-5": ModelConfig(),
    # released: a quarter of the layers own an indexer, one million positions
    "glm-5.2": ModelConfig(
        rope_theta=8_000_000.0, max_position_embeddings=1_048_576, indexer_types=index_share_pattern(78, 4, 3),
        index_share_for_mtp_iteration=True,
    ),
    # GLM-4.5 (arXiv 2508.06471): grouped queries, no indexer; the ablation's baseline at full size
    "glm-4.5": ModelConfig(
        attention="gqa", index_topk=0, vocab_size=151552, hidden_size=5120, num_hidden_layers=92,
        max_position_embeddings=131072, num_attention_heads=96, num_key_value_heads=8, head_dim=128,
        attention_bias=True, use_qk_norm=True, intermediate_size=12288, first_k_dense_replace=3,
        moe_intermediate_size=1536, n_routed_experts=160, eos_token_id=(151329, 151336, 151338), pad_token_id=151329,
    ),
}  # fmt: skip


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The named configuration, with some fields changed.

    Raises:
        UsageError: no preset has that name, a key is unknown, or the shape is impossible.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset is called '{name}'; there are {', '.join(PRESETS)}")
    return PRESETS[name].replace(f"preset {name}", **overrides) if overrides else PRESETS[name]
