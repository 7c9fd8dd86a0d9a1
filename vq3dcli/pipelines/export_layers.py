"""Layers of a photo or of a NeRF, for viewers and multiplane images, and how close they are to the scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from vq3dcli.editing.photo_scene import PhotoLayer, PhotoScene
from vq3dcli.editing.relief import resized
from vq3dcli.export.layers import MAX_SIDE_PX, Layers, bake_layers, choose_edges, layers_of_sheets, render_layers
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.film import output_size
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.pipelines.stage import Stage
from vq3dcli.rendering.cameras import Camera, pivot_pose
from vq3dcli.rendering.scene import ViewOf
from vq3dcli.rendering.space import Frustum

# What layers are compared with the rendering at.
_CHECK_PX = 64
_CHECK_TURNS = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Vantage(NamedTuple):
    """From where one looks at a scene: how far cameras turn, how far from the first one their pivot lies, how close."""

    bound_rad: float
    pivot_z: float
    zoom: float = 1.0


def turned_cameras(
    frustum: Frustum, vantage: Vantage, turns: Sequence[tuple[float, float]], size: tuple[int, int]
) -> Camera:
    """Cameras at parts of the bound in yaw and pitch."""
    angles = torch.tensor(turns) * vantage.bound_rad
    pose = pivot_pose(angles[:, 0], angles[:, 1], vantage.pivot_z)
    pose[:, 2, 3] += vantage.pivot_z - frustum.radius
    return frustum.camera(*size).at(pose)


def photo_layers(picture: PhotoScene, count: int) -> Layers:
    """At most `count` layers of a photo in its two sheets."""
    # Beyond the photo's edges the canvas goes on, mirrored: that much wider than the camera's view are the layers.
    canvas, tangent = picture.camera, picture.frustum.tangent
    focal = canvas.intrinsics[0]
    margins = (
        0.5 * canvas.width_px / float(focal[0, 0]) / tangent,
        0.5 * canvas.height_px / float(focal[1, 1]) / tangent,
    )
    # No larger than layers may be.
    factor = min(1.0, MAX_SIDE_PX / max(canvas.width_px, canvas.height_px))
    size = [max(1, math.floor(side * factor)) for side in (canvas.height_px, canvas.width_px)]
    sheets = [
        PhotoLayer(resized(part.rgb.cpu(), size).clamp(0.0, 1.0), resized(part.s.cpu(), size))
        for part in (picture.front, picture.behind)
    ]
    return layers_of_sheets(sheets, picture.frustum, count, margins=margins)


def field_layers(opened: OpenedScene, stage: Stage | None, count: int, samples: int, size: tuple[int, int]) -> Layers:
    """Layers of a NeRF, or of a composition: of its meshes they hold what the first camera sees."""
    frustum, field, hits = opened.frustum, opened.field, None
    if stage is not None:
        composed = stage.at(0.0)
        field, hits = composed.field, composed.hits(frustum.camera(*size).to(opened.device))
    edges_s = choose_edges(field, frustum, count, opened.device)
    samples_a_layer = max(1, round(samples / count))
    return bake_layers(field, frustum, edges_s, size, samples_a_layer=samples_a_layer, hits=hits, device=opened.device)


def layers_psnr(layers: Layers, view_of: ViewOf, frustum: Frustum, vantage: Vantage) -> dict[str, float]:
    """What drawing the layers differs from rendering the scene by, in dB, by the camera's yaw in radians."""
    size = output_size(_CHECK_PX, frustum.aspect)
    camera = turned_cameras(frustum, vantage, [(turn, 0.0) for turn in _CHECK_TURNS], size)
    seen = view_of(camera).rgb.cpu()
    drawn, _ = render_layers(layers, camera)
    figures = psnr(drawn.cpu(), seen).tolist()
    return {f"{turn * vantage.bound_rad:+.3f}": value for turn, value in zip(_CHECK_TURNS, figures, strict=True)}
