"""Muon with Muon Split, for data parallel and single processes alike.

Momentum, then every weight *matrix* is replaced by the nearest orthogonal one (ops/newton_schulz.py), scaled so that an
update has a root-mean-square of 0.2 whatever its shape, which lets AdamW's learning rates and decay be reused
(GLM-4.5 §2.4).

**Muon Split** (GLM-5 report §2.1): the up-projections of attention are cut into one matrix per head, each
orthogonalised alone, so that heads may move at scales of their own; the scale uses the *block's* shape. Modules say
how their rows are cut (`muon_split()`); nothing here knows about attention.

With sharded parameters each rank holds some rows of every matrix. Where those rows are whole blocks (heads, experts)
the step is local. Every other matrix is given one owner: shards travel to it in one exchange, the update travels back
in a second, and nobody ever gathers a matrix it does not own (GLM-5 report §2.4.1).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glm5.ops.newton_schulz import orthogonalise

UPDATE_RMS = 0.2


@dataclass(slots=True)
class Matrix:
    """A parameter Muon trains, and how its rows fall into blocks.

    Attributes:
        split: row counts of the blocks that repeat along the second-to-last dimension; empty: one block.
    """

    name: str
    parameter: nn.Parameter
    split: tuple[int, ...] = ()


def blocks_of(tensor: Tensor, split: tuple[int, ...]) -> Iterator[Tensor]:
    """Views of the blocks of a [rows, cols] or [E, rows, cols] tensor, stacked by kind: each is [N, block rows,
    cols]."""
    rows, cols = tensor.shape[-2:]
    period = sum(split) or rows
    stacked = tensor.reshape(-1, period, cols) if tensor.numel() else tensor.new_empty(0, period, cols)
    start = 0
    for size in split or (period,):
        yield stacked[:, start : start + size]
        start += size


def update_scale(rows: int, cols: int) -> float:
    """Factor that gives an orthogonal [rows, cols] matrix the root-mean-square `UPDATE_RMS`."""
    return UPDATE_RMS * math.sqrt(max(rows, cols))


def orthogonal_updates(tensors: list[tuple[Tensor, tuple[int, ...]]], dtype: torch.dtype) -> None:
    """Replace every tensor, in place, by its orthogonalised and scaled blocks. Blocks of one shape go through
    together."""
    by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for tensor, split in tensors:
        for block in blocks_of(tensor, split):
            if block.shape[0]:
                by_shape[block.shape[1], block.shape[2]].append(block)
    for (rows, cols), blocks in by_shape.items():
        updates = orthogonalise(torch.cat(blocks), dtype) * update_scale(rows, cols)
        for block, update in zip(blocks, updates.split([len(block) for block in blocks]), strict=True):
            block.copy_(update)


class Muon(torch.optim.Optimizer):
    """Muon over the given matrices.

    Args:
        matrices: parameters, plain or sharded by rows, with their splits.
        lr, momentum, weight_decay: as in the report; decay is decoupled and not scaled by shape.
        dtype: of the Newton-Schulz iteration.
    """

    def __init__(
        self,
        matrices: Iterable[Matrix],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.matrices = list(matrices)
        self.dtype = dtype
        super().__init__(
            [matrix.parameter for matrix in self.matrices],
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        )

    def momentum_of(self, matrix: Matrix) -> Tensor:
        """The momentum buffer of a matrix, zeros before its first step."""
        state = self.state[matrix.parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        group = self.param_groups[0]
        trained = [matrix for matrix in self.matrices if matrix.parameter.grad is not None]
        updates = []
        for matrix in trained:
            gradient, buffer = _local(matrix.parameter.grad), _local(self.momentum_of(matrix))
            buffer.mul_(group["momentum"]).add_(gradient)
            updates.append(gradient.add(buffer, alpha=group["momentum"]))  # Nesterov: look one step ahead
        self._orthogonalise(trained, updates)
        for matrix, update in zip(trained, updates, strict=True):
            parameter = _local(matrix.parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _orthogonalise(self, matrices: list[Matrix], updates: list[Tensor]) -> None:
        here: list[tuple[Matrix, Tensor]] = []
        travelling: list[tuple[Matrix, Tensor]] = []
        for matrix, update in zip(matrices, updates, strict=True):
            (here if _holds_whole_blocks(matrix) else travelling).append((matrix, update))
        orthogonal_updates([(update, matrix.split) for matrix, update in here], self.dtype)
        by_shape: dict[torch.Size, list[tuple[Matrix, Tensor]]] = defaultdict(list)
        for matrix, update in travelling:
            by_shape[matrix.parameter.shape].append((matrix, update))
        for shape, group in by_shape.items():
            self._orthogonalise_by_owners(shape, group)

    def _orthogonalise_by_owners(self, shape: torch.Size, group: list[tuple[Matrix, Tensor]]) -> None:
        """Equal-shaped sharded matrices: the i-th belongs to rank i mod world."""
        mesh_group = group[0][0].parameter.device_mesh.get_group()  # type: ignore[attr-defined]
        world, rank = dist.get_world_size(mesh_group), dist.get_rank(mesh_group)
        share = -(-shape[0] // world)  # rows of a full shard; the last ranks may hold fewer
        turns = -(-len(group) // world)
        outgoing = group[0][1].new_zeros(world, turns, share, *shape[1:])
        for i, (_, update) in enumerate(group):
            outgoing[i % world, i // world, : update.shape[0]] = update
        incoming = torch.empty_like(outgoing)  # [source rank, my matrices, rows, ...]
        dist.all_to_all_single(incoming, outgoing, group=mesh_group)
        whole = incoming.transpose(0, 1).flatten(1, 2).contiguous()  # rows in order; padding is at the end
        mine = [
            (whole[turn][: shape[0]], group[turn * world + rank][0].split)
            for turn in range(turns)
            if turn * world + rank < len(group)
        ]
        orthogonal_updates(mine, self.dtype)
        incoming = whole.unflatten(1, (world, share)).transpose(0, 1).contiguous()
        dist.all_to_all_single(outgoing, incoming, group=mesh_group)
        for i, (_, update) in enumerate(group):
            update.copy_(outgoing[i % world, i // world, : update.shape[0]])


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _holds_whole_blocks(matrix: Matrix) -> bool:
    """Whether this rank's rows can be orthogonalised without the others'. The same answer on every rank."""
    parameter = matrix.parameter
    if not isinstance(parameter, DTensor):
        return True
    if parameter.ndim == 3:
        return True  # sharded over experts, each of them whole
    share = -(-parameter.shape[0] // parameter.device_mesh.size())
    period = sum(matrix.split) or parameter.shape[0]
    return share % period == 0
