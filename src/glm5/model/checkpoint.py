"""Checkpoints in Hugging Face form: `config.json` beside sharded safetensors under the released names.

In memory the experts of a layer are two stacked tensors and the prediction layer is a module of its own; on disk every
expert has three matrices and the prediction layer is `model.layers.<num_hidden_layers>`. `tensor_slots` is the one
table of that difference, and everything here reads it: saving, loading, checking that nothing is missing, surplus or
misshapen.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glm5.errors import GLM5Error, UsageError
from glm5.model.config import ModelConfig
from glm5.model.transformer import Transformer
from glm5.ops.fp8 import BLOCK, dequantize_blocks

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9


class Slot(NamedTuple):
    """Where a stored tensor lives in memory: a whole parameter, or some rows of one expert in a stacked one."""

    parameter: str
    expert: int | None = None
    rows: slice = slice(None)

    def view(self, parameter: Tensor) -> Tensor:
        """The part of `parameter` this slot is."""
        return parameter if self.expert is None else parameter[self.expert, self.rows]


def tensor_slots(model: Transformer) -> dict[str, Slot]:
    """Stored name -> place in memory, for every tensor of a checkpoint of `model`, in storage order."""
    config = model.config
    width = config.moe_intermediate_size
    slots: dict[str, Slot] = {}
    for name in _parameters(model):
        stored = _stored_name(name, config.num_hidden_layers)
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stem = stored.rpartition(".")[0]
            for expert in range(config.n_routed_experts):
                if name.endswith("down_proj"):
                    slots[f"{stem}.{expert}.down_proj.weight"] = Slot(name, expert)
                else:
                    slots[f"{stem}.{expert}.gate_proj.weight"] = Slot(name, expert, slice(0, width))
                    slots[f"{stem}.{expert}.up_proj.weight"] = Slot(name, expert, slice(width, 2 * width))
        else:
            slots[stored] = Slot(name)
    return slots


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied head counts once."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update((name, buffer) for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return tensors


def _stored_name(name: str, layers: int) -> str:
    """The prediction layer's modules are flattened into one more decoder layer."""
    if not name.startswith("mtp."):
        return name
    inner = name.removeprefix("mtp.").removeprefix("block.")
    return f"model.layers.{layers}." + ("shared_head.norm.weight" if name == "mtp.norm.weight" else inner)


# -- saving ----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    model: Transformer, folder: Path, dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write `config.json` and the weights into `folder`, which must exist.

    Under data parallelism every rank must call this (sharded parameters are gathered one at a time); the first one
    writes.

    Args:
        dtype: to store; the parameters' own when absent. The router's selection bias stays fp32.

    Raises:
        GLM5Error: the disk is full or not writable. Whatever stood in `folder` before is not safe: write to a fresh
        one.
    """
    parameters = _parameters(model)
    slots = tensor_slots(model)
    stored_dtype = dtype or model.model.embed_tokens.weight.dtype
    shards = _plan_shards(slots, parameters, stored_dtype, max_shard_bytes)
    writes = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    gathered: tuple[str, Tensor] | None = None
    try:
        for number, names in enumerate(shards, start=1):
            tensors = {}
            for name in names:
                slot = slots[name]
                if gathered is None or gathered[0] != slot.parameter:  # slots of one parameter are neighbours
                    gathered = slot.parameter, _whole(parameters[slot.parameter])
                if writes:
                    tensors[name] = slot.view(gathered[1]).to(_storage_dtype(name, stored_dtype)).contiguous()
            if writes:
                save_file(tensors, folder / _shard_name(number, len(shards)), metadata={"format": "pt"})
        if writes:
            if len(shards) > 1:
                weight_map = {name: _shard_name(i, len(shards)) for i, names in enumerate(shards, 1) for name in names}
                total = sum(_bytes(name, slots[name], parameters, stored_dtype) for name in slots)
                _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            _write_json(folder / "config.json", model.config.to_hf(str(stored_dtype).removeprefix("torch.")))
    except (OSError, SafetensorError) as error:
        raise GLM5Error(
            f"cannot write the checkpoint to {folder}: {error}. Free some space and start again."
        ) from error


def stored_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its stored name, whole and on the CPU. Sharded: every rank must read to the end."""
    parameters = _parameters(model)
    gathered: tuple[str, Tensor] | None = None
    for name, slot in tensor_slots(model).items():
        if gathered is None or gathered[0] != slot.parameter:  # slots of one parameter are neighbours
            gathered = slot.parameter, _whole(parameters[slot.parameter])
        yield name, slot.view(gathered[1])


def _plan_shards(
    slots: Mapping[str, Slot], parameters: Mapping[str, Tensor], dtype: torch.dtype, max_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, slot in slots.items():
        size = _bytes(name, slot, parameters, dtype)
        if used + size > max_bytes and shards[-1]:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _storage_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype


def _bytes(name: str, slot: Slot, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    shape = slot.view(torch.empty(parameters[slot.parameter].shape, device="meta"))
    return shape.numel() * _storage_dtype(name, dtype).itemsize


def _whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU: gathered over ranks where it is sharded."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.cpu()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


# -- loading ---------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder.

    Raises:
        UsageError: there is no readable `config.json`, or it describes another kind of network.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a checkpoint: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} cannot be read: it holds no JSON object")
    return ModelConfig.from_hf(values, str(path))


def load_checkpoint(folder: Path, dtype: torch.dtype | None = None) -> Transformer:
    """Build the network a checkpoint describes and fill it.

    Args:
        folder: as written by `save_checkpoint`, `transformers`, or released, FP8 block-128 included.
        dtype: of the parameters; as stored when absent (FP8 becomes bf16).

    Raises:
        UsageError: not a checkpoint of this family.
        GLM5Error: a shard is missing or truncated, or tensors are missing, surplus or misshapen; each is named.
    """
    config = read_config(folder)
    with ExitStack() as files:
        where = _open_shards(folder, files)
        where = {name: handle for name, handle in where.items() if not _is_duplicate(name, config)}
        with torch.device("meta"):
            model = Transformer(config)
        _check_names(model, config, where, folder)
        model.to_empty(device="cpu")
        model.to(dtype or _stored_dtype(where))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.data = buffer.data.float()
        if config.tie_word_embeddings:  # to_empty gave each its own memory
            model.lm_head.weight = model.model.embed_tokens.weight
        parameters = _parameters(model)
        for name, slot in tensor_slots(model).items():
            target = slot.view(parameters[slot.parameter].detach())
            target.copy_(_read(name, where, target.shape, folder))
    return model.eval()


def _open_shards(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Stored name -> open file that has it."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GLM5Error(f"{index} is not a weight index: {error}") from error
    else:
        names = [WEIGHTS]
    where = {}
    for name in names:
        path = folder / name
        if not path.exists():
            raise GLM5Error(f"{folder} lacks the weight file {name}: copy it again")
        try:
            handle = files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise GLM5Error(f"{path} is truncated or damaged ({error}): copy it again") from error
        where.update(dict.fromkeys(handle.keys(), handle))
    return where


def _is_duplicate(name: str, config: ModelConfig) -> bool:
    """Some publishers repeat the shared embedding and head in the prediction layer, or indexers in layers that
    share."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    if name in (f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight"):
        return True
    if config.tie_word_embeddings and name == "lm_head.weight":
        return True
    parts = name.split(".")
    shares = len(parts) > 4 and parts[1] == "layers" and parts[4] == "indexer" and config.indexer_types
    return bool(shares) and int(parts[2]) < config.num_hidden_layers and not config.owns_indexer(int(parts[2]))


def _check_names(model: Transformer, config: ModelConfig, where: Mapping[str, Any], folder: Path) -> None:
    expected = tensor_slots(model)
    stored = {name for name in where if not name.endswith("weight_scale_inv")}
    problems = [f"missing {name}" for name in expected if name not in stored]
    problems += [f"surplus {name}" for name in sorted(stored - expected.keys())]
    if problems:
        shown = "\n  ".join(problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise GLM5Error(f"{folder}: the weights do not fit config.json\n  {shown}{more}")


def _stored_dtype(where: Mapping[str, Any]) -> torch.dtype:
    name = "model.embed_tokens.weight"
    dtype = where[name].get_slice(name).get_dtype()
    return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}.get(dtype, torch.bfloat16)


def _read(name: str, where: Mapping[str, Any], shape: torch.Size, folder: Path) -> Tensor:
    tensor: Tensor = where[name].get_tensor(name)
    if tensor.shape != shape:
        raise GLM5Error(f"{folder}: {name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor
    scale_name = f"{name}_scale_inv"
    if scale_name not in where:
        raise GLM5Error(f"{folder}: {name} is FP8 but {scale_name} is missing")
    scale: Tensor = where[scale_name].get_tensor(scale_name)
    wanted = [-(-size // BLOCK) for size in shape]
    if list(scale.shape) != wanted:
        raise GLM5Error(f"{folder}: {scale_name} has shape {list(scale.shape)}, blocks of {BLOCK} need {wanted}")
    return dequantize_blocks(tensor, scale)


def copy_text_files(source: Path, target: Path) -> None:
    """Copy what belongs beside the weights (tokenizer, chat template) from one folder to another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
