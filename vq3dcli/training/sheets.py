"""Contact sheets during training: what goes in and what comes out, of the averaged weights.

Tile j of class C of a prior's sheet shows the scene of sample j of `vq3d sample --class C --seed S`, where S is the
seed of the recipe and the prior is the one that a weights file of this moment would hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.config.defaults import SHEET_SAMPLES
from vq3dcli.config.schema import DepthRecipe, SamplingSection, Stage1Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data.loader import Batch
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.losses.depth import LABEL_NONE, LABEL_RELATIVE
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.model.draw_codes import Sharpening, rows_together, sample_index, sample_tokens
from vq3dcli.model.prior import Prior
from vq3dcli.model.scene import reconstruct_scene, scene_from_codes
from vq3dcli.rendering.cameras import pivot_camera
from vq3dcli.weights_file import LoadedWeights, prior_as_loaded

_STAGE1_IMAGES, _YAWS_DEG = 6, (-20.0, 20.0)
_CLASSES, _SAMPLES_A_CLASS = 6, 4
# On a GPU, which training has filled: fewer rows than `vq3d sample` takes, of less of its memory.
_ROWS, _MEMORY_SHARE = 8, 0.25
_DEPTH_IMAGES = 8


def write_stage1_sheet(
    path: Path, model: Autoencoder, recipe: Stage1Recipe, batch: Batch, device: torch.device
) -> None:
    """Write a PNG with a row an image: input, reconstruction, disparity, label, views from the left and the right.

    Where any image has an exact view, two columns more: that camera's rendering, and the view.
    """
    image, label, kinds = (each[:_STAGE1_IMAGES] for each in (batch.image, batch.s, batch.label_kind))
    image, size, count = image.to(device), recipe.model.image_size, len(image)
    scene = reconstruct_scene(model, image)
    front = build_canonical_camera(recipe, size, count)
    view = scene.render(front, samples=SHEET_SAMPLES)
    shown = torch.stack([show_label(s, int(kind)) for s, kind in zip(label, kinds, strict=True)])
    columns = [image, view.rgb, colour_map(view.s.cpu()), shown]
    radius, fov_rad = recipe.camera.radius, math.radians(recipe.camera.fov_deg)
    for yaw_deg in _YAWS_DEG:
        yaw = torch.full((count,), math.radians(yaw_deg))
        beside = pivot_camera(yaw, torch.zeros(count), height_px=size, width_px=size, radius=radius, fov_rad=fov_rad)
        columns.append(scene.render(beside, samples=SHEET_SAMPLES).rgb)
    views = None if batch.views is None else batch.views.of_rows(0, _STAGE1_IMAGES).to(device)
    if views is not None and len(views.row):
        front = front.to(device)
        pose = front.cam_to_world.index_copy(0, views.row, views.cam_to_world)
        seen = scene.render(replace(front, cam_to_world=pose), samples=SHEET_SAMPLES).rgb
        grey = torch.full_like(image, 128)
        columns += [grey.index_copy(0, views.row, tiles) for tiles in (seen[views.row], views.image)]
    tiles = torch.stack([column.cpu() for column in columns], 1).flatten(0, 1)
    write_bytes(path, encode_png(grid(tiles, columns=len(columns))))


def show_label(label: Tensor, kind: int) -> Tensor:
    """The colours of one label `[S, S]` as stored, uint8 `[3, S, S]`."""
    if kind == LABEL_NONE:
        return torch.full((3, *label.shape), 128, dtype=torch.uint8)  # mid grey: there is nothing to show
    # Relative ones are known up to scale and shift: any range of values is as good as [0, 1].
    return _own_range(label, torch.finfo(label.dtype).tiny) if kind == LABEL_RELATIVE else colour_map(label)


def _own_range(disparity: Tensor, least: float) -> Tensor:
    low, high = float(disparity.min()), float(disparity.max())
    scaled = (disparity - low) / max(high - low, least)
    return colour_map(scaled, *display_range(scaled))


def write_prior_sheet(
    path: Path, prior: Prior, stage1: LoadedWeights, class_names: Sequence[str], sampling: SamplingSection, seed: int
) -> None:
    """Write a PNG, a row a class: four samples, the same on each sheet but for the prior, each with its disparity."""
    device = next(stage1.model.parameters()).device
    chosen, codes = sheet_codes(prior, len(class_names), sampling, seed)
    camera = build_canonical_camera(stage1.recipe, stage1.recipe.model.image_size)
    tiles, labels = [], []
    for row, class_index in zip(codes, chosen.tolist(), strict=True):  # one scene in memory at a time
        view = scene_from_codes(stage1.model, row[None].to(device)).render(camera, samples=SHEET_SAMPLES)
        tiles += [view.rgb[0].cpu(), colour_map(view.s[0].cpu())]
        labels += ["" if class_index < 0 else class_names[class_index], ""]
    write_bytes(path, encode_png(grid(tiles, columns=2 * _SAMPLES_A_CLASS, labels=labels)))


def sheet_codes(prior: Prior, classes: int, sampling: SamplingSection, seed: int) -> tuple[Tensor, Tensor]:
    """The samples of a sheet, of all classes or of some from first to last.

    Returns:
        Class indices int64 `[N]`, -1 for a prior without classes, and codes int64 `[N, L]`, on the CPU.
    """
    rows = torch.linspace(0, classes - 1, min(classes, _CLASSES)).round().long() if classes else torch.tensor([-1])
    chosen = rows.repeat_interleave(_SAMPLES_A_CLASS)
    index = torch.tensor([sample_index(c, place % _SAMPLES_A_CLASS) for place, c in enumerate(chosen.tolist())])
    sharpening = Sharpening(**sampling.model_dump())
    drawn_from = prior_as_loaded(prior)
    at_once = rows_together(drawn_from, _ROWS, guidance=sharpening.guidance, memory_share=_MEMORY_SHARE)
    return chosen, sample_tokens(drawn_from, chosen, seed=seed, index=index, sharpening=sharpening, rows=at_once)


def write_depth_sheet(path: Path, model: DepthNetwork, recipe: DepthRecipe, batch: Batch, device: torch.device) -> None:
    """Write a PNG of images, the network's maps and the labels, two images a row, each map in its own range."""
    side = recipe.model.input_px
    image, label = batch.image[:_DEPTH_IMAGES], batch.s[:_DEPTH_IMAGES]
    shown = functional.interpolate(image.float(), (side, side), mode="bilinear", antialias=True).clamp(0.0, 255.0)
    with torch.inference_mode():
        maps = model(shown.to(device).contiguous(memory_format=torch.channels_last)).cpu()
    tiles = []
    for picture, predicted, exact in zip(shown.round().byte(), maps, label, strict=True):
        resized = (functional.interpolate(each[None, None], (side, side))[0, 0] for each in (predicted, exact))
        tiles += [picture, *(_own_range(each, 1e-6) for each in resized)]
    write_bytes(path, encode_png(grid(tiles, columns=6)))
