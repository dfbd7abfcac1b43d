"""Data parallelism, applied to an untouched network from outside.

`ddp` keeps everything on every process and averages gradients. `fsdp` shards weights, gradients, moments and averages
over all processes (FSDP2, block by block), `hsdp` over those of one machine, with copies on the others. The objective's
derivative runs through the wrapped network: its forwards are ordinary forwards.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.config import Parallel


def check_parallel(kind: Parallel, ranks: Ranks, shard_size: int | None = None) -> None:
    """Raises InputError where the processes cannot be used that way, before anything is loaded."""
    if kind == "none" and ranks.count > 1:
        raise InputError(f"parallel none: {ranks.count} processes would each train alone; use ddp, fsdp or hsdp")
    if kind == "hsdp" and ranks.count % (size := shard_size or local_processes()):
        raise InputError(
            f"parallel hsdp: {ranks.count} processes are no multiple of the {size} that share one copy (run.shard_size)"
        )


def local_processes() -> int:
    """How many of the run's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def make_mesh(kind: Parallel, ranks: Ranks, device: torch.device, shard_size: int | None = None) -> DeviceMesh | None:
    """What weights are sharded over, or None where every process keeps them whole."""
    if ranks.count == 1 or kind not in ("fsdp", "hsdp"):
        return None
    if kind == "fsdp":
        return init_device_mesh(device.type, (ranks.count,), mesh_dim_names=("shard",))
    size = shard_size or local_processes()
    return init_device_mesh(device.type, (ranks.count // size, size), mesh_dim_names=("replicate", "shard"))


def shard(network: nn.Module, mesh: DeviceMesh | None, trained: bool = True) -> None:
    """Shard a network's blocks and then the rest, in place.

    Weights are gathered as they are stored, in float32, and autocast chooses what to compute in: FSDP's own mixed
    precision would cast the inputs, times included.

    Args:
        trained: whether a backward pass follows its forwards, which shards again what they have gathered.
    """
    if mesh is None:
        return
    for block in network.all_blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=None if trained else True)
    network.synchronised_forwards = True  # type: ignore[assignment]


def wrap(network: nn.Module, ranks: Ranks, find_unused: bool = False) -> nn.Module:
    """What the objective is given: a sharded network as it is, else one whose gradients are averaged.

    Args:
        find_unused: whether some weights may take no part in a step.
    """
    if ranks.count == 1 or isinstance(network, FSDPModule):
        return network
    # buffers never change, and to send them around at every forward would wait for processes whose target needs none
    return DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=find_unused)


def sync_gradients(wrapped: nn.Module, now: bool) -> None:
    """Whether the next backward pass shares its gradients: only the last of those that are accumulated does."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
    elif isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = now


def full_tensor(value: Tensor) -> Tensor:
    """A scalar that may be sharded over processes, as each of them needs it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def all_finite(networks: Sequence[nn.Module], ranks: Ranks) -> bool:
    """Whether all weights of these networks are, in every process."""
    local = [weight for network in networks for weight in local_weights(network)]
    return not ranks.any(not bool(torch.stack([each.isfinite().all() for each in local]).all()))


@torch.no_grad()
def all_zero(layer: nn.Module, ranks: Ranks) -> bool:
    """Whether all weights of a layer are, in every process."""
    return not ranks.any(any(bool(weight.any()) for weight in local_weights(layer)))


def local_weights(network: nn.Module) -> list[Tensor]:
    """What this process has of the weights."""
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in network.parameters()]


@torch.no_grad()
def average_gradients(module: nn.Module, ranks: Ranks) -> None:
    """Gradients of a small module that every process keeps whole become their mean over the processes."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = ranks.gather(parameter.grad[None]).mean(0)


@contextmanager
def unsharded(network: nn.Module) -> Iterator[bool]:
    """The network unsharded in every process for a while, to draw with; yields whether all must draw together."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False)
    try:
        yield bool(sharded)
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True)
            module.reshard()
