"""A network as one GGUF file, which llama.cpp and everything built on it reads.

Architecture `glm-dsa`. Three things differ from the released checkpoints: `kv_b_proj` is cut into W_UK, transposed, and
W_UV, per head; the experts of a layer are stacked; the prediction layer counts as a block. llama.cpp uses one epsilon
for all norms (1e-5) where GLM-5 has 1e-6 in the latent ones, so logits differ in the fifth digit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.model.attention import LatentAttention
from glm5.model.config import ModelConfig
from glm5.model.experts import MoE
from glm5.model.layers import MLP
from glm5.model.transformer import Block, Transformer

_SHARED_FROM = 1_048_576  # positions from which llama.cpp assumes GLM-5.2's sharing unless it is told


def write_gguf(model: Transformer, path: Path) -> None:
    """Write `model` in fp32, with a stand-in for the vocabulary.

    Raises:
        UsageError: a network without an indexer, which llama.cpp knows under other names.
        GLM5Error: the file cannot be written.
    """
    config = model.config
    if not config.has_indexer:
        raise UsageError("GGUF export is for GLM-5 networks; this one has no indexer")
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GLM_DSA])
    _add_sizes(writer, config)
    _add_vocabulary(writer, config)
    for name, tensor in _tensors(model):
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise GLM5Error(f"cannot write {path}: {error}. Free some space and start again.") from error
    finally:
        writer.close()


def _add_sizes(writer: Any, config: ModelConfig) -> None:
    width = config.kv_lora_rank + config.qk_rope_head_dim
    layers = config.num_hidden_layers
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(layers + config.num_nextn_predict_layers)
    writer.add_nextn_predict_layers(config.num_nextn_predict_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)  # all heads read the same latent rows
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(width)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_indexer_head_count(config.index_n_heads)
    writer.add_indexer_key_length(config.index_head_dim)
    writer.add_indexer_top_k(config.index_topk)
    if config.indexer_types or config.max_position_embeddings >= _SHARED_FROM:
        owners = [config.owns_indexer(layer) for layer in range(layers)]  # the prediction layer is not listed
        writer.add_array(f"{writer.arch}.attention.indexer.types", owners)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _add_vocabulary(writer: Any, config: ModelConfig) -> None:
    """A stand-in: names for all ids, for programs that feed token ids."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["a b"])  # llama.cpp wants some
    writer.add_add_bos_token(False)


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    yield "token_embd.weight", model.model.embed_tokens.weight
    for layer, block in enumerate(model.model.layers):
        assert isinstance(block, Block)
        yield from _block(f"blk.{layer}.", block)
    if model.mtp is not None:
        prefix = f"blk.{model.config.num_hidden_layers}."
        yield from _block(prefix, model.mtp.block)
        yield f"{prefix}nextn.eh_proj.weight", model.mtp.eh_proj.weight
        yield f"{prefix}nextn.enorm.weight", model.mtp.enorm.weight
        yield f"{prefix}nextn.hnorm.weight", model.mtp.hnorm.weight
        yield f"{prefix}nextn.shared_head_norm.weight", model.mtp.norm.weight
    yield "output_norm.weight", model.model.norm.weight
    yield "output.weight", model.lm_head.weight


def _block(prefix: str, block: Block) -> Iterator[tuple[str, Tensor]]:
    attention = block.self_attn
    assert isinstance(attention, LatentAttention)
    kv_b = attention.kv_b_proj.weight.view(attention.heads, -1, attention.kv_rank)
    tensors = {
        "attn_norm.weight": block.input_layernorm.weight,
        "attn_q_a.weight": attention.q_a_proj.weight,
        "attn_q_a_norm.weight": attention.q_a_layernorm.weight,
        "attn_q_b.weight": attention.q_b_proj.weight,
        "attn_kv_a_mqa.weight": attention.kv_a_proj_with_mqa.weight,
        "attn_kv_a_norm.weight": attention.kv_a_layernorm.weight,
        "attn_k_b.weight": kv_b[:, : attention.nope].transpose(1, 2),
        "attn_v_b.weight": kv_b[:, attention.nope :],
        "attn_output.weight": attention.o_proj.weight,
        "ffn_norm.weight": block.post_attention_layernorm.weight,
    }
    if attention.indexer is not None:
        tensors |= {
            "indexer.attn_q_b.weight": attention.indexer.wq_b.weight,
            "indexer.attn_k.weight": attention.indexer.wk.weight,
            "indexer.k_norm.weight": attention.indexer.k_norm.weight,
            "indexer.k_norm.bias": attention.indexer.k_norm.bias,
            "indexer.proj.weight": attention.indexer.weights_proj.weight,
        }
    mlp: MLP | None
    if isinstance(block.mlp, MoE):
        moe = block.mlp
        gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
        tensors |= {
            "ffn_gate_inp.weight": moe.gate.weight,
            "exp_probs_b.bias": moe.gate.e_score_correction_bias,
            "ffn_gate_exps.weight": gate,
            "ffn_up_exps.weight": up,
            "ffn_down_exps.weight": moe.experts.down_proj,
        }
        mlp, suffix = moe.shared_experts, "_shexp"
    else:
        mlp, suffix = block.mlp, ""
    if mlp is not None:
        tensors |= {
            f"ffn_gate{suffix}.weight": mlp.gate_proj.weight,
            f"ffn_up{suffix}.weight": mlp.up_proj.weight,
            f"ffn_down{suffix}.weight": mlp.down_proj.weight,
        }
    for name, tensor in tensors.items():
        yield prefix + name, tensor
