"""New weights on their way from the trainer to the rollout engines: named tensors, whole or changed ones only.

A delta holds the tensors that differ from those of one earlier version, as they are. It is exact, and it says which
version it builds on, because on any other it would make a network that never was trained. After every update the hashes
of trainer and engines are compared: `hash_tensors` is the function on both sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from glm5.engine.weights import hash_tensors
from glm5.errors import GLM5Error, UsageError

__all__ = ["WeightUpdate", "hash_tensors", "require_equal_hashes"]


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """What an engine has to write.

    Attributes:
        tensors: by their stored (Hugging Face) names.
        base_version: the version that a delta builds on; None when `tensors` are all there are.
    """

    tensors: Mapping[str, Tensor]
    base_version: int | None = None

    def __post_init__(self) -> None:
        if not self.tensors and self.base_version is None:
            raise UsageError("weight update: there are no tensors in it")

    @classmethod
    def delta(cls, old: Mapping[str, Tensor], new: Mapping[str, Tensor], base_version: int) -> "WeightUpdate":
        """The tensors of `new` that are not, bit for bit, those of `old`, which are the weights of `base_version`.

        Raises:
            UsageError: the two do not have the same names, shapes and dtypes.
            GLM5Error: nothing changed, so that the update before it trained nothing.
        """
        if old.keys() != new.keys():
            raise UsageError(f"weight delta: only one side has {', '.join(sorted(old.keys() ^ new.keys())[:5])}")
        for name, tensor in new.items():
            if (tensor.shape, tensor.dtype) != (old[name].shape, old[name].dtype):
                raise UsageError(
                    f"weight delta: {name} was {list(old[name].shape)} in {old[name].dtype} and is now "
                    f"{list(tensor.shape)} in {tensor.dtype}"
                )
        changed = {name: tensor for name, tensor in new.items() if not _same_bits(tensor, old[name])}
        if not changed:
            raise GLM5Error(f"weight delta: no tensor differs from version {base_version}; was anything trained?")
        return cls(changed, base_version)

    def check_base(self, version: int) -> None:
        """Raises UsageError when this is a delta and does not build on `version`."""
        if self.base_version is not None and self.base_version != version:
            raise UsageError(
                f"weight update: this delta builds on version {self.base_version} and the engine has version "
                f"{version}; send it all tensors"
            )


def require_equal_hashes(expected: str, hashes: Mapping[str, str]) -> None:
    """Raises GLM5Error naming the engines (the keys of `hashes`) whose weights are not the trainer's."""
    wrong = sorted(name for name, found in hashes.items() if found != expected)
    if wrong:
        raise GLM5Error(
            f"after the weight update {', '.join(wrong)} serve other weights than the trainer's: hash "
            f"{hashes[wrong[0]]}, expected {expected}; are both in the same dtype?"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as bytes: -0.0 differs from 0.0, and a NaN equals itself."""
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
