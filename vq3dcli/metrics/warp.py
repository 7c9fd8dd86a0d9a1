"""Novel views by looking pixels up: baselines and ceilings of a rendered view, and whether two views agree.

Each warp looks up a source image at the places that the pixels of a novel view see, given some geometry: one flat plane
(`flat_warp`, what a painted wall can do) or the exact disparity of both views (`exact_warp`, a ceiling for what only
moves the pixels of its input). `reprojection` asks, without any ground truth, whether two rendered views show the same
surfaces: consistent is not right, a painted wall is perfectly consistent.

Legend: B images, H height_px, W width_px, N pixels of an image.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    DEPTH_RANGE,
    Camera,
    DepthRange,
    image_rays,
    pivot_pose,
    pixel_centres,
    project,
    rays_at_pixels,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.lookup import grid_look_up

# (yaw, pitch) in degrees around the pivot at the canonical radius.
EVALUATION_VIEWS_DEG: tuple[tuple[float, float], ...] = ((10, 0), (-10, 0), (20, 0), (-20, 0), (0, 10), (0, -10))

# Rays nearly parallel to the plane, or points behind the source camera, would be divided by zero or mirrored. Within
# 50 degrees of the canonical view neither happens.
_SMALLEST_Z = 1e-3

# A pixel is hidden if the source camera sees something nearer by this much in s: several times the step between
# neighbouring pixels of a slanted ground, several times less than that between an object and what is behind it.
_HIDDEN_S = 0.02
# A difference of 1 in s counts as many image widths when a hidden pixel looks for its nearest neighbour.
_WIDTHS_PER_S = 5.0
# A pixel that comes home within this share of the width is consistent: 1.3 pixels of 64.
CONSISTENT_SHARE_OF_WIDTH = 0.02


def evaluation_cameras(canonical: Camera, radius: float = CAMERA_RADIUS) -> list[Camera]:
    """The B canonical cameras at each of `EVALUATION_VIEWS_DEG` around the pivot, in that order."""
    angles = [[torch.full((len(canonical),), math.radians(deg)) for deg in view] for view in EVALUATION_VIEWS_DEG]
    return [replace(canonical, cam_to_world=pivot_pose(yaw, pitch, radius)) for yaw, pitch in angles]


def flat_warp(image: Tensor, source: Camera, target: Camera, z_depth: Tensor) -> Tensor:
    """`image` seen from `target` as if it were painted on the plane `z_depth` = constant of the source camera.

    `image` is `[B, 3, H, W]`, uint8 or float in [0, 1]; `z_depth` `[B]` the distance of the plane along the source
    camera's axis in metres. float32 `[B, 3, H, W]` in [0, 1] at the target's size; the edges of `image` are replicated.
    """
    rays = image_rays(target)
    axis = source.cam_to_world[:, None, :3, 2]
    start_z = ((rays.origin - source.cam_to_world[:, None, :3, 3]) * axis).sum(-1)
    step_z = (rays.direction * axis).sum(-1).clamp(min=_SMALLEST_Z)
    distance = (z_depth[:, None].to(start_z) - start_z) / step_z
    return _look_up(image, source, target, rays.origin + distance[..., None] * rays.direction)


def exact_warp(image: Tensor, source: Camera, target: Camera, s_source: Tensor, s_target: Tensor) -> Tensor:
    """`image` seen from `target`, with exact geometry.

    A surface that something hides from the source camera takes the colour of the nearest visible pixel at a similar
    disparity. Without that each object would be painted a second time onto what it hides, and the warp would score
    below a painted wall.

    `image` is `[B, 3, H, W]`, uint8 or float in [0, 1]; `s_source` and `s_target` are the exact disparities `[B, H, W]`
    in the two cameras. float32 `[B, 3, H, W]` in [0, 1] at the target's size; outside the frame of `image` its nearest
    edge.
    """
    rays = image_rays(target)
    points = rays.origin + z_depth_from_s(s_target.flatten(1))[..., None] * rays.direction
    warped = _look_up(image, source, target, points)
    s_seen = _look_up(s_source[:, None], source, target, points, mode="nearest")[:, 0]
    s_here = s_from_z_depth(project(source, points)[1]).reshape(s_seen.shape)
    hidden = s_seen - s_here > _HIDDEN_S
    for picture, s, mask in zip(warped, s_target, hidden, strict=True):
        _fill(picture, s, mask)
    return warped


def _fill(picture: Tensor, s: Tensor, hidden: Tensor) -> None:
    """Give the hidden pixels of `picture` `[3, H, W]` the colour of the nearest other one in (x, y, s), in place."""
    height_px, width_px = s.shape
    position = torch.cat(
        [pixel_centres(height_px, width_px, s.device), s.reshape(-1, 1) * _WIDTHS_PER_S * width_px], -1
    )
    mask = hidden.flatten()
    if mask.any() and not mask.all():
        nearest = torch.cdist(position[mask], position[~mask]).argmin(-1)
        picture[:, hidden] = picture[:, ~hidden][:, nearest]


def plane_z_depth(s_true: Tensor) -> Tensor:
    """The plane that stands for a scene in `flat_warp`: 1 / mean(d), `[B]`, from exact s `[B, H, W]`."""
    disparity = s_true * DEPTH_RANGE.extent + 1.0 / DEPTH_RANGE.far
    return 1.0 / disparity.flatten(1).mean(-1)


def _look_up(image: Tensor, source: Camera, target: Camera, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Samples of `image` `[B, C, H, W]` where the source camera sees the world points `[B, N, 3]` of the target."""
    pixels, z_depth = project(source, points)
    # A point behind the source camera has mirrored pixel coordinates; it shows the image's first pixel instead.
    pixels = torch.where((z_depth > _SMALLEST_Z)[..., None], pixels, torch.zeros_like(pixels))
    values = image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
    return _sample(values, source, pixels, mode).unflatten(-1, (target.height_px, target.width_px))


def _sample(image: Tensor, camera: Camera, pixels: Tensor, mode: str = "bilinear") -> Tensor:
    """`image` `[B, C, H, W]` of `camera` at pixel coordinates `[B, N, 2]`, `[B, C, N]`; edges replicated."""
    size = torch.tensor([camera.width_px, camera.height_px], dtype=pixels.dtype, device=pixels.device)
    grid = (2.0 * pixels / size - 1.0)[:, :, None]
    return grid_look_up(image, grid, mode=mode)[..., 0]


class Reprojection(NamedTuple):
    """How pixels come home; float64 `[B]` each, NaN where the second view sees none of them."""

    # median distance from where they started, in percent of the width. A median, since what one view sees and something
    # hides from the other never comes home
    error: Tensor
    # part of the pixels within `CONSISTENT_SHARE_OF_WIDTH`. Exact scenes do not reach 1 either: compare with theirs
    share: Tensor


def reprojection(
    source: Camera, s_source: Tensor, target: Camera, s_target: Tensor, depth_range: DepthRange = DEPTH_RANGE
) -> Reprojection:
    """Carry pixels to the target by the source's disparity `[B, H, W]`, and back by what the target shows there.

    In a scene of surfaces they come home; where a view's disparity is a mean over floaters they do not.
    """
    rays = image_rays(source)
    pixels, z_depth = project(
        target, rays.origin + z_depth_from_s(s_source.flatten(1), depth_range)[..., None] * rays.direction
    )
    size = torch.tensor([target.width_px, target.height_px], dtype=pixels.dtype, device=pixels.device)
    seen = (z_depth > _SMALLEST_Z) & ((pixels > 0) & (pixels < size)).all(-1)
    inside = torch.where(seen[..., None], pixels, torch.zeros_like(pixels))
    # Bilinear, which is exact on planes.
    back, s_there = rays_at_pixels(target, inside), _sample(s_target[:, None], target, inside)[:, 0]
    home, home_z = project(source, back.origin + z_depth_from_s(s_there, depth_range)[..., None] * back.direction)
    start = pixel_centres(source.height_px, source.width_px, s_source.device)
    distance = (home - start).square().sum(-1).sqrt().double() / source.width_px
    # A point behind the first camera has mirrored pixels: it is lost, however near they lie.
    distance = distance.masked_fill(home_z <= _SMALLEST_Z, torch.inf).masked_fill(~seen, torch.nan)
    near_home = (distance <= CONSISTENT_SHARE_OF_WIDTH).double().masked_fill(~seen, torch.nan)
    return Reprojection(100.0 * distance.nanmedian(-1).values, near_home.nanmean(-1))
