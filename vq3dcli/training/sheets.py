"""Contact sheets during training: what goes in, what comes out, from the front and from the side."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.losses.depth import LABEL_NONE
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.rendering.cameras import pivot_camera

_YAWS_DEG = (-20.0, 20.0)
_SAMPLES = 48


def write_sheet(
    path: Path, model: Autoencoder, recipe: Stage1Recipe, image: Tensor, label: Tensor, label_kind: Tensor
) -> None:
    """Write a PNG with a row an image: input, reconstruction, disparity, label, views from the left and the right.

    Args:
        path: The PNG.
        model: The averaged model.
        recipe: Its recipe.
        image: uint8 `[B, 3, S, S]`.
        label: Disparity labels as stored `[B, S, S]`.
        label_kind: `[B]`.
    """
    size, count = recipe.model.image_size, image.shape[0]
    scene = reconstruct_scene(model, image)
    front = scene.render(build_canonical_camera(recipe, size, count), samples=_SAMPLES)
    # Unlabelled images have no label to show: mid grey says so.
    shown = torch.where((label_kind != LABEL_NONE)[:, None, None, None], colour_map(label.cpu()), 128).to(torch.uint8)
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
    tiles = torch.stack([column.cpu() for column in columns], 1).flatten(0, 1)
    write_bytes(path, encode_png(grid(tiles, columns=len(columns))))
