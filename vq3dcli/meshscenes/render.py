"""Scenes of textured models with exact disparity from any camera: on a ground, in a room, on a table, or close by.

Scene i of a seed is a pure function of (seed, purpose, i), of the models and of the photos: the bytes depend on nothing
else that runs. Disparity comes from the same triangles as the colours, at the pixels' centres.

The canonical camera takes the picture: the main model lies about the pivot. Everything lies beyond NEAR, also for
cameras within +-20 degrees of yaw and +-10 of pitch: a scene that comes nearer is moved away along the
canonical camera's rays, which leaves its picture as it is. Varied scenes are made for their one picture: in rooms and
on tables the main model may be anywhere in it, and other cameras may come nearer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.meshscenes.layout import KINDS, AloneDraft, Draft, Kind, Layout, cleared, drawn_kind
from vq3dcli.meshscenes.library import Dice, Library
from vq3dcli.meshscenes.raster import Bytes, Floats, Singles, Triangles, Visible, visible
from vq3dcli.meshscenes.rooms import RoomDraft
from vq3dcli.meshscenes.shading import ShadowMap, defocused, mean_of_blocks, shade, shadow_map
from vq3dcli.meshscenes.varied import TableDraft, VariedDraft
from vq3dcli.rendering.cameras import CAMERA_RADIUS, FAR, FOV_RAD, NEAR, pivot_pose

# Close-ups are refused more often than others: three of ten are left.
_VARIED_KINDS: tuple[tuple[Kind, float], ...] = (
    ("open", 0.19),
    ("wall", 0.08),
    ("room", 0.23),
    ("table", 0.15),
    ("close", 0.35),
)
_FOVS_DEG = {"room": (50.0, 72.0)}
_ANY_FOV_DEG = (26.0, 72.0)
_FROM_ABOVE = 0.75  # of the tables

_SUPERSAMPLE = 2
_TRIES = 16
_SMALL_PX = 24  # of the pictures by which a scene is judged
_MOST_MOVED = 1.6  # times: beyond it the main model is no longer about the pivot
_MARGIN_M = 0.03  # the small pictures see only some of the points
_BLUR_OF_PX = 128.0
_EYE = np.array([0.0, 0.0, -CAMERA_RADIUS])
_CORNERS_DEG = ((0.0, 0.0), (20.0, 10.0), (-20.0, 10.0), (20.0, -10.0), (-20.0, -10.0))


class MeshScene(NamedTuple):
    """A scene that can be looked at."""

    layout: Layout  # what is where
    shadows: ShadowMap  # from the sun
    gain: float  # times all colours: the exposure of the canonical camera
    focus: float  # disparity (1 / z_depth) that is sharp in the canonical camera


class MeshView(NamedTuple):
    """A picture: `rgb` uint8 `[size, size, 3]`, and s float64 `[size, size]` in [0, 1]; 0 is the sky."""

    rgb: Bytes
    s: Floats


def sample_scene(
    library: Library,
    index: int,
    *,
    seed: int,
    purpose: str = "train",
    varied: bool = False,
    alone: bool = False,
    clear: bool = False,
) -> MeshScene:
    """Scene number `index` of (seed, purpose); equal seeds under different purposes share no scene.

    Of varied scenes the field of view is drawn too, from 26 to 72 degrees, and rooms and tables are as in photos; else
    it is that of the canonical camera. One model is `alone`, whole, on even ground. Of `clear` scenes nothing lies in
    haze or out of focus.
    """
    name = f"meshscenes{'-varied' if varied else '-alone' if alone else ''}/{purpose}"
    for attempt in range(_TRIES):
        dice = Dice(seed, f"{name}/{attempt}", index)
        if varied:
            draft = _varied(library, dice)
        elif alone:
            draft = AloneDraft(library, dice, FOV_RAD)
        else:
            draft = Draft(library, dice, drawn_kind(dice, KINDS), FOV_RAD)
        layout = cleared(draft.draw()) if clear else draft.draw()
        scene = _finished(layout, novel=not varied, forgiving=attempt == _TRIES - 1)
        if scene is not None:
            return scene
    raise AssertionError("the last try is always good")


def _varied(library: Library, dice: Dice) -> Draft:
    kind = drawn_kind(dice, _VARIED_KINDS)
    fov_rad = math.radians(dice(*_FOVS_DEG.get(kind, _ANY_FOV_DEG)))
    if kind == "room":
        return RoomDraft(library, dice, kind, fov_rad)
    above = kind == "table" and dice.chance(_FROM_ABOVE)
    return (TableDraft if above else VariedDraft)(library, dice, kind, fov_rad)


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
    rgb = shade(layout.triangles, layout.textures, seen, pose, focal_px, layout.light, shadows, layout.sky)
    if layout.vignette > 0.0:
        at = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0) ** 2
        rgb *= (1.0 - np.float32(0.5 * layout.vignette) * (at[:, None] + at))[..., None]
    return seen, rgb


def _finished(layout: Layout, *, novel: bool, forgiving: bool) -> MeshScene | None:
    """The scene with its distance, exposure and shadows, or None if it makes no picture.

    `novel`: nothing may be too near for novel cameras either. `forgiving`: take it as it is, if only nothing is too
    near.
    """
    layout, moved = _moved_away(layout, _CORNERS_DEG if novel else _CORNERS_DEG[:1])
    casters = Triangles._make(column[: layout.num_casters] for column in layout.triangles)
    shadows = shadow_map(casters, layout.textures, layout.light, layout.centre, layout.reach_m)
    seen, rgb = _colours(layout, shadows, pose_at(0.0, 0.0), _SMALL_PX)
    main = (seen.triangle >= 0) & (layout.triangles.part[seen.triangle] == 0)
    levels = rgb.mean(-1)
    mean, contrast = float(levels.mean()), float(levels.std())
    gain = min(2.5, max(0.4, min(max(mean, layout.brightness[0]), layout.brightness[1]) / max(mean, 1e-3)))
    share = float(main.mean())
    flat = float(seen.inverse_z.std()) < 0.01
    shown = layout.least_share < share < 0.97 and contrast >= layout.least_contrast and mean >= 0.05
    shown = shown and not (layout.whole and (main[[0, -1]].any() or main[:, [0, -1]].any()))
    if not forgiving and (moved > _MOST_MOVED or flat or not shown):
        return None
    focus = float(np.median(seen.inverse_z[main])) if main.any() else 1.0 / CAMERA_RADIUS
    return MeshScene(layout, shadows, gain, focus)


def _moved_away(layout: Layout, angles_deg: Sequence[tuple[float, float]]) -> tuple[Layout, float]:
    """The scene beyond NEAR for cameras at these (yaw, pitch), and how many times farther away it is."""
    total = 1.0
    poses = [pose_at(yaw, pitch) for yaw, pitch in angles_deg]
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
            light=layout.light._replace(
                lamp=(layout.light.lamp - _EYE) * times + _EYE, lamp_m=layout.light.lamp_m * times
            ),
        )
