"""Recipes of older weights files in today's keys, with the values that mean what was done then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What weights of formats 1 and 2 were trained with, before these keys were there: none of it.
_LOSS = {"perceptual": 0.0, "perceptual_network": "none", "perceptual_patch_px": 32}
_ADVERSARIAL = {
    "main": 0.0,
    "novel": 0.0,
    "start_images": 0,
    "ramp_images": 0,
    "learning_rate": 1e-4,
    "r1": 0.0,
    "r1_every_steps": 1,
    "base_channels": 32,
    "max_channels": 256,
    "minibatch_group": 1,
    "class_conditional": False,
    "augmentation": "none",
    "adaptive_target": 0.6,
    "novel_sees_disparity": False,
    "size_px": 32,
    "main_patch": False,
    "yaw_deg": 0.0,
    "pitch_deg": 0.0,
}
_TRAINING = {
    "accumulate": 1,
    "compile": False,
    "checkpoint_activations": False,
    "init": "",
    "average_last": 1,
    "tracker": "none",
}


def upgraded_stage1(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of weights formats 1 and 2 as one of format 3: a width and heads for each transformer, new sections.

    Args:
        recipe: Tables of the old recipe.

    Raises:
        KeyError, TypeError, ValueError: It is no such recipe.
    """
    new = {name: dict(value) if isinstance(value, Mapping) else value for name, value in dict(recipe).items()}
    model = dict(new["model"])
    width, heads = model.pop("width"), model.pop("heads")
    for part in ("encoder", "decoder"):
        model |= {f"{part}_width": width, f"{part}_heads": heads}
    return {
        **new,
        "model": model,
        "loss": {**new["loss"], **_LOSS},
        "adversarial": dict(_ADVERSARIAL),
        "training": {**new["training"], **_TRAINING},
    }
