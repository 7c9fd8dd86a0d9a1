"""How far cameras may go, and how far they zoom in: paths that adapt to the relief of a photo.

Widths are those of the image. Legend: H height_px, W width_px of the photo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.editing.march import camera_lines, intersect
from vq3dcli.editing.relief import local_range, mean_of, resized, steps
from vq3dcli.rendering.cameras import Camera, DepthRange
from vq3dcli.rendering.space import Frustum
from vq3dcli.rendering.trajectories import PATHS

# What near and far things move against each other at the end of a path, in widths.
MOST_PARALLAX = 0.04
# What surfaces may be stretched to there, and the part of a photo's slopes that is left out as noise.
MOST_STRETCH = 2.0
_SLOPE_QUANTILE = 0.99
# The longer side of the map that slopes are looked for in, and half the width of a step there.
_SLOPES_PX, _STEP_PX = 256, 2
# Torn parts of the picture times the contrast around them, and half the side of the square that it is looked for in.
_MOST_TORN, _AROUND_PX = 2e-3, 8
# Views zoom in by no more than this to hide what lies beyond the photo's edges.
MOST_ZOOM = 1.12
_ZOOM_ROUNDS = 6
# A path that looks beyond them however close it is goes so much less far, again and again.
_LESS_FAR = 0.85
# Frames of a path and pixels of a side that tell where it looks.
_MOST_FRAMES, _MOST_PIXELS = 16, 256
# So near to the photo's edge its outermost pixels are seen.
_WITHIN_PX = 0.25
_LEAST_AMPLITUDE_RAD = math.radians(0.5)
_QUANTILES = (0.02, 0.98)
# Disparities that are closer together than this make no parallax worth a longer way.
_LEAST_EXTENT = 0.2


class Extent(NamedTuple):
    """Range of 1 / z_depth of a scene from the canonical camera, without its extreme pixels."""

    low: float
    high: float

    @property
    def middle_z(self) -> float:
        """z_depth of the middle: turning around it, far and near things move alike."""
        return 2.0 / (self.low + self.high)

    @property
    def width(self) -> float:
        """Of the range, at least a little."""
        return max(_LEAST_EXTENT, self.high - self.low)


class Reach(NamedTuple):
    """How a path adapts: how far it goes, and z_depth of what it turns around."""

    amplitude_rad: float
    pivot_z: float


def disparity_extent(s: Tensor, depth_range: DepthRange) -> Extent:
    """The range of 1 / z_depth in a map of normalised disparity of any shape."""
    values = s.detach().flatten().float()
    values = values[:: max(1, values.numel() // 100_000)]
    low, high = torch.quantile(values, torch.tensor(_QUANTILES, device=values.device)).tolist()
    return Extent(*(end * depth_range.extent + 1.0 / depth_range.far for end in (low, high)))


def _slopes(s: Tensor) -> tuple[Tensor, Tensor]:
    """How fast a relief changes from pixel to pixel, at a small size, and where that is near a step (1), `[h, w]`."""
    factor = min(1.0, _SLOPES_PX / max(s.shape))
    small = resized(s, [max(2, round(side * factor)) for side in s.shape])
    sure, _, _ = steps(small, _STEP_PX)
    down, right = torch.gradient(small)
    return torch.hypot(down, right), local_range(sure, _STEP_PX)[1]


def steepest_slope(s: Tensor) -> float:
    """How fast a relief `[H, W]` changes away from steps, in s a width: what cameras pull apart that is one surface."""
    slope, near_step = _slopes(s)
    return float(torch.quantile((slope * (1.0 - near_step)).flatten(), _SLOPE_QUANTILE)) * slope.shape[1]


def torn_texture(s: Tensor, photo: Tensor) -> float:
    """What is lost at the steps of a relief `[H, W]` of a photo uint8 `[3, H, W]` when they are pulled apart.

    Its part of the picture times the contrast of pixels around, in [0, 1], a width of parallax over all of s.
    """
    slope, near_step = _slopes(s)
    small = resized(photo.to(s) / 255.0, slope.shape)
    contrast = torch.hypot(*torch.gradient(small, dim=(1, 2))).mean(0)
    around = mean_of(contrast[None], 1.0 - near_step, _AROUND_PX)[0]
    return float((slope * near_step * around).mean()) * slope.shape[1]


def adapted_reach(path: str, s: Tensor, photo: Tensor | None, frustum: Frustum, *, fov_rad: float) -> Reach:
    """How far a path may go before a photo: `MOST_PARALLAX` and `MOST_STRETCH`, and never farther than by itself.

    Where much texture would be torn it goes less far, but half as far at least. `path` is a name in
    `trajectories.PATHS`, `s` the relief `[H, W]` of a photo uint8 `[3, H, W]`, which is None where nothing will
    be torn, `fov_rad` the output's, horizontal.
    """
    extent, slope = disparity_extent(s, frustum.depth_range), steepest_slope(s)
    torn = 0.0 if photo is None else torn_texture(s, photo) * frustum.depth_range.extent / extent.width
    parallax = max(0.5 * MOST_PARALLAX, min(MOST_PARALLAX, _MOST_TORN / max(torn, 1e-6)))
    if slope > 0.0:
        # What moves by p over the whole range of disparities is stretched by 1 + p slope / range.
        parallax = min(parallax, (MOST_STRETCH - 1.0) * extent.width / (slope * frustum.depth_range.extent))
    if path.startswith("dolly"):
        # Straight on, a thing at the image's edge moves by half a width times its disparity a metre.
        way, radius = parallax / (0.5 * extent.width), frustum.radius
    else:
        way, radius = parallax / (0.5 / math.tan(0.5 * fov_rad) * extent.width), extent.middle_z
    amplitude = max(_LEAST_AMPLITUDE_RAD, math.asin(min(1.0, way / radius)))
    return Reach(min(math.radians(PATHS[path]), amplitude), radius)


def eye_distance(extent: Extent, *, parallax: float, fov_rad: float) -> float:
    """Between two eyes that see near and far `parallax` widths apart."""
    return parallax * 2.0 * math.tan(0.5 * fov_rad) / extent.width


def covering_zoom(s: Tensor, frustum: Frustum, cameras: Camera) -> float | None:
    """How far cameras must zoom in to see nothing beyond the edges of a photo of relief `s` `[H, W]`.

    The least factor to their focal lengths, 1 or more; None where `MOST_ZOOM` does not suffice.
    """
    photo, cameras = frustum.camera(*s.shape).to(s.device), cameras.to(s.device)
    chosen = sorted({round(i * (len(cameras) - 1) / (_MOST_FRAMES - 1)) for i in range(_MOST_FRAMES)})
    border = _border(cameras.height_px, cameras.width_px).to(s.device)
    size = torch.tensor([s.shape[1], s.shape[0]], device=s.device)

    def covers(zoom: float) -> bool:
        for index in chosen:
            camera = cameras[index]
            centre = camera.intrinsics[0, :2, 2]
            lines = camera_lines(photo, camera, frustum.depth_range, centre + (border - centre) / zoom)
            seen = intersect(s, lines).pixels
            if not bool(((seen >= _WITHIN_PX) & (seen <= size - _WITHIN_PX)).all()):
                return False
        return True

    low, high = 1.0, MOST_ZOOM
    if covers(low):
        return low
    if not covers(high):
        return None
    for _ in range(_ZOOM_ROUNDS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if covers(middle) else (middle, high)
    return high


def covered_reach(
    amplitude_rad: float, s: Tensor, frustum: Frustum, cameras_of: Callable[[float], Camera], *, may_shrink: bool
) -> tuple[float, float]:
    """How far a path goes that sees nothing beyond the photo's edges, at most `amplitude_rad`, and its zoom.

    `cameras_of` gives the cameras of an amplitude. Where `MOST_ZOOM` does not suffice, the path goes less far if it may
    shrink; else something beyond will show.
    """
    while True:
        zoom = covering_zoom(s, frustum, cameras_of(amplitude_rad))
        if zoom is not None or not may_shrink or amplitude_rad < _LEAST_AMPLITUDE_RAD:
            return amplitude_rad, zoom or MOST_ZOOM
        amplitude_rad *= _LESS_FAR


def _border(height_px: int, width_px: int) -> Tensor:
    """Centres `[N, 2]` of the outermost pixels of an image, of a long side every so many."""
    across = torch.linspace(0.5, width_px - 0.5, min(width_px, _MOST_PIXELS))
    down = torch.linspace(0.5, height_px - 0.5, min(height_px, _MOST_PIXELS))
    rows = [torch.stack([across, torch.full_like(across, y)], -1) for y in (0.5, height_px - 0.5)]
    columns = [torch.stack([torch.full_like(down, x), down], -1) for x in (0.5, width_px - 0.5)]
    return torch.cat([*rows, *columns])
