"""A photo with a disparity for each pixel, seen from other cameras: rays are intersected with the relief.

In the photo a ray of another camera is a straight line: at normalised disparity s it lies at `base + s * step` pixels.
So marching it from near to far in equal steps of s visits pixel after pixel, and the first place where the relief is
as near as the ray is what it sees. From the first camera itself `step` is 0: each pixel shows itself, whatever the
relief.

Legend: N rays, H height_px, W width_px, C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import Camera, DepthRange, Rays, image_rays, rays_at_pixels, s_from_z_depth
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.render import is_exact

# A step of the march; half a pixel would cost twice and shows no difference.
_STEP_PX = 1.0
_MOST_STEPS = 512
_STEPS_AT_ONCE = 6
# Bisection ends when the place is known to this much of s, which no picture of disparity shows.
_PRECISE_S = 1e-3
# Cameras inside the scene do not look at what is nearer than this, and rays that turn back are cut.
_NEAREST_Z = 0.05
_LEAST_FORWARD = 1e-2


class Lines(NamedTuple):
    """Rays as lines in the photo."""

    base: Tensor  # pixels at s = 0, (x, y), `[N, 2]`
    step: Tensor  # pixels a unit of s, `[N, 2]`
    nearest_s: float  # nothing nearer than this is seen: it lies behind the camera


class Intersections(NamedTuple):
    """Where rays meet a relief."""

    pixels: Tensor  # place in the photo, (x, y), `[N, 2]`
    s: Tensor  # normalised disparity there in the photo's camera, `[N]`
    # how much larger the relief's surface appears here than in the photo, `[N]`: 1 as large, above 1 pulled apart, as
    # the walls of its steps are
    stretch: Tensor


def camera_lines(photo: Camera, camera: Camera, depth_range: DepthRange, pixels: Tensor | None = None) -> Lines:
    """Rays of a camera as lines in the image of another: all of its pixels', or through some, `[N, 2]`."""
    return lines_of(photo, image_rays(camera) if pixels is None else rays_at_pixels(camera, pixels), depth_range)


def lines_of(photo: Camera, rays: Rays, depth_range: DepthRange) -> Lines:
    """Rays `[1, N]` of one camera as lines in the image of another, that of the relief, at any pose.

    `depth_range` are the z_depths of s = 1 and s = 0 in the photo's camera.
    """
    rotation = photo.cam_to_world[0, :3, :3]
    origin = ((rays.origin - photo.cam_to_world[0, :3, 3]) @ rotation)[0]
    direction = (rays.direction @ rotation)[0]
    direction = torch.cat([direction[:, :2], direction[:, 2:].clamp(min=_LEAST_FORWARD)], -1)
    slope = direction[:, :2] / direction[:, 2:]
    matrix = photo.intrinsics[0]
    focal = torch.stack([matrix[0, 0], matrix[1, 1]])
    # A point at z_depth z of the photo lies at slope + (origin - origin_z slope) / z, and 1/z is linear in s.
    shift = focal * (origin[:, :2] - origin[:, 2:] * slope)
    base = focal * slope + matrix[:2, 2] + shift / depth_range.far
    step = shift * depth_range.extent
    nearest_z = float(origin[0, 2]) + _NEAREST_Z
    nearest_s = 1.0
    if nearest_z > depth_range.near:
        nearest_s = float(s_from_z_depth(torch.tensor(nearest_z), depth_range))
    return Lines(base, step, nearest_s)


def longest_shift(lines: Lines, low_s: float, high_s: float) -> float:
    """How far a ray moves at most over the photo, in pixels, between two disparities."""
    return float(lines.step.square().sum(-1).max().sqrt()) * (high_s - low_s)


def edge_lines(photo: Camera, cameras: Camera, depth_range: DepthRange) -> list[Lines]:
    """Lines of each camera's corners, sides and middle: its rays there go farthest."""
    parts = torch.tensor([0.0, 0.5, 1.0])
    ends = torch.cartesian_prod(parts * cameras.width_px, parts * cameras.height_px).to(cameras.intrinsics)
    return [camera_lines(photo, cameras[index], depth_range, ends) for index in range(len(cameras))]


def intersect(relief: Tensor, lines: Lines) -> Intersections:
    """Meet a relief `[H, W]`, bilinear between pixels and replicated outside, with rays: each one's nearest place.

    Rays are independent of each other but for the number of steps, which all share.
    """
    low, high = float(relief.min()), min(float(relief.max()), lines.nearest_s)
    low = min(low, high)
    if relief.device.type == "cpu" and not is_exact():
        from vq3dcli.editing.march_fused import march  # numba takes half a second

        s, stretch = march(
            relief, lines.base, lines.step, high, low,
            step_px=_STEP_PX, most_steps=_MOST_STEPS, precise_s=_PRECISE_S,
        )  # fmt: skip
        return Intersections(lines.base + s[:, None] * lines.step, s, stretch)
    steps = math.ceil(longest_shift(lines, low, high) / _STEP_PX)
    steps = max(1, min(_MOST_STEPS, steps))
    maps = relief[None]
    first = torch.full((len(lines.base),), steps, device=relief.device)
    active, base, step = torch.arange(len(first), device=relief.device), lines.base, lines.step
    for start in range(0, steps, _STEPS_AT_ONCE):
        met = torch.full((len(active),), steps, device=relief.device)
        for index in range(min(start + _STEPS_AT_ONCE, steps) - 1, start - 1, -1):
            level = high + (low - high) * index / steps
            met[look_up_px(maps, torch.add(base, step, alpha=level))[0] >= level] = index
        first[active] = met
        under_way = met == steps
        active, base, step = active[under_way], base[under_way], step[under_way]
        if not len(active):
            break
    # The last place of the march where a ray is outside, and the first one inside.
    front = high + (low - high) * (first - 1).clamp(min=0) / steps
    behind = high + (low - high) * first / steps
    s = _refined(maps, lines, front, behind, (high - low) / steps)
    pixels = lines.base + s[:, None] * lines.step
    return Intersections(pixels, s, _stretch(maps, pixels, lines.step))


def _refined(maps: Tensor, lines: Lines, front: Tensor, behind: Tensor, interval_s: float) -> Tensor:
    """The place between `front` and `behind`, `interval_s` apart, where rays enter the relief."""
    for _ in range(max(2, math.ceil(math.log2(max(interval_s, _PRECISE_S) / _PRECISE_S)))):
        middle = 0.5 * (front + behind)
        inside = look_up_px(maps, lines.base + middle[:, None] * lines.step)[0] >= middle
        behind = torch.where(inside, middle, behind)
        front = torch.where(inside, front, middle)
    return 0.5 * (front + behind)


def _stretch(maps: Tensor, pixels: Tensor, step: Tensor) -> Tensor:
    """1 - gradient . step: what a pixel of the photo grows to, from u = base + s(u) step by implicit derivative."""
    half = 0.5 * torch.eye(2, device=pixels.device)
    slope = [look_up_px(maps, pixels + offset)[0] - look_up_px(maps, pixels - offset)[0] for offset in half]
    return 1.0 - slope[0] * step[:, 0] - slope[1] * step[:, 1]
