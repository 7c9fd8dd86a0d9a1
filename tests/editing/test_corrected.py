"""Surfaces moved along the rays of the first camera, on a wall in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vq3dcli.editing.relief import moved_to
from vq3dcli.rendering.cameras import FAR, NEAR, canonical_camera, image_rays, pivot_camera, s_from_z_depth
from vq3dcli.rendering.render import render
from vq3dcli.rendering.space import Frustum

WALL_S = 0.3


def wall(points: Tensor) -> tuple[Tensor, Tensor]:
    """Dense behind s = 0.3 of the canonical camera, with a colour for each of its rays."""
    z_depth = points[..., 2] + 3.0
    density = 200.0 * (s_from_z_depth(z_depth) < WALL_S)
    red = 0.5 + points[..., 0] / z_depth
    return density, torch.stack([red, 1.0 - red, 0.5 * red], -1)


def test_the_first_camera_sees_the_same_colours_at_the_new_disparity() -> None:
    ramp = torch.linspace(0.15, 0.85, 24).expand(24, 24)
    moved = moved_to(wall, torch.full((24, 24), WALL_S), ramp, Frustum())
    rays = image_rays(canonical_camera(1, height_px=24, width_px=24))
    before, after = render(wall, rays, 256), render(moved, rays, 256)
    assert (after[0] - before[0]).abs().max() < 0.01
    assert (after[1].reshape(24, 24) - ramp).abs().max() < 0.01


def test_the_same_map_changes_nothing() -> None:
    same = torch.full((8, 8), WALL_S)
    moved = moved_to(wall, same, same, Frustum())
    rays = image_rays(pivot_camera(torch.tensor([0.3]), torch.tensor([-0.1]), height_px=12, width_px=12))
    for one, other in zip(render(wall, rays, 64), render(moved, rays, 64), strict=True):
        assert (one - other).abs().max() < 1e-3


def test_a_piece_of_a_ray_keeps_its_optical_thickness() -> None:
    """A fog of constant density between two disparities, which move with everything else."""
    moved = moved_to(
        lambda points: (torch.ones_like(points[..., 0]), points),
        torch.tensor([[0.5]]),
        torch.tensor([[0.25]]),
        Frustum(),
    )

    def thickness(field_density: Tensor, s: Tensor) -> float:
        z_depth = 1.0 / (s * (1 / NEAR - 1 / FAR) + 1 / FAR)
        return float(torch.trapezoid(field_density.flip(-1), z_depth.flip(-1)))

    old, new = torch.linspace(0.9, 0.6, 4001), torch.linspace(1 - 0.1 * 1.5, 1 - 0.4 * 1.5, 4001)
    z_depth = 1.0 / (new * (1 / NEAR - 1 / FAR) + 1 / FAR)
    points = torch.stack([torch.zeros_like(z_depth), torch.zeros_like(z_depth), z_depth - 3.0], -1)[None]
    assert math.isclose(thickness(moved(points)[0][0], new), thickness(torch.ones(4001), old), rel_tol=1e-3)
