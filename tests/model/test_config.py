"""Configurations: the released numbers, `config.json` both ways, and an answer to every impossible shape."""

import json
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.model.config import ModelConfig, index_share_pattern
from glm5.model.presets import PRESETS, preset
from tests.model.shapes import SHAPES, tiny_config

# The published configuration of GLM-5, key by key (GLM-5 report, Table 10, and the released config.json).
RELEASED: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "vocab_size": 154880, "hidden_size": 6144,
    "intermediate_size": 12288, "moe_intermediate_size": 2048, "num_hidden_layers": 78, "first_k_dense_replace": 3,
    "moe_layer_freq": 1, "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 2048, "kv_lora_rank": 512,
    "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "qk_head_dim": 256, "v_head_dim": 256, "head_dim": 64,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048, "indexer_rope_interleave": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}, "rope_interleave": True,
    "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": False, "initializer_range": 0.02, "num_nextn_predict_layers": 1,
    "eos_token_id": [154820, 154827, 154829], "pad_token_id": 154820,
}  # fmt: skip


def through_json(config: ModelConfig) -> ModelConfig:
    return ModelConfig.from_hf(json.loads(json.dumps(config.to_hf("bfloat16"))), "config.json")


# Released shapes ----------------------------------------------------------------------------------------------------


def test_glm_5_is_as_published() -> None:
    values = preset("glm-5").to_hf("bfloat16")
    assert {key: values[key] for key in RELEASED} == RELEASED
    assert ModelConfig.from_hf(RELEASED, "config.json") == preset("glm-5")


def test_the_reference_has_the_same_defaults() -> None:
    """Sizes `transformers` gives a GLM-5 when told nothing."""
    theirs = transformers.GlmMoeDsaConfig().to_dict()
    unset = {"architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters"}
    ours = preset("glm-5").to_hf("bfloat16")
    shared = (ours.keys() & theirs.keys()) - unset
    assert {"kv_lora_rank", "index_topk", "routed_scaling_factor", "indexer_types"} <= shared
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


def test_glm_5_2_shares_three_quarters_of_its_indexers() -> None:
    config = preset("glm-5.2")
    owners = [layer for layer in range(78) if config.owns_indexer(layer)]
    assert owners == [0, 1, *range(2, 75, 4)]
    assert len(owners) == 21
    assert index_share_pattern(78, 4, 3) == config.indexer_types
    assert config.replace(indexer_types=(), rope_theta=1e6, max_position_embeddings=202752,
                          index_share_for_mtp_iteration=False) == preset("glm-5")  # fmt: skip


@pytest.mark.parametrize("layers", [4, 78])
@pytest.mark.parametrize(("frequency", "offset"), [(1, 2), (4, 3), (2, 0), (3, 1)])
def test_the_sharing_rule_is_the_references(layers: int, frequency: int, offset: int) -> None:
    values = {"num_hidden_layers": layers, "index_topk_freq": frequency, "index_skip_topk_offset": offset}
    theirs = transformers.GlmMoeDsaConfig(**values).indexer_types
    assert list(index_share_pattern(layers, frequency, offset)) == theirs


# config.json --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_config_json(name: str) -> None:
    assert through_json(PRESETS[name]) == PRESETS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_every_test_shape_survives_config_json(name: str) -> None:
    """What belongs to the network survives; sizes of parts it does not have are not written."""
    config = tiny_config(**SHAPES[name])
    again = through_json(config)
    assert again.to_hf("bfloat16") == config.to_hf("bfloat16")
    assert again.model_type == config.model_type


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": None},
        {"eos_token_id": ()},
        {"eos_token_id": (3,)},
        {"tie_word_embeddings": True},
        {"rope_theta": 5.0},
    ],
    ids=str,
)
def test_single_fields_survive_config_json(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert through_json(config) == config


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 6))
def test_every_way_to_write_index_sharing_means_the_same(layers: int, frequency: int, offset: int) -> None:
    pattern = index_share_pattern(layers, frequency, offset)
    values = preset("glm-5", num_hidden_layers=layers).to_hf("bfloat16")
    del values["indexer_types"]
    spelled: list[dict[str, Any]] = [
        {"indexer_types": list(pattern)},
        {"index_topk_pattern": "".join("F" if kind == "full" else "S" for kind in pattern)},
        {"index_topk_pattern": list(pattern)},
        {"index_topk_freq": frequency, "index_skip_topk_offset": offset},
    ]
    for extra in spelled:
        config = ModelConfig.from_hf(values | extra, "config.json")
        assert [config.owns_indexer(layer) for layer in range(layers)] == [kind == "full" for kind in pattern]


def test_an_explicit_list_wins_over_a_pattern() -> None:
    values = tiny_config().to_hf("bfloat16") | {"indexer_types": ["full", "shared", "full", "full"]}
    config = ModelConfig.from_hf(values | {"index_topk_pattern": "FFSS", "index_topk_freq": 4}, "config.json")
    assert config.indexer_types == ("full", "shared", "full", "full")


def test_one_stop_token_may_be_written_as_a_number() -> None:
    assert ModelConfig.from_hf(RELEASED | {"eos_token_id": 7}, "config.json").eos_token_id == (7,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "rope_type must be 'default'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type must be 'default'"),
        ({"n_group": 8}, "n_group = 8"),
        ({"hidden_size": -1}, "hidden_size = -1 must not be negative"),
    ],
    ids=str,
)
def test_a_config_json_of_another_network_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        ModelConfig.from_hf(RELEASED | changes, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
    assert words in str(error.value)


# Impossible shapes --------------------------------------------------------------------------------------------------

GQA: dict[str, Any] = {"attention": "gqa", "index_topk": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({name: 0}, f"{name} must not be 0") for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
            "rope_theta", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            "index_n_heads", "intermediate_size", "moe_intermediate_size",
        )),
        ({"vocab_size": -3}, "vocab_size = -3 must not be negative"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05 must not be negative"),
        ({"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
        ({"hidden_size": 6.5}, "hidden_size: Input should be a valid integer"),
        ({"attention": "mqa"}, "attention: Input should be 'mla' or 'gqa'"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim = 7 must be even"),
        ({"index_head_dim": 4}, "index_head_dim = 4 is smaller than its rotary part, 8"),
        ({"indexer_types": ("full",) * 3}, "indexer_types has 3 entries for 4"),
        ({"indexer_types": ("shared",) * 4}, "indexer_types: the first layer"),
        ({"indexer_types": ("full", "half", "full", "full")}, "indexer_types.1: Input should be 'full' or 'shared'"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0 must be between 1 and n_routed_experts = 8"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9 must be between 1 and n_routed_experts = 8"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers must be 0 or 1"),
        (GQA | {"num_key_value_heads": 0}, "num_key_value_heads must not be 0"),
        (GQA | {"num_key_value_heads": 3}, "num_key_value_heads = 3 must divide num_attention_heads = 4"),
        (GQA | {"head_dim": 0}, "head_dim must not be 0"),
        (GQA | {"head_dim": 10}, "partial_rotary_factor = 0.5 of head_dim = 10 must be an even number"),
        (GQA | {"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5 of head_dim = 128"),
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_shape_gets_one_line_that_names_the_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        tiny_config(**changes)
    message = str(error.value)
    assert words in message
    assert message.startswith("preset nano: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "close"),
    [("hiden_size", "hidden_size"), ("routed_experts", "n_routed_experts"), ("index_top_k", "index_topk")],
)
def test_an_unknown_key_suggests_the_close_one(key: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"preset nano: unknown model key '{key}'; did you mean '{close}'"):
        preset("nano", **{key: 1})


def test_several_mistakes_get_a_line_each() -> None:
    with pytest.raises(UsageError) as error:
        ModelConfig.build({"zzz": 1, "hiden_size": 2}, "recipe.toml [model]")
    assert str(error.value).splitlines() == [
        "recipe.toml [model]: unknown model key 'hiden_size'; did you mean 'hidden_size'?",
        "recipe.toml [model]: unknown model key 'zzz'",
    ]


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no preset is called 'glm-6'; there are nano, .*glm-5\.2"):
        preset("glm-6")


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        preset("nano").hidden_size = 1
