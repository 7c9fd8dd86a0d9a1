"""How far cameras may go, and how far they zoom in: paths that adapt to the relief of a photo.

Widths are those of the image. Legend: H height_px, W width_px of the photo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.filters import local_range, steps
from vq3dcli.editing.march import camera_lines, intersect
from vq3dcli.rendering.cameras import Camera, one_camera
from vq3dcli.rendering.trajectories import PATHS
from vq3dcli.scene_file import SceneCamera

# What near and far things move against each other at the end of a path, in widths.
MOST_PARALLAX = 0.06
# What surfaces may be stretched to there, and the part of a photo's slopes that is left out as noise.
MOST_STRETCH = 2.0
_SLOPE_QUANTILE = 0.99
# The longer side of the map that slopes are looked for in, and half the width of a step there.
_SLOPES_PX, _STEP_PX = 256, 2
# Views zoom in by no more than this to hide what lies beyond the photo's edges.
MOST_ZOOM = 1.12
_ZOOM_ROUNDS = 6
# A path that looks beyond them however close it is goes so much less far, again and again.
_LESS_FAR = 0.85
# Frames of a path and pixels of a side that tell where it looks.
_MOST_FRAMES, _MOST_PIXELS = 16, 256
# So near to the photo's edge its outermost pixels are seen.
_WITHIN_PX = 0.25
_LEAST_AMPLITUDE_RAD = math.radians(1.0)
_QUANTILES = (0.02, 0.98)
# Disparities that are closer together than this make no parallax worth a longer way.
_LEAST_EXTENT = 0.02


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
    """How a path adapts.

    Attributes:
        amplitude_rad: How far it goes.
        pivot_z: z_depth of what it turns around.
    """

    amplitude_rad: float
    pivot_z: float


def disparity_extent(s: Tensor, camera: SceneCamera) -> Extent:
    """The range of 1 / z_depth in a map of normalised disparity of any shape."""
    values = s.detach().flatten().float()
    values = values[:: max(1, values.numel() // 100_000)]
    low, high = torch.quantile(values, torch.tensor(_QUANTILES, device=values.device)).tolist()
    scale = 1.0 / camera.near - 1.0 / camera.far
    return Extent(low * scale + 1.0 / camera.far, high * scale + 1.0 / camera.far)


def steepest_slope(s: Tensor) -> float:
    """How fast a relief `[H, W]` changes away from steps, in s a width: what cameras pull apart that is one surface."""
    factor = min(1.0, _SLOPES_PX / max(s.shape))
    size = [max(2, round(side * factor)) for side in s.shape]
    small = functional.interpolate(s[None, None].float(), size=size, mode="bilinear", antialias=True)[0, 0]
    sure, _, _ = steps(small, _STEP_PX)
    _, near_step = local_range(sure, _STEP_PX)
    down, right = torch.gradient(small)
    slope = torch.hypot(down, right) * (1.0 - near_step)
    return float(torch.quantile(slope.flatten(), _SLOPE_QUANTILE)) * size[1]


def adapted_reach(path: str, extent: Extent, camera: SceneCamera, *, fov_rad: float, slope: float = 0.0) -> Reach:
    """How far a path may go in a scene: `MOST_PARALLAX` and `MOST_STRETCH`, and never farther than it does by itself.

    Args:
        path: A name in `trajectories.PATHS`.
        extent: From `disparity_extent`.
        camera: The canonical camera.
        fov_rad: Horizontal field of view of the output.
        slope: From `steepest_slope`.
    """
    parallax = MOST_PARALLAX
    if slope > 0.0:
        # What moves by p over the whole range of disparities is stretched by 1 + p slope / range.
        steepest = slope * (1.0 / camera.near - 1.0 / camera.far)
        parallax = min(parallax, (MOST_STRETCH - 1.0) * extent.width / steepest)
    focal = 0.5 / math.tan(0.5 * fov_rad)
    if path.startswith("dolly"):
        # Straight on, a thing at the image's edge moves by half a width times its disparity a metre.
        way, radius, widest = parallax / (0.5 * extent.width), camera.radius, math.radians(12.0)
    else:
        way, radius, widest = parallax / (focal * extent.width), extent.middle_z, math.radians(20.0)
    amplitude = math.asin(min(1.0, way / radius))
    assert path in PATHS, path
    return Reach(min(widest, max(_LEAST_AMPLITUDE_RAD, amplitude)), radius)


def eye_distance(extent: Extent, *, parallax: float, fov_rad: float) -> float:
    """Between two eyes that see near and far `parallax` widths apart."""
    return parallax * 2.0 * math.tan(0.5 * fov_rad) / extent.width


def covering_zoom(photo: Camera, s: Tensor, facts: SceneCamera, cameras: Camera) -> float | None:
    """How far cameras must zoom in to see nothing beyond the edges of a photo.

    Args:
        photo: The photo's camera, from `detail.photo_camera`.
        s: The relief `[H, W]`.
        facts: Of the scene.
        cameras: Any number of them.

    Returns:
        The least factor to their focal lengths, 1 or more; None where `MOST_ZOOM` does not suffice.
    """
    count = cameras.cam_to_world.shape[0]
    chosen = sorted({round(i * (count - 1) / (_MOST_FRAMES - 1)) for i in range(_MOST_FRAMES)})
    border = _border(cameras.height_px, cameras.width_px).to(photo.intrinsics)
    size = torch.tensor([s.shape[1], s.shape[0]], device=border.device)

    def covers(zoom: float) -> bool:
        for index in chosen:
            camera = one_camera(cameras, index)
            centre = camera.intrinsics[0, :2, 2].to(border)
            pixels = centre + (border - centre) / zoom
            lines = camera_lines(photo, camera, near=facts.near, far=facts.far, pixels=pixels)
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
    amplitude_rad: float, zoom_of: Callable[[float], float | None], *, may_shrink: bool
) -> tuple[float, float]:
    """How far a path goes that sees nothing beyond the photo's edges, and how close.

    Args:
        amplitude_rad: How far it would go.
        zoom_of: `covering_zoom` of the cameras of an amplitude.
        may_shrink: Whether it goes less far where `MOST_ZOOM` does not suffice; else something beyond will show.

    Returns:
        Its amplitude and zoom.
    """
    while True:
        zoom = zoom_of(amplitude_rad)
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
