"""Contact sheets during training: what goes in, what comes out, from the front and from the side."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data.views import Views
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.losses.depth import LABEL_NONE, LABEL_RELATIVE
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.rendering.cameras import camera_to, pivot_camera

_YAWS_DEG = (-20.0, 20.0)
_SAMPLES = 48


def write_sheet(
    path: Path,
    model: Autoencoder,
    recipe: Stage1Recipe,
    image: Tensor,
    label: Tensor,
    label_kind: Tensor,
    views: Views | None = None,
) -> None:
    """Write a PNG with a row an image: input, reconstruction, disparity, label, views from the left and the right.

    Where any image has an exact view, two columns more: that camera's rendering, and the view.

    Args:
        path: The PNG.
        model: The averaged model.
        recipe: Its recipe.
        image: uint8 `[B, 3, S, S]`.
        label: Disparity labels as stored `[B, S, S]`.
        label_kind: `[B]`.
        views: Exact views of the images, one or none of each.
    """
    size, count = recipe.model.image_size, image.shape[0]
    scene = reconstruct_scene(model, image)
    front = scene.render(build_canonical_camera(recipe, size, count), samples=_SAMPLES)
    shown = torch.stack([show_label(s.cpu(), int(kind)) for s, kind in zip(label, label_kind, strict=True)])
    columns = [image, front.rgb, colour_map(front.s.cpu()), shown]
    for yaw_deg in _YAWS_DEG:
        yaw = torch.full((count,), math.radians(yaw_deg))
        camera = pivot_camera(
            yaw,
            torch.zeros(count),
            height_px=size,
            width_px=size,
            radius=recipe.camera.radius,
            fov_rad=math.radians(recipe.camera.fov_deg),
        )
        columns.append(scene.render(camera, samples=_SAMPLES).rgb)
    if views is not None and len(views.row):
        front_camera = camera_to(build_canonical_camera(recipe, size, count), views.row.device)
        pose = front_camera.cam_to_world.index_copy(0, views.row, views.cam_to_world)
        seen = scene.render(replace(front_camera, cam_to_world=pose), samples=_SAMPLES).rgb
        grey = torch.full_like(image, 128)
        columns += [grey.index_copy(0, views.row, tiles) for tiles in (seen[views.row], views.image)]
    tiles = torch.stack([column.cpu() for column in columns], 1).flatten(0, 1)
    write_bytes(path, encode_png(grid(tiles, columns=len(columns))))


def show_label(label: Tensor, kind: int) -> Tensor:
    """The colours of one label `[S, S]` as stored, uint8 `[3, S, S]`."""
    if kind == LABEL_NONE:
        return torch.full((3, *label.shape), 128, dtype=torch.uint8)  # mid grey: there is nothing to show
    if kind != LABEL_RELATIVE:
        return colour_map(label)
    # Known up to scale and shift: any range of values is as good as [0, 1], once it is brought there.
    low, high = float(label.min()), float(label.max())
    scaled = (label - low) / max(high - low, torch.finfo(label.dtype).tiny)
    return colour_map(scaled, *display_range(scaled))
