"""Checkpoints: `transformers` reads ours, we read theirs, nothing is lost on the way, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import INDEX, WEIGHTS, copy_text_files, load_checkpoint, read_config, save_checkpoint
from glm5.model.config import ModelConfig
from tests.model.shapes import SHAPES, logits, perturbed, reference, saved, tiny_config, tokens

IDS = tokens(2, 60)
SMALL = 100_000  # bytes a shard: a tiny network makes a dozen


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


def assert_bitwise(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert state(found).keys() == state(expected).keys()
    for name, tensor in state(expected).items():
        assert state(found)[name].dtype == tensor.dtype, name
        assert torch.equal(state(found)[name], tensor), name


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Whole and unharmed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_saved_is_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    """The prediction layer included, which `transformers` drops."""
    model = saved(tiny_config(**SHAPES[name]), tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.config.to_hf("float32") == model.config.to_hf("float32")
    assert any(key.startswith("mtp.") for key in state(again))
    assert_bitwise(again, model)


@torch.no_grad()
def test_shards_of_ours(tmp_path: Path) -> None:
    model = perturbed(tiny_config())
    save_checkpoint(model, tmp_path, max_shard_bytes=SMALL)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards == sorted(set(index["weight_map"].values()))
    contents = {shard: load_file(tmp_path / shard) for shard in shards}
    assert {name: shard for shard in shards for name in contents[shard]} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in contents.values()]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) <= SMALL
    assert_bitwise(load_checkpoint(tmp_path), model)
    assert torch.equal(logits(model, IDS), reference(tmp_path)(IDS).logits)


@pytest.mark.parametrize("shard_size", ["100KB", "1GB"])
@pytest.mark.parametrize("name", ["tiny", "index-share", "mla without indexer", "gqa"])
@torch.no_grad()
def test_what_transformers_writes(name: str, shard_size: str, tmp_path: Path) -> None:
    """A network that never was ours: their configuration, their weights, their files."""
    wanted = tiny_config(**SHAPES[name], num_nextn_predict_layers=0)
    values = wanted.to_hf("float32")
    for key in ("indexer_rope_interleave", "rope_interleave", "scoring_func", "topk_method", "moe_layer_freq"):
        values.pop(key, None)  # theirs does not write them
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values)).eval()
    generator = torch.Generator().manual_seed(5)
    for tensor in [*theirs.parameters(), *(b for n, b in theirs.named_buffers() if n.endswith("bias"))]:
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / INDEX).exists() == (shard_size == "100KB")
    ours = load_checkpoint(tmp_path)
    assert ours.config.model_type == wanted.model_type
    assert ours.config.indexer_types == wanted.indexer_types
    torch.testing.assert_close(logits(ours, IDS), theirs(IDS).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_bf16_storage(tmp_path: Path) -> None:
    """Half the bytes; the router's selection bias stays fp32, and who reads it in fp32 agrees with `transformers`."""
    model = perturbed(tiny_config())
    save_checkpoint(model, tmp_path, dtype=torch.bfloat16)
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        assert tensor.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_checkpoint(tmp_path)
    for name, tensor in state(model).items():
        stored = tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        assert torch.equal(state(again)[name], stored), name
        assert state(again)[name].dtype == stored.dtype
    widened = load_checkpoint(tmp_path, torch.float32)
    torch.testing.assert_close(logits(widened, IDS), reference(tmp_path)(IDS).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = saved(tiny_config(tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    again = load_checkpoint(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert torch.equal(logits(again, IDS), reference(tmp_path)(IDS).logits)


@torch.no_grad()
def test_without_a_prediction_layer(tmp_path: Path) -> None:
    model = saved(tiny_config(num_nextn_predict_layers=0), tmp_path)
    assert not any(name.startswith("model.layers.4.") for name in load_file(tmp_path / WEIGHTS))
    assert load_checkpoint(tmp_path).mtp is None
    assert torch.equal(logits(model, IDS), reference(tmp_path)(IDS).logits)


def test_copies_some_publishers_add_are_tolerated(tmp_path: Path) -> None:
    """Embedding and head repeated in the prediction layer; indexers in layers that only share."""
    model = saved(tiny_config(**SHAPES["index-share"]), tmp_path)

    def repeat(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.4.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.4.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
        for name in [name for name in tensors if ".layers.1.self_attn.indexer." in name]:
            tensors[name.replace(".1.", ".3.")] = tensors[name].clone()

    edit_weights(tmp_path, repeat)
    assert_bitwise(load_checkpoint(tmp_path), model)


def test_text_files_travel_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    saved(tiny_config(), source)
    target.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("hello")
    copy_text_files(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["chat_template.jinja", "tokenizer.json"]


# Damaged ------------------------------------------------------------------------------------------------------------

DOWN = "model.layers.2.mlp.experts.5.down_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    saved(tiny_config(), folder)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


WEIGHT_DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], list[str]]] = {
    "missing": (lambda tensors: tensors.pop(DOWN), [f"missing {DOWN}"]),
    "missing in the prediction layer": (
        lambda tensors: tensors.pop("model.layers.4.eh_proj.weight"),
        ["missing model.layers.4.eh_proj.weight"],
    ),
    "surplus": (
        lambda tensors: tensors.update({"model.layers.1.mlp.gate.scale": torch.ones(1)}),
        ["surplus model.layers.1.mlp.gate.scale"],
    ),
    "misshaped": (lambda tensors: tensors.update({DOWN: torch.zeros(64, 47)}), [DOWN, "[64, 47]", "[64, 48]"]),
    "would broadcast": (lambda tensors: tensors.update({DOWN: torch.zeros(64, 1)}), [DOWN, "[64, 1]", "[64, 48]"]),
    "many": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.2.mlp.experts." in name],
        ["missing model.layers.2.mlp.experts.0.gate_proj.weight", "and 16 more"],
    ),
}


@pytest.mark.parametrize("damage", WEIGHT_DAMAGE)
def test_tensors_that_do_not_fit_are_named(damage: str, broken: Path) -> None:
    change, words = WEIGHT_DAMAGE[damage]
    edit_weights(broken, change)
    with pytest.raises(GLM5Error) as error:
        load_checkpoint(broken)
    assert all(word in str(error.value) for word in [str(broken), *words])


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_named(keep: int, broken: Path) -> None:
    data = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(GLM5Error, match=rf"{WEIGHTS} is truncated or damaged"):
        load_checkpoint(broken)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_checkpoint(perturbed(tiny_config()), tmp_path, max_shard_bytes=SMALL)
    lost = sorted(tmp_path.glob("*.safetensors"))[2]
    lost.unlink()
    with pytest.raises(GLM5Error, match=f"lacks the weight file {lost.name}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_unreadable_index_is_named(text: str, broken: Path) -> None:
    (broken / INDEX).write_text(text)
    with pytest.raises(GLM5Error, match=f"{INDEX} is not a weight index"):
        load_checkpoint(broken)


def test_a_folder_without_configuration(broken: Path) -> None:
    (broken / "config.json").unlink()
    with pytest.raises(UsageError, match=r"is not a checkpoint: it has no config\.json"):
        load_checkpoint(broken)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_an_unreadable_configuration(text: str, broken: Path) -> None:
    (broken / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        read_config(broken)


def test_another_family(broken: Path) -> None:
    edit_config(broken, model_type="llama")
    with pytest.raises(UsageError, match=r"config\.json: model_type is 'llama'; this network reads .*glm_moe_dsa"):
        load_checkpoint(broken)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GLM5Error, match=r"cannot write the checkpoint to .*absent"):
        save_checkpoint(perturbed(tiny_config()), tmp_path / "absent")


def test_the_configuration_decides_what_is_expected(broken: Path) -> None:
    """One layer more in config.json: its tensors are missing, and the prediction layer has moved."""
    edit_config(broken, num_hidden_layers=5, indexer_types=["full"] * 5)
    with pytest.raises(GLM5Error, match=r"missing model\.layers\.5\."):
        load_checkpoint(broken)
    assert read_config(broken) == ModelConfig.from_hf(json.loads((broken / "config.json").read_text()), "")
