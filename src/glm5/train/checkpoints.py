"""Checkpoints of a training: a model anybody can load, beside the state that lets the training go on bit for bit.

    checkpoints/step-00000100/
        config.json, model.safetensors, tokenizer.json ...   a Hugging Face folder (model/checkpoint.py)
        training/                                            optimiser state, one shard a process (torch DCP)
        training.json                                        step, tokens, place in the data, seconds

A checkpoint is written under another name and renamed when it is whole: a kill or a full disk at any moment leaves
the one before it untouched, and nothing that is half there is ever found.
"""

import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from glm5.errors import GLM5Error
from glm5.model.checkpoint import copy_text_files, save_checkpoint
from glm5.model.transformer import Transformer
from glm5.train.parallel import World

_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 1


@dataclass(slots=True)
class Progress:
    """How far a training is. Restoring it, the weights and the optimiser restores the training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] | None = None


class CheckpointFolder:
    """The checkpoints of one training stage.

    Args:
        folder: where they are.
        text_files: folder with the tokenizer files that belong into each.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, text_files: Path, keep: int, world: World) -> None:
        self.folder, self.text_files, self.keep, self.world = folder, text_files, keep, world

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        if not self.folder.exists():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def save(self, model: Transformer, optimizer_state: dict[str, Tensor], progress: Progress) -> Path:
        """Write a checkpoint and drop those no longer kept. Every process calls this.

        Raises:
            GLM5Error: it cannot be written; the checkpoints before it are whole.
        """
        final = self.folder / f"step-{progress.step:08d}"
        draft = self.folder / f"{final.name}.partial"
        error = None
        try:
            if self.world.is_first:
                for leftover in self.folder.glob("*.partial"):  # of a save or a deletion that a kill cut off
                    shutil.rmtree(leftover, ignore_errors=True)
                draft.mkdir(parents=True)
            self.world.barrier()
            save_checkpoint(model, draft)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says on every call that there is one process
                dcp.save(optimizer_state, checkpoint_id=draft / "training", no_dist=self.world.size == 1)
            if self.world.is_first:
                copy_text_files(self.text_files, draft)
                state = {"format": _FORMAT, **asdict(progress)}
                (draft / "training.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
                shutil.rmtree(final, ignore_errors=True)
                draft.rename(final)
                for old in self.all()[: -self.keep]:  # renamed first: nothing half deleted keeps its name
                    shutil.rmtree(old.rename(old.with_name(old.name + ".partial")))
        except (OSError, GLM5Error, dcp.CheckpointException, RuntimeError) as problem:
            error = problem
        if error is not None:
            shutil.rmtree(draft, ignore_errors=True)
            last = self.all()[-1:]
            kept = f"{last[0]} is whole; the run continues from it" if last else "there is no earlier one"
            raise GLM5Error(
                f"checkpoint {final} could not be written: {_reason(error)}\nFree some space: {kept}."
            ) from error
        self.world.barrier()
        return final

    def restore(self, checkpoint: Path, optimizer_state: dict[str, Tensor]) -> Progress:
        """Load the optimiser state, in place, and the progress of `checkpoint`. The model is loaded separately.

        Raises:
            GLM5Error: the checkpoint is damaged.
        """
        try:
            state = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
            if state.pop("format", None) != _FORMAT:
                raise ValueError("it was written by another version of glm5")
            progress = Progress(**state)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.load(optimizer_state, checkpoint_id=checkpoint / "training", no_dist=self.world.size == 1)
        except (OSError, ValueError, TypeError, AttributeError, EOFError, dcp.CheckpointException) as error:
            raise GLM5Error(
                f"{checkpoint} cannot be continued from: {_reason(error)}\nDelete it to go on from the one before."
            ) from error
        return progress


def _reason(error: BaseException) -> str:
    """What went wrong, in a line: DCP tells it with every rank's traceback."""
    if isinstance(error, dcp.CheckpointException):
        error, _ = next(iter(error.failures.values()))
    return str(error) or type(error).__name__


def publish(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's model, without its training state, to `folder`; in place only once it is whole."""
    draft = folder.with_name(folder.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(checkpoint, draft, ignore=shutil.ignore_patterns("training", "training.json"))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def fingerprint(tensors: dict[str, Tensor]) -> dict[str, float]:
    """A number for each tensor that changes when it does; cheap enough to prove that training moved every weight."""
    return {name: float(_whole(tensor).double().square().sum()) for name, tensor in tensors.items()}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
