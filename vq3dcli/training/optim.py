"""The optimizer and its schedule, all in images seen."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vq3dcli.config.schema import RunSection, ScheduleSection
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.sharding import gathered, local, part, whole

# Parameters that are not multiplied with activations as matrices: decay would only shrink them.
_NO_DECAY_NAMES = ("codebook", "positions", "base")
# The quintic iteration brings all singular values near one in a few rounds (Jordan et al., 2024). Four rounds of other
# polynomials would do in exact arithmetic; they are so steep that bfloat16 puts out up to 30 times the error.
_ITERATION = (3.4445, -4.7750, 2.0315)
# So many at a time: more would put out a larger error.
_ROUNDS = (3, 2)
_MOMENTUM = 0.95
# Of matrices that are orthogonalised together: more would not be faster, and take memory.
_NUMBERS_TOGETHER = 1 << 22


class MuonAndAdamW(torch.optim.AdamW):
    """Muon for the groups with `muon`, AdamW for the others.

    Muon (Jordan et al., 2024) steps along the orthogonalised momentum of a matrix. Its steps are scaled to the size of
    AdamW's (Liu et al., "Muon is scalable for LLM training", 2025, sec. 2.2). PyTorch has one since 2.9, which
    multiplies in bfloat16 on any device: seconds a step on CPUs that emulate it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients."""
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if not group["muon"]]
            super().step(closure)
        finally:
            self.param_groups = everything
        for group in everything:
            if group["muon"]:
                self._step_along_momentum(group)

    def _step_along_momentum(self, group: dict[str, Any]) -> None:
        """Matrices of one shape are orthogonalised together, some at a time."""
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault(parameter.shape, []).append(parameter)
        few = [
            parameters[start : start + count]
            for shape, parameters in alike.items()
            for count in [max(1, _NUMBERS_TOGETHER // shape.numel())]
            for start in range(0, len(parameters), count)
        ]
        for parameters in few:
            dtype, directions = resolve_precision(group["precision"], parameters[0].device), []
            for parameter in parameters:
                gradient, state = parameter.grad, self.state[parameter]
                assert gradient is not None
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(gradient, 1.0 - _MOMENTUM)
                # Nesterov's, of all rows: a slice's own directions are others.
                directions.append(whole(gradient.lerp(momentum, _MOMENTUM)).to(dtype))
            for parameter, direction in zip(parameters, orthogonalised(torch.stack(directions)), strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                size = -0.2 * max(parameter.shape) ** 0.5 * group["lr"]
                parameter.add_(part(direction, parameter), alpha=size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices `[..., m, n]` with singular values near one (0.7 to 1.2), in their type; bfloat16 is enough.

    A round multiplies x by a + r, a polynomial of its Gram matrix g. Those of several rounds commute; so if x is long,
    they are multiplied with each other before x, by (a + r) g (a + r), the Gram matrix after a round: fewer products,
    and fewer roundings of x.
    """
    a, b, c = _ITERATION
    x = matrices.reshape(-1, *matrices.shape[-2:])
    short, long = sorted(x.shape[1:])
    is_tall = x.shape[1] > short
    size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x * size.clamp(min=1e-7).reciprocal().to(x.dtype)  # a zero matrix stays zero
    for rounds in _ROUNDS if long >= 2 * short else [1] * sum(_ROUNDS):
        gram = x.mT @ x if is_tall else x @ x.mT
        factor, rest = a, torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        last = rest
        for _ in range(rounds - 1):
            half = torch.baddbmm(gram, last, gram, beta=a)
            gram = torch.baddbmm(half, half, last, beta=a)
            last = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor, rest = factor * a, torch.baddbmm(torch.add(a * rest, last, alpha=factor), last, rest)
        x = torch.baddbmm(x, x, rest, beta=factor) if is_tall else torch.baddbmm(x, rest, x, beta=factor)
    return x.reshape(matrices.shape)


def is_for_muon(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix inside a transformer, of one or the other stage."""
    return parameter.ndim == 2 and ".blocks." in f".{name}"


def build_optimizer(
    model: nn.Module, schedule: ScheduleSection, *, betas: tuple[float, float] = (0.9, 0.99)
) -> Optimizer:
    """AdamW, by default with the betas of ViT-VQGAN, or Muon for the matrices of transformers and AdamW for the rest.

    Weight decay on matrices only.
    """
    kind, learning_rate = schedule.optimizer, schedule.learning_rate
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(_NO_DECAY_NAMES)
        is_hidden = kind == "muon" and is_for_muon(name, parameter)
        (hidden if is_hidden else decayed if is_matrix else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    groups = [{**group, "muon": False} for group in groups]
    more = {"weight_decay": schedule.weight_decay, "muon": True, "precision": schedule.precision}
    groups.append({"params": hidden, **more})
    return MuonAndAdamW(groups, lr=learning_rate, betas=betas, fused=True)


def moments_bytes(model: nn.Module, kind: Literal["adamw", "muon"]) -> int:
    """Bytes of an optimizer's state: two numbers a parameter, one of Muon's."""
    muons = sum(p.numel() for name, p in model.named_parameters() if kind == "muon" and is_for_muon(name, p))
    return 8 * sum(p.numel() for p in model.parameters() if p.requires_grad) - 4 * muons


def learning_rate_at(schedule: RunSection, images_seen: int) -> float:
    """Linear warm-up to the schedule's learning rate, then a cosine to its final factor at the last image."""
    peak, warmup, final = schedule.learning_rate, schedule.warmup_images, schedule.final_learning_rate_factor
    if images_seen < warmup:
        return peak * (images_seen + 1) / (warmup + 1)
    progress = (images_seen - warmup) / max(schedule.images - warmup, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (final + (1.0 - final) * cosine)


def is_due(every: int, images_seen: int, batch_size: int) -> bool:
    """Whether a multiple of `every` lies in the step that ended at `images_seen`."""
    return images_seen // every > (images_seen - batch_size) // every


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give all parameter groups the learning rate `value`, times the `factor` of those that have one."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("factor", 1.0)


def reset_rows(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Forget the moments of some rows of a parameter, a mask bool `[K]`, for codes that start anew."""
    state = optimizer.state.get(parameter, {})
    for name in ("exp_avg", "exp_avg_sq"):
        if name in state:
            local(state[name])[local(part(rows, state[name]))] = 0.0


def optimizer_tensors(optimizer: Optimizer, model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors, `{parameter}/{moment}`; as `sharding.gathered`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[parameter]}/{moment}": torch.as_tensor(value).detach().contiguous()
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }
    return gathered(tensors, keep=keep)


def restore_optimizer(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises `KeyError` or `ValueError` for tensors of another model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        optimizer.state[parameter][moment] = part(value, parameter).clone()
