"""Models that are spread over the ranks of a run by FSDP2 (`fully_shard`).

Each rank holds a slice of every parameter, with its gradient, its moments and its average; a transformer block is whole
while it computes. What lies on disk is whole: a checkpoint does not tell on how many ranks it was written. `whole`,
`part` and `local` leave tensors that are not spread as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from vq3dcli.model.vit import Block

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# Weights, gradients, two moments, average and DistributedDataParallel's buckets take 24 bytes a parameter on each GPU.
LARGE_PARAMETERS = 1_000_000_000


def is_sharded(shard: Literal["auto", "always", "never"], model: nn.Module, world_size: int) -> bool:
    """Whether ranks of a run share a model's tensors, by `training.shard`."""
    large = shard == "auto" and sum(p.numel() for p in model.parameters()) > LARGE_PARAMETERS
    return world_size > 1 and (shard == "always" or large)


def spread(model: nn.Module, world_size: int, device: torch.device) -> None:
    """Spread a model on the CPU over the ranks and their devices, in place; its parameters are others from now on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    for module in [*(block for block in model.modules() if isinstance(block, Block)), model]:
        fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # with torch 2.8 its Gloo sums up where a mean is asked for
            cast("FSDPModule", module).set_force_sum_reduction_for_comms(True)


def is_spread(tensor: Tensor) -> bool:
    """Whether other ranks hold other slices of it."""
    return hasattr(tensor, "full_tensor")  # a DTensor; its module takes a second to import


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; all ranks must ask for it."""
    return _parts(tensor).full_tensor() if is_spread(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's slice, in the same memory."""
    return _parts(tensor).to_local() if is_spread(tensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has whole, spread by its rows as `like` is; on the device of that."""
    tensor = tensor.to(like.device)
    if not is_spread(like) or not tensor.ndim:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, _parts(like).device_mesh, _parts(like).placements, src_data_rank=None)


def _parts(tensor: Tensor) -> DTensor:
    return cast("DTensor", tensor)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors by name, those that were spread on the CPU; all ranks must ask, and those that do not `keep` get none."""
    wholes: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            wholes[name] = full.cpu() if is_spread(tensor) else full
    return wholes


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module, spread or not, the values of whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: part(value, own[name]) for name, value in tensors.items()})


@contextlib.contextmanager
def changing(module: nn.Module, name: str) -> Iterator[None]:
    """Within, the parameter is one tensor to be read and changed in place, the same on all ranks; all must enter."""
    parameter = getattr(module, name)
    if not is_spread(parameter):
        yield
        return
    setattr(module, name, nn.Parameter(whole(parameter.detach()).clone(), requires_grad=False))
    try:
        yield
    finally:
        changed = getattr(module, name)
        setattr(module, name, parameter)
        local(parameter.detach()).copy_(local(part(changed.detach(), parameter)))
