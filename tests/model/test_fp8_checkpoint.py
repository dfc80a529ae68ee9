"""A checkpoint in the released FP8 form: 128 x 128 blocks, the tensors converted that the release converts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm5.errors import GLM5Error
from glm5.model.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from glm5.ops.fp8 import quantize_blocks
from tests.model.shapes import logits, perturbed, tiny_config, tokens

# Kept as they are: embedding, head, norms, router, eh_proj, the indexer's weights_proj and k_norm.
CONVERTED = re.compile(
    r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|indexer\.wq_b|indexer\.wk)\.weight$"
    r"|mlp\.(.*\.)?(gate_proj|up_proj|down_proj)\.weight$"
)
# Every kind of block: 144 rows of latent end in a block of 16, the experts are smaller than one, 256 is exactly two.
CONFIG = tiny_config(
    hidden_size=256, kv_lora_rank=136, q_lora_rank=130, intermediate_size=300, num_hidden_layers=3, index_head_dim=32
)
LATENT = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(perturbed(CONFIG), tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / WEIGHTS)
    for name in [name for name in tensors if CONVERTED.search(name)]:
        tensors[name], tensors[f"{name}_scale_inv"] = quantize_blocks(tensors[name])
    save_file(tensors, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def in_plain_numbers(folder: Path, into: Path) -> Path:
    """The same checkpoint with every block multiplied out by hand, in fp32."""
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scale, weight = tensors.pop(name), tensors[name.removesuffix("_scale_inv")].float()
        for i, row in enumerate(scale.tolist()):
            for j, factor in enumerate(row):
                weight[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= factor
        tensors[name.removesuffix("_scale_inv")] = weight
    into.mkdir()
    save_file(tensors, into / WEIGHTS)
    (into / "config.json").write_text((folder / "config.json").read_text())
    return into


def test_it_is_the_network_of_the_dequantised_weights(folder: Path) -> None:
    ids, original = tokens(2, 60), perturbed(CONFIG)
    quantized = load_checkpoint(folder, torch.float32)
    plain = load_checkpoint(in_plain_numbers(folder, folder / "plain"), torch.float32)
    for (name, found), expected in zip(quantized.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    assert torch.equal(logits(quantized, ids), logits(plain, ids))
    assert (logits(quantized, ids) - logits(original, ids)).abs().max() > 1e-3, "eight bits are not sixteen"


def test_fp8_becomes_bf16_unless_told_otherwise(folder: Path) -> None:
    model = load_checkpoint(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias").dtype == torch.float32


def test_each_kind_of_tensor_was_in_play(folder: Path) -> None:
    """Guards the tests above: the pattern must convert what the release converts, prediction layer included."""
    tensors = load_file(folder / WEIGHTS)
    converted = {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    kept = {name for name in tensors if not name.endswith("_scale_inv")} - converted
    assert tensors[f"{LATENT}_scale_inv"].shape == (2, 2)
    assert {"model.layers.3.self_attn.o_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"} <= converted
    assert {name.split(".", 3)[-1] for name in kept if name.startswith("model.layers.3.")} == {
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_a_layernorm.weight",
        "self_attn.kv_a_layernorm.weight", "self_attn.indexer.k_norm.weight", "self_attn.indexer.k_norm.bias",
        "self_attn.indexer.weights_proj.weight", "mlp.gate.weight", "mlp.gate.e_score_correction_bias",
        "eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight",
    }  # fmt: skip


def test_a_missing_scale_is_named(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(f"{LATENT}_scale_inv"))
    with pytest.raises(GLM5Error, match=re.escape(f"{LATENT} is FP8 but {LATENT}_scale_inv is missing")):
        load_checkpoint(folder)


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (1, 1)])
def test_a_scale_of_the_wrong_shape_is_named(folder: Path, shape: tuple[int, int]) -> None:
    edit(folder, lambda tensors: tensors.update({f"{LATENT}_scale_inv": torch.ones(shape)}))
    message = f"{LATENT}_scale_inv has shape {list(shape)}, blocks of 128 need [2, 2]"
    with pytest.raises(GLM5Error, match=re.escape(message)):
        load_checkpoint(folder)
