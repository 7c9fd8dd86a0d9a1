"""Exponential moving average of the weights, its half-life counted in images (Karras et al., CVPR 2024)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

# Early in a run the half-life is this fraction of the images seen, so that the average forgets the random start.
_RAMP_UP = 0.05


def average_of(model: Module) -> Module:
    """A copy of `model` that holds the average; never trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(
    average: nn.Module, model: nn.Module, *, images_seen: int, batch_size: int, half_life_images: float
) -> None:
    """Move `average` towards `model`; buffers are copied, since they are statistics already."""
    half_life = min(half_life_images, images_seen * _RAMP_UP)
    keep = 0.5 ** (batch_size / max(half_life, 1e-8))
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    torch._foreach_lerp_([old for old, _ in pairs], [new.detach() for _, new in pairs], 1.0 - keep)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def as_mapping(module: nn.Module) -> Mapping[str, Tensor]:
    """The module's parameters and buffers by name, detached, contiguous."""
    return {name: value.detach().contiguous() for name, value in module.state_dict().items()}
