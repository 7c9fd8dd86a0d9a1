"""A scene in closed form: a ball before a wall, on which exporters are compared with the rendering."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vq3dcli.rendering.cameras import Camera, Rays, image_rays, pivot_pose
from vq3dcli.rendering.render import render
from vq3dcli.rendering.scene import SceneView

WALL_Z = 1.5
BALL_RADIUS = 0.55


def ball_field(points: Tensor) -> tuple[Tensor, Tensor]:
    """A soft-edged red ball at the pivot, and a wall behind it whose colour changes slowly."""
    distance = points.norm(dim=-1)
    in_ball = torch.sigmoid((BALL_RADIUS - distance) * 80.0)
    in_wall = torch.sigmoid((points[..., 2] - WALL_Z) * 30.0)
    wall = 0.5 + 0.4 * torch.sin(points * points.new_tensor([2.0, 3.0, 0.0]) + points.new_tensor([0.0, 0.5, 1.0]))
    ball = torch.stack([torch.full_like(distance, 0.9), 0.5 + 0.4 * points[..., 0], 0.5 + 0.4 * points[..., 1]], -1)
    mixed = (in_ball[..., None] * ball + in_wall[..., None] * wall) / (in_ball + in_wall).clamp(min=1e-9)[..., None]
    return 40.0 * in_ball + 40.0 * in_wall, mixed.clamp(0.0, 1.0)


class BallScene:
    """The field above as what a camera can look at."""

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        rays = image_rays(camera)
        parts = [
            render(
                ball_field,
                Rays(rays.origin[v : v + 1], rays.direction[v : v + 1]),
                samples,
            )
            for v in range(len(rays.origin))
        ]
        rgb, s, variance = (torch.cat(values) for values in zip(*parts, strict=True))
        size = (len(rgb), camera.height_px, camera.width_px)
        image = (rgb.reshape(*size, 3).permute(0, 3, 1, 2) * 255.0).round().clamp(0, 255).to(torch.uint8)
        return SceneView(image, s.reshape(size), variance.reshape(size))


@pytest.fixture(scope="session")
def ball() -> BallScene:
    return BallScene()


@pytest.fixture(scope="session")
def field() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return ball_field


@pytest.fixture(scope="session")
def look() -> Callable[..., Camera]:
    """Cameras around the pivot with the rays of a frustum: (frustum, height, width, [(yaw, pitch), ...])."""

    def make(frustum, height_px: int, width_px: int, angles: list[tuple[float, float]]) -> Camera:  # type: ignore[no-untyped-def]
        camera = frustum.camera(height_px, width_px)
        pose = pivot_pose(*torch.tensor(angles).T, frustum.radius)
        return Camera(pose, camera.intrinsics.expand(len(pose), 3, 3), height_px, width_px)

    return make


@pytest.fixture(scope="session")
def psnr() -> Callable[[Tensor, Tensor], float]:
    """Of two pictures in [0, 1]."""
    return lambda a, b: -10.0 * math.log10(max(1e-12, float((a - b).square().mean())))
