"""The optimizer and its schedule, all in images seen."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vq3dcli.errors import RecipeError

# Parameters that are not multiplied with activations as matrices: decay would only shrink them.
_NO_DECAY_NAMES = ("codebook", "positions", "base")


# What Muon orthogonalises: the matrices inside a transformer, of one or the other stage.
_IN_A_TRANSFORMER = ".blocks."


class OptimizerLike(Protocol):
    """What a step and a checkpoint need of an optimizer."""

    state: defaultdict[Tensor, Any]
    param_groups: list[dict[str, Any]]

    def step(self) -> object:
        """Change the parameters by their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        ...


class MuonAndAdamW:
    """Muon for some parameters, AdamW for the others."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.AdamW) -> None:
        self._both = (muon, adamw)
        muon.state = adamw.state  # no parameter is in both, so that one mapping serves
        self.state: defaultdict[Tensor, Any] = adamw.state
        self.param_groups: list[dict[str, Any]] = [*muon.param_groups, *adamw.param_groups]

    def step(self) -> None:
        """Change the parameters by their gradients."""
        for optimizer in self._both:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for optimizer in self._both:
            optimizer.zero_grad(set_to_none)


def build_optimizer(
    model: nn.Module,
    *,
    kind: Literal["adamw", "muon"] = "adamw",
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.99),
) -> OptimizerLike:
    """AdamW, by default with the betas of ViT-VQGAN, or Muon for the matrices of transformers and AdamW for the rest.

    Muon (Jordan et al., 2024) steps along the orthogonalised momentum. Its steps are scaled to the size of AdamW's (Liu
    et al., "Muon is scalable for LLM training", 2025, sec. 2.2), so that one learning rate means the same for both.
    Weight decay on matrices only.

    Raises:
        RecipeError: This PyTorch has no Muon.
    """
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(_NO_DECAY_NAMES)
        is_hidden = kind == "muon" and parameter.ndim == 2 and _IN_A_TRANSFORMER in f".{name}"
        (hidden if is_hidden else decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    if kind == "adamw":
        return adamw
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(
            f"training.optimizer = muon needs PyTorch 2.9 or newer, this is {torch.__version__}",
            remedy="--set training.optimizer=adamw",
        )
    muon = torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, adamw)


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


def set_learning_rate(optimizer: OptimizerLike, value: float) -> None:
    """Give all parameter groups the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def reset_rows(optimizer: OptimizerLike, parameter: nn.Parameter, rows: Tensor) -> None:
    """Forget the moments of some rows of a parameter, for codes that start anew.

    Args:
        rows: Mask, bool `[K]`.
    """
    state = optimizer.state.get(parameter, {})
    for name in ("exp_avg", "exp_avg_sq"):
        if name in state:
            state[name][rows] = 0.0


def optimizer_tensors(optimizer: OptimizerLike, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors, `{parameter}/{moment}`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{moment}": torch.as_tensor(value).detach().contiguous()
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def restore_optimizer(optimizer: OptimizerLike, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises `KeyError` or `ValueError` for tensors of another model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        optimizer.state[parameter][moment] = value.to(parameter.device).clone()
