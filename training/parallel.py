"""One model on several processes: each holds all of it (DDP), or a share of each tensor (FSDP2)."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from networks import Denoiser
from networks.invfusion import Block
from runtime import distributed


def shard(module: nn.Module) -> None:
    """Leave every process a share of each parameter, gathered block by block where it is used.

    Raises ValueError for a single process.
    """
    if distributed.world_size() < 2:
        raise ValueError("fsdp shares a model out to several processes: start them with torchrun")
    for block in [m for m in module.modules() if isinstance(m, Block)]:
        fully_shard(block)
    fully_shard(module)


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients that are means over the processes."""
    if distributed.world_size() < 2 or isinstance(module, FSDPModule):
        return module
    # Buffers are constants of the architecture, so steps do not send them. From torch 2.13 on
    # they are sent once, at the start, and the old name gives a warning.
    new, old = "forward_sync_buffers", "broadcast_buffers"
    known = signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {new if new in known else old: False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager:
    """Context of one part of a batch: only the last part's gradients are exchanged, with all."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a share; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Set tensors from whole ones. Raises ValueError if a name, shape or type differs."""
    kinds = [{k: (t.shape, t.dtype) for k, t in part.items()} for part in (own, tensors)]
    if kinds[0] != kinds[1]:
        raise ValueError("the tensors belong to a network of another architecture")
    for name, tensor in own.items():
        given = tensors[name]
        if isinstance(tensor, DTensor):  # this process's share of it
            mesh, places = tensor.device_mesh, tensor.placements
            given = distribute_tensor(given.to(tensor.device), mesh, places, src_data_rank=None)
        tensor.copy_(given)


def denoiser_of(config_of: Denoiser, tensors: Mapping[str, Tensor]) -> Denoiser:
    """A denoiser of the same configuration that holds these very tensors, in evaluation mode."""
    with torch.device("meta"):
        denoiser = Denoiser(config_of.config)
    denoiser.load_state_dict(dict(tensors), assign=True)
    return denoiser.eval().requires_grad_(False)
