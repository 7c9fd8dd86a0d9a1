"""Unbounded space to the cube [-1, 1]^3 that the tri-planes cover.

Two mappings, a recipe choice:

- `FrustumSpace`: the canonical camera's x/z, y/z and normalised disparity s. The xy plane lies exactly on the input
  image, so a token sits where its pixels are; all of the frustum from near to far is inside.
- `ContractedSpace`: mip-NeRF 360's contraction around the subject (Barron et al., CVPR 2022, eq. 10), cut to the box
  that the cameras can reach.

Both are frozen callables `points [..., 3] -> coordinates [..., 3]`. Coordinates outside [-1, 1] are legal: the planes
replicate their border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS, FAR, FOV_RAD, NEAR, s_from_z_depth

# What cameras at +-20 degrees of yaw and +-10 of pitch can see, in contracted coordinates (+z away from the camera).
REACHABLE_LOWER = (-1.45, -1.45, -1.45)
REACHABLE_UPPER = (1.45, 1.45, 2.0)


class Space(Protocol):
    """A mapping from world points `[..., 3]` to plane coordinates `[..., 3]`."""

    def __call__(self, points: Tensor) -> Tensor:
        """Map points."""
        ...


@dataclass(frozen=True)
class FrustumSpace:
    """(x/z / tan(fov/2), y/z / tan(fov/2), 1 - 2 s) of the canonical camera: the third axis grows with distance.

    Attributes:
        radius: Distance of the canonical camera from the origin, on -z.
        fov_rad: Its field of view, horizontal and vertical.
        near: Nearest z_depth.
        far: Farthest z_depth.
    """

    radius: float = CAMERA_RADIUS
    fov_rad: float = FOV_RAD
    near: float = NEAR
    far: float = FAR

    def __call__(self, points: Tensor) -> Tensor:
        """Map world points `[..., 3]` to `[..., 3]`."""
        z_depth = canonical_z_depth(points, radius=self.radius, near=self.near, far=self.far)
        xy = points[..., :2] / (z_depth * math.tan(0.5 * self.fov_rad))[..., None]
        s = s_from_z_depth(z_depth, self.near, self.far)
        return torch.cat([xy, (1.0 - 2.0 * s)[..., None]], -1)


@dataclass(frozen=True)
class ContractedSpace:
    """The contraction, then the box [`lower`, `upper`] linearly onto [-1, 1]^3."""

    lower: tuple[float, float, float] = REACHABLE_LOWER
    upper: tuple[float, float, float] = REACHABLE_UPPER

    def __call__(self, points: Tensor) -> Tensor:
        """Map world points `[..., 3]` to `[..., 3]`."""
        lower, upper = points.new_tensor(self.lower), points.new_tensor(self.upper)
        return (contract(points) - lower) / (upper - lower) * 2.0 - 1.0


def contract(points: Tensor) -> Tensor:
    """mip-NeRF 360, eq. 10: x inside the unit ball, (2 - 1/|x|) x/|x| outside, so that all of space is a ball of 2."""
    # Below 1 the clamp makes the factor exactly 1, and no division by a small norm reaches the gradient.
    norm = points.square().sum(-1, keepdim=True).clamp(min=1.0).sqrt()
    return points * ((2.0 - 1.0 / norm) / norm)


def canonical_z_depth(points: Tensor, *, radius: float = CAMERA_RADIUS, near: float = NEAR, far: float = FAR) -> Tensor:
    """z_depth `[...]` of world points in the canonical camera, clamped to [near, far].

    The clamp keeps points behind the canonical camera, which novel cameras reach, from dividing by zero.
    """
    return (points[..., 2] + radius).clamp(near, far)
