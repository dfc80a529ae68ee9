"""What attention needs to know about one forward pass, and the plain cache that carries it from pass to pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from glm5.errors import UsageError


class Cache:
    """Contiguous per-layer storage for tokens already seen: latent rows and index keys (MLA), or keys and values (GQA).

    Sized once for a whole batch; the serving engine has a paged one. Positions and documents of the stored tokens are
    kept too, so that padded and packed rows stay apart.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.positions = torch.zeros(batch, capacity, dtype=torch.int64)
        self.documents = torch.zeros(batch, capacity, dtype=torch.int64)
        self._store: dict[tuple[int, str], Tensor] = {}

    def begin(self, positions: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Note the tokens of this pass, [B, T]; return positions and documents of all tokens so far, [B, S]."""
        end = self.length + positions.shape[1]
        if end > self.capacity:
            raise UsageError(f"the cache holds {self.capacity} tokens and {end} are needed: make it larger")
        self.positions, self.documents = self.positions.to(positions.device), self.documents.to(positions.device)
        self.positions[:, self.length : end] = positions
        self.documents[:, self.length : end] = documents
        return self.positions[:, :end], self.documents[:, :end]

    def extend(self, layer: int, name: str, new: Tensor) -> Tensor:
        """Store `new` [B, T, ...] behind what `layer` keeps under `name`; return all of it, [B, S, ...]."""
        if (layer, name) not in self._store:
            self._store[layer, name] = new.new_zeros(new.shape[0], self.capacity, *new.shape[2:])
        store = self._store[layer, name]
        end = self.length + new.shape[1]
        store[:, self.length : end] = new
        return store[:, :end]

    def commit(self, tokens: int) -> None:
        """Every layer has stored its rows of this pass: they count from now on."""
        self.length += tokens


class Frame(NamedTuple):
    """One forward pass as every layer sees it.

    Attributes:
        cos, sin: fp32 [B, T, rotary / 2] of the new tokens.
        visible: bool [B, T, S], which keys each query may see; None means plain causal over the new tokens alone.
        sparse: whether a layer with an indexer selects when there are more than `index_topk` keys. Off while a model
            that has not learned to select is pre-trained.
        absorbed: whether MLA works on latent rows (decode) or on expanded heads (training, prefill).
        cache: where earlier tokens are, or None.
    """

    cos: Tensor
    sin: Tensor
    visible: Tensor | None
    sparse: bool
    absorbed: bool
    cache: Cache | None
