"""Data parallelism, applied to the network from outside: FSDP2 over one mesh, and the few collectives the trainer
needs.

A single process is the same code with a world of one and no process group.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from glm5.errors import GLM5Error, UsageError
from glm5.model.transformer import Transformer


@dataclass(slots=True, frozen=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls) -> "World":
        """Join the processes torchrun (or `launch`) started; alone if it did not."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if size == 1:
            return cls(device=device)
        if not dist.is_initialized():
            backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_WAIT)
        return cls(dist.get_rank(), size, device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            dist.barrier()


def shard(model: Transformer, world: World) -> Transformer:
    """Shard parameters, gradients and optimiser state over the world's processes, block by block (FSDP2).

    Raises:
        UsageError: stacked experts or other parameters cannot be sharded over so many processes.
    """
    if world.size == 1:
        return model
    experts = model.config.n_routed_experts
    if model.config.first_k_dense_replace < model.config.num_hidden_layers and experts % world.size:
        raise UsageError(f"n_routed_experts = {experts} cannot be divided among {world.size} processes")
    mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("data",))
    blocks = [*model.model.layers, *([model.mtp] if model.mtp is not None else [])]
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=world.device.type == "cuda")
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def synchronise_gradients(model: Transformer, now: bool) -> None:
    """With sharding: whether the next backward reduces gradients, or only accumulates them."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


# -- processes of a cluster ------------------------------------------------------------------------------------------
#
# `torchrun ... -m glm5 run RECIPE` starts the same command everywhere. The first process runs the recipe; whenever a
# stage needs everybody it says so, and the others, who wait for nothing else, join in.

_WAIT = timedelta(days=30)  # the others wait while the first prepares data


def is_follower() -> bool:
    """Whether torchrun started this process as one of the others."""
    return int(os.environ.get("RANK", "0")) > 0


def work_together(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run `function(*arguments)` in every process torchrun started, else in `processes` local ones.

    Raises:
        GLM5Error: a local process failed; the others have been stopped.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        World.join()
        dist.broadcast_object_list([(function, arguments)], src=0)
        function(*arguments)
    elif processes > 1:
        launch(function, arguments, processes)
    else:
        function(*arguments)


def follow() -> None:
    """Do what the first process announces, until it dismisses everybody."""
    World.join()
    while True:
        announced: list[Any] = [None]
        dist.broadcast_object_list(announced, src=0)
        if announced[0] is None:
            return
        function, arguments = announced[0]
        function(*arguments)


def dismiss() -> None:
    """The first process is done: let the others go."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        World.join()
        dist.broadcast_object_list([None], src=0)
        dist.destroy_process_group()


# -- local processes -------------------------------------------------------------------------------------------------


def launch(function: Callable[..., Any], arguments: tuple[Any, ...], processes: int) -> None:
    """Run `function(*arguments)` in `processes` local processes joined into one world; torchrun's job on one machine.

    Ctrl-C and SIGTERM are passed on to the processes, which finish their step, save, and end by themselves.

    Raises:
        GLM5Error: one of them failed, with its own words if it had any; the others have been stopped.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    failures = mp.get_context("spawn").SimpleQueue()
    context = mp.start_processes(
        _worker, args=(function, arguments, processes, port, failures), nprocs=processes, join=False,
        start_method="spawn",
    )  # fmt: skip
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            try:
                if context.join():
                    return
            except KeyboardInterrupt:
                for process in context.processes:
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGINT)
            except mp.ProcessRaisedException as error:
                raise GLM5Error(f"a training process failed:\n{error}") from error
            except mp.ProcessExitedException as error:
                if not failures.empty():
                    raise failures.get() from None
                raise GLM5Error(f"a training process ended with {error.exit_code}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _worker(
    index: int, function: Callable[..., Any], arguments: tuple[Any, ...], processes: int, port: int, failures: Any
) -> None:
    os.setpgrp()  # a terminal's Ctrl-C reaches the launcher alone, which passes it on once
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        function(*arguments)
    except GLM5Error as error:
        failures.put(error)
        sys.exit(error.exit_code)
    if dist.is_initialized():
        dist.destroy_process_group()
