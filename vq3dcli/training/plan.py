"""What a run will take, before it starts: parameters by part, bytes, steps."""

from __future__ import annotations

from typing import Any

import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.arithmetic import resolve_precision

# Weights, their average, their gradient and Adam's two moments, in float32.
_BYTES_A_PARAMETER = 5 * 4


def plan_run(recipe: Stage1Recipe, device: torch.device) -> dict[str, Any]:
    """Figures of a run by name.

    `parameters` by part and in all; `training_bytes` of weights, average, gradient and moments, without activations;
    `steps`, `images`, `tokens` an image, `precision`, `device`.
    """
    with torch.device("meta"):
        model = build_autoencoder(recipe)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(parts.values())
    schedule = recipe.training
    return {
        "parameters": {**parts, "total": total},
        "training_bytes": total * _BYTES_A_PARAMETER,
        "steps": -(-schedule.images // schedule.batch_size),
        "images": schedule.images,
        "tokens": (recipe.model.image_size // recipe.model.patch) ** 2,
        "precision": str(resolve_precision(schedule.precision, device)).removeprefix("torch."),
        "device": str(device),
    }
