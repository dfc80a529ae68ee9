"""How many parameters a network has, by part, without allocating any of them (GLM-5 report, Table 10)."""

from dataclasses import dataclass

import torch

from glm5.model.config import ModelConfig
from glm5.model.transformer import Transformer

BYTES_PER_PARAMETER = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5, "2-bit": 0.25}  # scales not counted


@dataclass(slots=True, frozen=True)
class ParameterCounts:
    """Parameters of one network.

    Attributes:
        total: decoder, embedding and head; what the name of a model states (GLM-5: 743.9 B).
        stored: with the multi-token-prediction layer; what a checkpoint holds (753.9 B).
        active: used for one token in the decoder, without embedding and head (39.9 B).
        parts: stored parameters by part; they add up to `stored`.
    """

    total: int
    stored: int
    active: int
    parts: dict[str, int]

    def memory(self) -> dict[str, float]:
        """Bytes of the stored weights in each precision."""
        return {name: self.stored * size for name, size in BYTES_PER_PARAMETER.items()}

    def headline(self) -> dict[str, int]:
        """The three headline numbers."""
        return {"total": self.total, "stored": self.stored, "active": self.active}


_PARTS = (  # first match wins
    ("mtp.", "prediction layer"),
    ("embed_tokens", "embedding"),
    ("lm_head", "output head"),
    (".indexer.", "indexer"),
    ("self_attn", "attention"),
    ("shared_experts", "shared experts"),
    (".experts.", "routed experts"),
    ("mlp.gate.", "router"),
    ("norm", "norms"),
    ("mlp", "dense feed-forward"),
)


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count on the meta device; takes the same time for nano and for 744 B."""
    with torch.device("meta"):
        model = Transformer(config)
    parts: dict[str, int] = {}
    active = 0
    for name, parameter in model.named_parameters():
        part = next(label for fragment, label in _PARTS if fragment in name)
        parts[part] = parts.get(part, 0) + parameter.numel()
        if part == "routed experts":
            active += parameter.numel() * config.num_experts_per_tok // config.n_routed_experts
        elif part not in ("prediction layer", "embedding", "output head"):
            active += parameter.numel()
    stored = sum(parts.values())
    return ParameterCounts(stored - parts.get("prediction layer", 0), stored, active, parts)
