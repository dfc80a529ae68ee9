"""The shape of a network, in the field names of its released `config.json`.

One record describes three families, told apart by `attention` and `index_topk`:

| family | `model_type` on disk | attention |
|---|---|---|
| GLM-5, 5.1, 5.2 | `glm_moe_dsa` | MLA with the DSA indexer |
| the ablation "MLA" | `deepseek_v3` | MLA alone (`index_topk = 0`) |
| GLM-4.5, the ablation "GQA" | `glm4_moe` | grouped queries |

Torch is not needed here: `glm5 info` and `glm5 plan` work without it.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from glm5.errors import UsageError

IndexerType = Literal["full", "shared"]
MODEL_TYPES = {
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}

# What the architectures allow and GLM does not use: a config.json that says otherwise is refused.
_REQUIRED = {
    "hidden_act": "silu",
    "n_group": 1,
    "scoring_func": "sigmoid",
    "rope_interleave": True,
    "indexer_rope_interleave": True,
}

LATENT_NORM_EPS = 1e-6  # of q_a_layernorm, kv_a_layernorm and the indexer's k_norm, whatever rms_norm_eps says


class ModelConfig(BaseModel):
    """Dimensions and constants of one network. Defaults are GLM-5's; invalid shapes raise `UsageError` in `build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = 154880
    hidden_size: int = 6144
    num_hidden_layers: int = 78
    num_nextn_predict_layers: int = 1  # 0 or 1 multi-token-prediction layer, shared by every prediction depth
    max_position_embeddings: int = 202752
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    attention: Literal["mla", "gqa"] = "mla"
    num_attention_heads: int = 64
    # multi-head latent attention
    q_lora_rank: int = 2048
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 192
    qk_rope_head_dim: int = 64
    v_head_dim: int = 256
    # grouped-query attention (the ablation's baseline)
    num_key_value_heads: int = 64
    head_dim: int = 128
    partial_rotary_factor: float = 0.5
    attention_bias: bool = False
    use_qk_norm: bool = False

    # lightning indexer; index_topk = 0 means there is none
    index_topk: int = 2048
    index_n_heads: int = 32
    index_head_dim: int = 128
    indexer_types: tuple[IndexerType, ...] = ()  # one for each layer; empty means every layer computes its own
    index_share_for_mtp_iteration: bool = False

    # feed-forward
    intermediate_size: int = 12288
    first_k_dense_replace: int = 3
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5

    eos_token_id: tuple[int, ...] = (154820, 154827, 154829)
    pad_token_id: int | None = 154820

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: positionless part plus rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def has_indexer(self) -> bool:
        """Whether attention is DeepSeek sparse attention."""
        return self.attention == "mla" and self.index_topk > 0

    @property
    def model_type(self) -> str:
        """The Hugging Face architecture this network is saved as."""
        if self.attention == "gqa":
            return "glm4_moe"
        return "glm_moe_dsa" if self.has_indexer else "deepseek_v3"

    def is_dense(self, layer: int) -> bool:
        """Whether `layer` has one feed-forward network instead of experts."""
        return layer < self.first_k_dense_replace

    def owns_indexer(self, layer: int) -> bool:
        """Whether `layer` selects for itself; a "shared" layer reuses the nearest earlier selection (GLM-5.2)."""
        return self.has_indexer and (not self.indexer_types or self.indexer_types[layer] == "full")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in self:
            if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                raise ValueError(f"{name} = {value} must not be negative")
        for name in self._needed():
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must not be 0 in this network")
        if self.attention == "mla" and self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim = {self.qk_rope_head_dim} must be even: rotary works on pairs")
        if self.attention == "gqa":
            if self.num_attention_heads % self.num_key_value_heads:
                raise ValueError(
                    f"num_key_value_heads = {self.num_key_value_heads} must divide"
                    f" num_attention_heads = {self.num_attention_heads}"
                )
            if int(self.head_dim * self.partial_rotary_factor) % 2 or self.partial_rotary_factor > 1:
                raise ValueError(
                    f"partial_rotary_factor = {self.partial_rotary_factor} of head_dim = {self.head_dim} must be"
                    " an even number of dimensions, no more than there are: rotary works on pairs"
                )
        if self.has_indexer and self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim = {self.index_head_dim} is smaller than its rotary part, {self.qk_rope_head_dim}"
            )
        if self.indexer_types:
            if len(self.indexer_types) != self.num_hidden_layers:
                raise ValueError(
                    f"indexer_types has {len(self.indexer_types)} entries for {self.num_hidden_layers} layers"
                )
            if self.indexer_types[0] != "full":
                raise ValueError("indexer_types: the first layer has nobody to share with and must be 'full'")
        if self.first_k_dense_replace < self.num_hidden_layers and not (
            1 <= self.num_experts_per_tok <= self.n_routed_experts
        ):
            raise ValueError(
                f"num_experts_per_tok = {self.num_experts_per_tok} must be between 1 and"
                f" n_routed_experts = {self.n_routed_experts}"
            )
        if self.num_nextn_predict_layers > 1:
            raise ValueError("num_nextn_predict_layers must be 0 or 1: GLM-5's prediction depths share one layer")
        return self

    def _needed(self) -> list[str]:
        """Sizes that must not be zero, given which parts this network has."""
        names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
        names += ["max_position_embeddings", "rope_theta"]
        if self.attention == "mla":
            names += ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
        else:
            names += ["num_key_value_heads", "head_dim"]
        if self.has_indexer:
            names += ["index_n_heads"]
        if self.is_dense(0):
            names += ["intermediate_size"]
        if not self.is_dense(self.num_hidden_layers - 1):
            names += ["moe_intermediate_size"]
        return names

    @classmethod
    def build(cls, values: Mapping[str, Any], origin: str) -> Self:
        """Validate `values`; `origin` says in the error where they came from.

        Raises:
            UsageError: an unknown key, a wrong type or an impossible shape, one line each.
        """
        lines = []
        for key in values.keys() - cls.model_fields.keys():
            close = difflib.get_close_matches(key, cls.model_fields, n=1)
            lines.append(f"{origin}: unknown model key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        if lines:
            raise UsageError("\n".join(sorted(lines)))
        try:
            return cls(**values)
        except ValidationError as error:
            for problem in error.errors():
                key = ".".join(str(part) for part in problem["loc"])
                lines.append(f"{origin}: {key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}")
            raise UsageError("\n".join(lines)) from None

    def replace(self, origin: str = "override", **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return self.build({**self.model_dump(), **changes}, origin)

    # -- config.json ---------------------------------------------------------------------------------------------

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """The `config.json` other programs read, without keys that do not belong to the architecture."""
        values: dict[str, Any] = {
            "architectures": [MODEL_TYPES[self.model_type]],
            "model_type": self.model_type,
            "dtype": dtype,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "n_group": 1,
            "topk_group": 1,
            "use_cache": True,
            "bos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }
        mla_only = {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}
        gqa_only = {"partial_rotary_factor", "use_qk_norm"}
        index_only = {name for name in type(self).model_fields if name.startswith("index")}
        ours = {"attention", "rope_theta", "head_dim"} | (gqa_only if self.attention == "mla" else mla_only)
        values |= self.model_dump(mode="json", exclude=ours | (set() if self.has_indexer else index_only))
        if self.attention == "mla":
            # vLLM, SGLang and others assume a half-split indexer unless told; mlx-lm and NeMo insist on the rest.
            values |= {"head_dim": self.qk_rope_head_dim, "qk_head_dim": self.qk_head_dim, "rope_interleave": True}
            values |= {"num_key_value_heads": self.num_attention_heads, "moe_layer_freq": 1, "ep_size": 1}
            values |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
            if self.has_indexer:
                values["indexer_rope_interleave"] = True
                values["indexer_types"] = [
                    "full" if self.owns_indexer(layer) else "shared" for layer in range(self.num_hidden_layers)
                ]
        else:
            values["head_dim"] = self.head_dim
            values["rope_parameters"]["partial_rotary_factor"] = self.partial_rotary_factor
        return values

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], origin: str) -> Self:
        """Read a `config.json` of one of `MODEL_TYPES`.

        Raises:
            UsageError: another architecture, or a feature of these architectures that GLM never uses.
        """
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            raise UsageError(
                f"{origin}: model_type is {model_type!r}; this network reads {', '.join(sorted(MODEL_TYPES))}"
            )
        # Computing something close to another network would be worse than refusing it.
        for key, ours in _REQUIRED.items():
            if values.get(key) is not None and values[key] != ours and not (model_type == "glm4_moe" and "rope" in key):
                raise UsageError(f"{origin}: {key} = {values[key]!r}; GLM-5 has {ours!r} and nothing else is computed")
        rope = values.get("rope_parameters") or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default" or values.get("rope_scaling"):
            raise UsageError(f"{origin}: scaled rotary embedding is not part of GLM-5; rope_type must be 'default'")
        if model_type != "glm4_moe" and values.get("attention_bias"):
            raise UsageError(f"{origin}: attention_bias = true; GLM-5's latent attention has no biases")
        _check_layer_types(values, origin)
        known = {name: values[name] for name in cls.model_fields if values.get(name) is not None}
        known["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 1_000_000.0))
        known["attention"] = "gqa" if model_type == "glm4_moe" else "mla"
        if model_type != "glm_moe_dsa":
            known["index_topk"] = 0
        else:
            types = tuple(known.get("indexer_types") or _indexer_types(values))
            known["indexer_types"] = types if "shared" in types else ()
        if known.get("attention") == "gqa":
            known["partial_rotary_factor"] = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 0.5))
        else:
            known.pop("head_dim", None)
        known.setdefault("num_nextn_predict_layers", 0)
        known["pad_token_id"] = values.get("pad_token_id")
        known.setdefault("eos_token_id", ())
        if isinstance(known.get("eos_token_id"), int):
            known["eos_token_id"] = (known["eos_token_id"],)
        return cls.build(known, origin)


def _check_layer_types(values: Mapping[str, Any], origin: str) -> None:
    """The two ways to say which layers are dense must agree."""
    types, dense = values.get("mlp_layer_types"), values.get("first_k_dense_replace")
    if types and dense is not None and list(types) != ["dense"] * dense + ["sparse"] * (len(types) - dense):
        raise UsageError(f"{origin}: mlp_layer_types and first_k_dense_replace = {dense} disagree")


def _indexer_types(values: Mapping[str, Any]) -> tuple[IndexerType, ...]:
    """Which layers own an indexer, from the keys GLM-5.2 uses: an explicit pattern, else frequency and offset."""
    layers = values.get("num_hidden_layers", 0)
    pattern = values.get("index_topk_pattern")
    if pattern:
        return tuple("full" if letter in ("F", "full") else "shared" for letter in pattern)
    return index_share_pattern(layers, values.get("index_topk_freq") or 1, values.get("index_skip_topk_offset", 2))


def index_share_pattern(layers: int, frequency: int, offset: int) -> tuple[IndexerType, ...]:
    """GLM-5.2's rule: layer i computes its own selection when max(i - offset + 1, 0) is a multiple of `frequency`."""
    return tuple("full" if max(layer - offset + 1, 0) % frequency == 0 else "shared" for layer in range(layers))
