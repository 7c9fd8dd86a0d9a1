"""Steps of recipes as they are trained.

Discriminators have started where a recipe has them, and codes are on: the dearest step of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.losses.depth import LABEL_METRIC
from vq3dcli.losses.perceptual import build_perceptual
from vq3dcli.pipelines.bench.measure import Work
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.training.arithmetic import denormals_flushed
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.stage1 import build_state, take_step

RECIPES = ("toy-cpu", "demo64")
_CLASSES = 16


def works(device: torch.device) -> Iterator[Work]:
    """A step of each of `RECIPES`."""
    for name in RECIPES:
        recipe = load_recipe(name, Stage1Recipe)
        count = recipe.training.batch_size
        yield Work(f"{name}, a step of {count}", stepping(recipe, device), count, "images")


def stepping(recipe: Stage1Recipe, device: torch.device) -> Callable[[], float]:
    """A fresh run of a recipe on toy scenes: each call takes a step of it and returns the loss."""
    batch = toy_batch(recipe.training.batch_size, recipe.model.image_size)
    perceptual = None
    if recipe.loss.any_perceptual:
        perceptual = build_perceptual(recipe.loss.perceptual_network).to(device)
    ranks = Ranks()
    state = build_state(recipe, classes=_CLASSES, device=device, ranks=ranks)
    if recipe.training.checkpoint_activations:
        state.model.checkpoint_activations()
    if recipe.training.compile:
        state.model.compile_parts()
    state.images_seen = max(recipe.training.quantize_from_images * 4, recipe.adversarial.start_images) + 1
    objective = Stage1Objective(state.model, recipe, state.adversary, perceptual)

    def step() -> float:
        with denormals_flushed():
            loss = float(take_step(recipe, state, objective, batch, device=device, ranks=ranks).objective.loss)
        assert math.isfinite(loss), loss
        return loss

    return step


def toy_batch(count: int, size_px: int) -> Batch:
    """Toy scenes with exact labels."""
    index = torch.arange(count)
    camera = canonical_camera(count, height_px=size_px, width_px=size_px)
    views = render_scenes(sample_scenes(index, seed=0), camera)
    kinds = torch.full((count,), LABEL_METRIC, dtype=torch.int8)
    return Batch(views.rgb, views.s, kinds, index % _CLASSES, index, [str(i) for i in range(count)])
