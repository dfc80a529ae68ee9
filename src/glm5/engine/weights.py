"""Weights that change while requests run: written in place, counted, and summed up in one hash.

A stored tensor's name leads to its place in memory (`model.checkpoint.tensor_slots`), so trainers push what they would
save, and nothing is allocated. The version goes up with every update, even one that fails half way: what was made
before and after must never be taken for the same model.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint, tensor_slots
from glm5.model.transformer import Transformer


class WeightStore:
    """The parameters of the served model.

    Attributes:
        version: 0 at the start, one more after each update.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._slots = tensor_slots(model)
        self._sizes: list[tuple[torch.UntypedStorage, int]] = []
        self.version = 0
        self.is_complete = True

    def update(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Write tensors, some or all, by their stored names. Returns the new version.

        Raises:
            UsageError: no tensors, an unknown name or a wrong shape. Tensors before it have been written.
        """
        self.version += 1
        written = set()
        for name, tensor in tensors:
            slot = self._slots.get(name)
            if slot is None:
                raise UsageError(f"weight update: this network has no tensor '{name}'")
            target = slot.view(self._parameter(slot.parameter))
            if target.shape != tensor.shape:
                raise UsageError(f"weight update: {name} has shape {list(tensor.shape)}, not {list(target.shape)}")
            with torch.no_grad():
                target.copy_(tensor)
            written.add(name)
        if not written:
            raise UsageError("weight update: there are no tensors in it")
        self.is_complete = self.is_complete or written >= self._slots.keys()
        return self.version

    def hash(self) -> str:
        """Hash of all weights in the dtype they are served in, see `hash_tensors`."""
        return hash_tensors(self.named_tensors())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Stored name and current value of every tensor."""
        for name, slot in self._slots.items():
            yield name, slot.view(self._parameter(slot.parameter))

    def discard(self) -> None:
        """Free the parameters' memory; an update with all tensors must follow `restore`."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self._sizes = [(storage, storage.nbytes()) for storage in storages.values()]
        for storage in storages.values():
            storage.resize_(0)
        self.is_complete = False

    def restore(self) -> None:
        """Get the parameters' memory back, empty."""
        for storage, size in self._sizes:
            storage.resize_(size)
        self._sizes = []

    def require(self) -> None:
        """Raises GLM5Error if the weights were discarded and have not been written again."""
        if not self.is_complete:
            raise GLM5Error("the weights were discarded: update them all before serving")

    def _parameter(self, name: str) -> Tensor:
        if name.endswith("e_score_correction_bias"):
            return self._model.get_buffer(name)
        return self._model.get_parameter(name).detach()


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors in any order: equal exactly when names and bytes are, so a trainer can check an engine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def folder_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint folder, as `WeightStore.update` takes them; see `load_checkpoint` for errors."""
    return WeightStore(load_checkpoint(folder)).named_tensors()
