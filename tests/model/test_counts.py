"""Parameter counts: the report's headline numbers, and agreement with networks that exist."""

import pytest
import torch
import transformers

from glm5.model.counts import count_parameters
from glm5.model.presets import PRESETS, preset
from tests.model.shapes import SHAPES, perturbed, tiny_config


@pytest.mark.parametrize(
    ("name", "total", "stored", "active"),
    [("glm-5", 743.9, 753.9, 39.9), ("glm-5.2", 743.4, 753.3, 39.3)],
)
def test_the_released_models_in_billions(name: str, total: float, stored: float, active: float) -> None:
    counts = count_parameters(preset(name))
    assert counts.total / 1e9 == pytest.approx(total, abs=0.1)
    assert counts.stored / 1e9 == pytest.approx(stored, abs=0.1)
    assert counts.active / 1e9 == pytest.approx(active, abs=0.1)


def test_glm_4_5_in_billions() -> None:
    """355 B by name; the 32 B its authors call active count the embedding and head as well."""
    counts = count_parameters(preset("glm-4.5"))
    assert 350 < counts.total / 1e9 < 360
    assert (counts.active + counts.parts["embedding"] + counts.parts["output head"]) / 1e9 == pytest.approx(32, abs=2)


def test_nano_by_hand() -> None:
    d, heads, q, kv, nope, rope, v = 128, 4, 64, 64, 32, 16, 48
    attention = d * q + q * heads * (nope + rope) + d * (kv + rope) + kv * heads * (nope + v) + heads * v * d
    indexer = q * 16 * 64 + d * 64 + 2 * 64 + d * 16
    norms = 2 * d + q + kv
    expert = 3 * d * 128
    dense, moe = 3 * d * 512, (8 + 1) * expert + 8 * d
    layers = 4 * (attention + indexer + norms) + dense + 3 * moe
    counts = count_parameters(preset("nano"))
    assert counts.total == layers + d + 2 * 2048 * d
    assert counts.active == layers + d - 3 * (8 - 2) * expert
    prediction_layer = attention + indexer + norms + moe + 2 * d * d + 3 * d
    assert counts.stored - counts.total == counts.parts["prediction layer"] == prediction_layer


@pytest.mark.parametrize("name", SHAPES)
def test_counts_of_a_network_that_exists(name: str) -> None:
    config = tiny_config(**SHAPES[name])
    counts = count_parameters(config)
    assert counts.stored == sum(parameter.numel() for parameter in perturbed(config).parameters())
    assert counts.stored == sum(counts.parts.values())
    assert counts.active <= counts.total <= counts.stored
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config.to_hf("float32"))
        )
    assert counts.total == theirs.num_parameters()


@pytest.mark.parametrize("name", PRESETS)
def test_no_part_is_unnamed(name: str) -> None:
    counts = count_parameters(PRESETS[name])
    assert all(size > 0 for size in counts.parts.values())
    assert counts.memory()["bf16"] == 2 * counts.stored


def test_a_tied_head_counts_once() -> None:
    tied, untied = (count_parameters(tiny_config(tie_word_embeddings=tie)) for tie in (True, False))
    assert untied.total - tied.total == 320 * 64
