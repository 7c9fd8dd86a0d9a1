"""Scenes of textured models with exact disparity from any camera: on a ground, in a room, on a table, or close by.

Scene i of a seed is a pure function of (seed, purpose, i), of the models and of the photos: the bytes depend on nothing
else that runs. Disparity comes from the same triangles as the colours, at the pixels' centres.

The canonical camera takes the picture: the main model lies about the pivot. Everything lies beyond NEAR, also for
cameras within +-20 degrees of yaw and +-10 of pitch: a scene that comes nearer is moved away along the
canonical camera's rays, which leaves its picture as it is.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.data.meshlayout import Kind, Layout, draw_layout
from vq3dcli.data.meshlibrary import Dice, Library
from vq3dcli.data.meshraster import Bytes, Floats, Singles, Visible, first_triangles, visible
from vq3dcli.data.meshshading import ShadowMap, defocused, mean_of_blocks, shade, shadow_map
from vq3dcli.rendering.cameras import CAMERA_RADIUS, FAR, FOV_RAD, NEAR, pivot_pose

_SUPERSAMPLE = 2
_TRIES = 16
_SMALL_PX = 24  # of the pictures by which a scene is judged
_MOST_MOVED = 1.6  # times: beyond it the main model is no longer about the pivot
_MARGIN_M = 0.03  # the small pictures see only some of the points
_FOVS_DEG = (26.0, 72.0)
_BLUR_OF_PX = 128.0
_EYE = np.array([0.0, 0.0, -CAMERA_RADIUS])
_CORNERS_DEG = ((0.0, 0.0), (20.0, 10.0), (-20.0, 10.0), (20.0, -10.0), (-20.0, -10.0))


class MeshScene(NamedTuple):
    """A scene that can be looked at.

    Attributes:
        layout: What is where.
        shadows: From the sun.
        gain: Times all colours: the exposure of the canonical camera.
        focus: Disparity (1 / z_depth) that is sharp in the canonical camera.
    """

    layout: Layout
    shadows: ShadowMap
    gain: float
    focus: float

    @property
    def class_index(self) -> int:
        """Of the main model."""
        return self.layout.class_index

    @property
    def fov_rad(self) -> float:
        """Horizontal field of view of the camera that takes the picture."""
        return self.layout.fov_rad

    @property
    def kind(self) -> Kind:
        """What is around the main model."""
        return self.layout.kind


class MeshView(NamedTuple):
    """A picture: `rgb` uint8 `[size, size, 3]`, and s float64 `[size, size]` in [0, 1]; 0 is the sky."""

    rgb: Bytes
    s: Floats


def sample_scene(library: Library, index: int, *, seed: int, purpose: str = "train", varied: bool = False) -> MeshScene:
    """Scene number `index` of (seed, purpose).

    Args:
        library: The models.
        index: At least 0.
        seed: Of all that is drawn.
        purpose: Equal seeds under different purposes share no scene.
        varied: The field of view is drawn too, from 26 to 72 degrees; otherwise it is that of the canonical camera.
    """
    name = f"meshscenes{'-varied' if varied else ''}/{purpose}"
    for attempt in range(_TRIES):
        dice = Dice(seed, f"{name}/{attempt}", index)
        fov_rad = math.radians(dice(*_FOVS_DEG)) if varied else FOV_RAD
        scene = _finished(draw_layout(library, dice, fov_rad=fov_rad), forgiving=attempt == _TRIES - 1)
        if scene is not None:
            return scene
    raise AssertionError("the last try is always good")


def render_scene(scene: MeshScene, cam_to_world: Floats, size: int) -> MeshView:
    """A picture of `size` x `size` pixels; a colour is the mean of four rays, s that of the pixel's centre."""
    layout = scene.layout
    large = size * _SUPERSAMPLE
    rgb = _colours(layout, scene.shadows, cam_to_world, large)[1]
    rgb = mean_of_blocks(rgb, _SUPERSAMPLE, scene.gain)
    centres = visible(layout.triangles, layout.textures, cam_to_world, _focal_px(layout, size), size, size)
    if layout.blur_px > 0.0:
        rgb = defocused(rgb, centres.inverse_z, scene.focus, layout.blur_px * size / _BLUR_OF_PX)
    s = ((centres.inverse_z - 1.0 / FAR) / (1.0 / NEAR - 1.0 / FAR)).clip(0.0, 1.0)
    return MeshView((rgb * 255.0 + 0.5).astype(np.uint8), s)


@functools.lru_cache(maxsize=16)
def pose_at(yaw_deg: float, pitch_deg: float) -> Floats:
    """`cam_to_world` `[4, 4]` of a camera around the pivot."""
    yaw, pitch = (torch.tensor([math.radians(angle)], dtype=torch.float64) for angle in (yaw_deg, pitch_deg))
    pose: Floats = pivot_pose(yaw, pitch)[0].numpy()
    return pose


def _focal_px(layout: Layout, size: int) -> float:
    return 0.5 * size / math.tan(0.5 * layout.fov_rad)


def _colours(layout: Layout, shadows: ShadowMap, pose: Floats, size: int) -> tuple[Visible, Singles]:
    focal_px = _focal_px(layout, size)
    seen = visible(layout.triangles, layout.textures, pose, focal_px, size, size)
    return seen, shade(layout.triangles, layout.textures, seen, pose, focal_px, layout.light, shadows, layout.sky)


def _finished(layout: Layout, *, forgiving: bool) -> MeshScene | None:
    """The scene with its distance, exposure and shadows, or None if it makes no picture.

    Args:
        layout: What was drawn.
        forgiving: Take it as it is, if only nothing is too near.
    """
    layout, moved = _moved_away(layout)
    casters = first_triangles(layout.triangles, layout.num_casters)
    shadows = shadow_map(casters, layout.textures, layout.light, layout.centre, layout.reach_m)
    seen, rgb = _colours(layout, shadows, pose_at(0.0, 0.0), _SMALL_PX)
    main = (seen.triangle >= 0) & (layout.triangles.part[seen.triangle] == 0)
    levels = rgb.mean(-1)
    mean, contrast = float(levels.mean()), float(levels.std())
    gain = min(2.5, max(0.4, min(max(mean, 0.28), 0.62) / max(mean, 1e-3)))
    share = float(main.mean())
    flat = float(seen.inverse_z.std()) < 0.01
    if not forgiving and (moved > _MOST_MOVED or not 0.03 < share < 0.97 or contrast < 0.04 or flat or mean < 0.05):
        return None
    focus = float(np.median(seen.inverse_z[main])) if main.any() else 1.0 / CAMERA_RADIUS
    return MeshScene(layout, shadows, gain, focus)


def _moved_away(layout: Layout) -> tuple[Layout, float]:
    """The scene beyond NEAR for all cameras around the pivot, and how many times farther away it is."""
    total = 1.0
    poses = [pose_at(yaw, pitch) for yaw, pitch in _CORNERS_DEG]
    while True:
        seen = (
            visible(layout.triangles, layout.textures, pose, _focal_px(layout, _SMALL_PX), _SMALL_PX, _SMALL_PX)
            for pose in poses
        )
        nearest = 1.0 / max(1e-9, max(float(each.inverse_z.max()) for each in seen))
        if nearest >= NEAR + _MARGIN_M:
            return layout, total
        times = 1.02 * (NEAR + _MARGIN_M) / nearest
        total *= times
        corners = (layout.triangles.corners - _EYE) * times + _EYE
        layout = layout._replace(
            triangles=layout.triangles._replace(corners=corners.astype(np.float32)),
            centre=(layout.centre - _EYE) * times + _EYE,
            reach_m=layout.reach_m * times,
        )
