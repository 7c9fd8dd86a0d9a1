"""The optimizer and its schedule, all in images seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Parameters that are not multiplied with activations as matrices: decay would only shrink them.
_NO_DECAY_NAMES = ("codebook", "positions", "base")


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.99)
) -> torch.optim.AdamW:
    """AdamW, by default with the betas of ViT-VQGAN; weight decay on matrices only."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(_NO_DECAY_NAMES)
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def learning_rate_at(
    images_seen: int, *, peak: float, warmup_images: int, total_images: int, final_factor: float
) -> float:
    """Linear warm-up to `peak`, then a cosine to `final_factor * peak` at `total_images`."""
    if images_seen < warmup_images:
        return peak * (images_seen + 1) / (warmup_images + 1)
    progress = (images_seen - warmup_images) / max(total_images - warmup_images, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (final_factor + (1.0 - final_factor) * cosine)


def passed(images_seen: int, every: int, batch_size: int) -> bool:
    """Whether a multiple of `every` lies in the step that ended at `images_seen`."""
    return images_seen // every > (images_seen - batch_size) // every


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all parameter groups the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def reset_rows(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Forget the moments of some rows of a parameter, for codes that start anew.

    Args:
        rows: Mask, bool `[K]`.
    """
    state = optimizer.state.get(parameter, {})
    for name in ("exp_avg", "exp_avg_sq"):
        if name in state:
            state[name][rows] = 0.0


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors, `{parameter}/{moment}`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{moment}": torch.as_tensor(value).detach().contiguous()
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises `KeyError` or `ValueError` for tensors of another model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        optimizer.state[parameter][moment] = value.to(parameter.device).clone()
