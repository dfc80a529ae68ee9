"""The memory behind the pages: for every layer, the latent rows and the index keys of all slots.

A slot is one token's place, `page * page_size + offset`. A token's latent row (normed latent, rotated rotary key) and
its index key have the same slot, so no page can hold one without the other. One more page than the pool knows of lies
at the end: what padding computes is written there.
"""

import torch
from torch import Tensor

from glm5.errors import UsageError
from glm5.model.config import ModelConfig


class PagedCache:
    """Latent rows [layers, slots, kv_lora_rank + rope] and index keys [owning layers, slots, index_head_dim]."""

    def __init__(
        self,
        config: ModelConfig,
        cache_bytes: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.page_size, self.dtype, self.device = page_size, dtype, device or torch.device("cpu")
        self.layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.width = config.kv_lora_rank + config.qk_rope_head_dim
        self.index_width = config.index_head_dim
        owners = [layer for layer in range(config.num_hidden_layers) if config.owns_indexer(layer)]
        if config.has_indexer and config.num_nextn_predict_layers:
            owners.append(config.num_hidden_layers)  # the prediction layer has an indexer of its own
        self._index_row = {layer: row for row, layer in enumerate(owners)}
        self.bytes_per_token = (self.layers * self.width + len(owners) * self.index_width) * dtype.itemsize
        self.pages = cache_bytes // (self.bytes_per_token * page_size)
        if self.pages == 0:
            raise UsageError(
                f"cache_bytes = {cache_bytes} holds no page: one page of {page_size} tokens takes"
                f" {self.bytes_per_token * page_size} bytes"
            )
        self.allocate()

    @property
    def trash_slot(self) -> int:
        """A slot nobody reads."""
        return self.pages * self.page_size

    def allocate(self) -> None:
        """Get the memory. Zeroed, not left as found: a masked row is multiplied by zero, and zero times NaN is NaN."""
        slots = (self.pages + 1) * self.page_size
        owners, dtype, device = len(self._index_row), self.dtype, self.device
        self._latent = torch.zeros(self.layers, slots, self.width, dtype=dtype, device=device)
        self._index_keys = torch.zeros(owners, slots, self.index_width, dtype=dtype, device=device)

    def free(self) -> None:
        """Give the memory back, and with it everything cached."""
        self._latent = self._index_keys = torch.empty(0, device=self.device)

    def latent(self, layer: int) -> Tensor:
        """[slots, width] of one layer."""
        return self._latent[layer]

    def index_keys(self, layer: int) -> Tensor:
        """[slots, index_head_dim] of one layer that owns an indexer."""
        return self._index_keys[self._index_row[layer]]
