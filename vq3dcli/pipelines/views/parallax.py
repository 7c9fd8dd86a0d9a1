"""How far cameras may go: paths that adapt to the depth of a scene, so that the parallax stays bounded.

Widths are those of the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.trajectories import PATHS
from vq3dcli.scene_file import SceneCamera

# What near and far things move against each other at the end of a path, in widths.
MOST_PARALLAX = 0.10
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


def adapted_reach(path: str, extent: Extent, camera: SceneCamera, *, fov_rad: float) -> Reach:
    """How far a path may go in a scene: `MOST_PARALLAX`, and never farther than the path does by itself.

    Args:
        path: A name in `trajectories.PATHS`.
        extent: From `disparity_extent`.
        camera: The canonical camera.
        fov_rad: Horizontal field of view of the output.
    """
    focal = 0.5 / math.tan(0.5 * fov_rad)
    if path.startswith("dolly"):
        # Straight on, a thing at the image's edge moves by half a width times its disparity a metre.
        way, radius, widest = MOST_PARALLAX / (0.5 * extent.width), camera.radius, math.radians(12.0)
    else:
        way, radius, widest = MOST_PARALLAX / (focal * extent.width), extent.middle_z, math.radians(20.0)
    amplitude = math.asin(min(1.0, way / radius))
    assert path in PATHS, path
    return Reach(min(widest, max(_LEAST_AMPLITUDE_RAD, amplitude)), radius)


def eye_distance(extent: Extent, *, parallax: float, fov_rad: float) -> float:
    """Between two eyes that see near and far `parallax` widths apart."""
    return parallax * 2.0 * math.tan(0.5 * fov_rad) / extent.width
