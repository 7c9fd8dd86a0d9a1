"""Unbounded space to the cube [-1, 1]^3 that the tri-planes cover.

Two mappings of world points `[..., 3]`, a recipe choice:

- `Frustum`: the canonical camera's x/z, y/z and normalised disparity s. The xy plane lies exactly on the input image,
  so a token sits where its pixels are; all of the frustum from near to far is inside.
- `ContractedSpace`: mip-NeRF 360's contraction around the subject (Barron et al., CVPR 2022, eq. 10), cut to the box
  that the cameras can reach.

Coordinates outside [-1, 1] are legal: the planes replicate their border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    DEPTH_RANGE,
    FOV_RAD,
    Camera,
    DepthRange,
    canonical_camera,
    intrinsics_from_fov,
    s_from_z_depth,
)

# What cameras at +-20 degrees of yaw and +-10 of pitch can see, in contracted coordinates (+z away from the camera).
REACHABLE_LOWER = (-1.45, -1.45, -1.45)
REACHABLE_UPPER = (1.45, 1.45, 2.0)

Space = Callable[[Tensor], Tensor]
"""World points `[..., 3]` to plane coordinates `[..., 3]`."""


@dataclass(frozen=True)
class Frustum:
    """What the canonical camera sees; as a mapping (x/z / tan(fov/2), y/z / tan(fov/2), 1 - 2 s)."""

    radius: float = CAMERA_RADIUS  # distance of the canonical camera from the origin, on -z; it looks along +z
    fov_rad: float = FOV_RAD  # its field of view on both axes, whatever the shape of the picture
    depth_range: DepthRange = DEPTH_RANGE  # nearest and farthest z_depth
    aspect: float = 1.0  # width / height of what the picture shows; the world is squeezed by it where it is not 1

    @property
    def tangent(self) -> float:
        """Of half the field of view."""
        return math.tan(0.5 * self.fov_rad)

    def camera(self, height_px: int, width_px: int) -> Camera:
        """The canonical camera at a resolution; its rays span the field of view on both axes."""
        camera = canonical_camera(1, height_px=height_px, width_px=width_px, radius=self.radius, fov_rad=self.fov_rad)
        camera.intrinsics[:, 1, 1] = intrinsics_from_fov(self.fov_rad, height_px, height_px)[0, 0, 0]
        return camera

    def z_depth(self, points: Tensor) -> Tensor:
        """z_depth `[...]` of world points in the canonical camera, clamped to its range.

        The clamp keeps points behind that camera, which novel cameras reach, from dividing by zero.
        """
        return (points[..., 2] + self.radius).clamp(self.depth_range.near, self.depth_range.far)

    def __call__(self, points: Tensor) -> Tensor:
        """Map world points."""
        z_depth = self.z_depth(points)
        xy = points[..., :2] / (z_depth * self.tangent)[..., None]
        return torch.cat([xy, (1.0 - 2.0 * s_from_z_depth(z_depth, self.depth_range))[..., None]], -1)


@dataclass(frozen=True)
class ContractedSpace:
    """The contraction, then the box [`lower`, `upper`] linearly onto [-1, 1]^3."""

    lower: tuple[float, float, float] = REACHABLE_LOWER
    upper: tuple[float, float, float] = REACHABLE_UPPER

    def __call__(self, points: Tensor) -> Tensor:
        """Map world points."""
        lower, upper = points.new_tensor(self.lower), points.new_tensor(self.upper)
        return (contract(points) - lower) / (upper - lower) * 2.0 - 1.0


def contract(points: Tensor) -> Tensor:
    """mip-NeRF 360, eq. 10: x inside the unit ball, (2 - 1/|x|) x/|x| outside, so that all of space is a ball of 2."""
    # Below 1 the clamp makes the factor exactly 1, and no division by a small norm reaches the gradient.
    norm = points.square().sum(-1, keepdim=True).clamp(min=1.0).sqrt()
    return points * ((2.0 - 1.0 / norm) / norm)
