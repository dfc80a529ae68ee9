"""Rows of tokens as training reads them; a micro-batch is what one process holds in memory at a time."""

from typing import NamedTuple

from torch import Tensor


class MicroBatch(NamedTuple):
    """Rows one process holds at a time; all int64 [B, T]. `targets` is the next token or `IGNORE`."""

    input_ids: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor


class MaskedMicroBatch(NamedTuple):
    """A micro-batch whose targets are all true, and `loss_mask`, bool [B, T], says which of them are learned."""

    input_ids: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor
    loss_mask: Tensor
