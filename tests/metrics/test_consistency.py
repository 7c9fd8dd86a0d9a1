"""Pixels that are carried to another view and back, in scenes where the way home is known."""

import math

import pytest
import torch

from vq3dcli.metrics.warp import reprojection
from vq3dcli.rendering.cameras import Camera, canonical_camera, pivot_camera, s_from_z_depth
from vq3dcli.toyscenes import render_scenes, sample_scenes

SIDE = 32


def turned(yaw_deg: float, count: int = 1) -> Camera:
    yaw = torch.full((count,), math.radians(yaw_deg))
    return pivot_camera(yaw, torch.zeros(count), height_px=SIDE, width_px=SIDE)


def wall(camera: Camera, z_world: float = 0.0) -> torch.Tensor:
    """s of the plane z = `z_world` as `camera` sees it, `[1, SIDE, SIDE]`."""
    from vq3dcli.rendering.cameras import image_rays

    rays = image_rays(camera)
    z_depth = (z_world - rays.origin[..., 2]) / rays.direction[..., 2]
    return s_from_z_depth(z_depth).reshape(1, SIDE, SIDE)


def test_a_plane_comes_home_from_every_angle():
    front = canonical_camera(1, height_px=SIDE, width_px=SIDE)
    for yaw_deg in (10.0, -20.0):
        side = turned(yaw_deg)
        found = reprojection(front, wall(front), side, wall(side))
        assert float(found.error) < 1e-3
        assert float(found.share) > 0.97  # border pixels meet the border's replicate


def test_the_error_is_the_parallax_of_the_disagreement():
    """Pure translation: a pixel goes out by f b d1 and home by f b d2, whatever the pixel."""
    front = canonical_camera(1, height_px=SIDE, width_px=SIDE)
    pose = front.cam_to_world.clone()
    pose[:, 0, 3] += 0.3
    side = Camera(pose, front.intrinsics, SIDE, SIDE)
    d1, d2 = 1 / 3.0, 1 / 4.0
    s = [s_from_z_depth(torch.full((1, SIDE, SIDE), 1 / d)) for d in (d1, d2)]
    expected = 100 * float(front.intrinsics[0, 0, 0]) * 0.3 * (d1 - d2) / SIDE
    found = reprojection(front, s[0], side, s[1])
    assert float(found.error) == pytest.approx(expected, rel=1e-4)
    assert float(found.share) == pytest.approx(1.0 if expected <= 2 else 0.0)


def test_toy_scenes_are_consistent_and_their_mean_is_not():
    scenes = sample_scenes(torch.arange(4), seed=0, purpose="eval")
    front, side = canonical_camera(4, height_px=SIDE, width_px=SIDE), turned(20.0, 4)
    s_front, s_side = render_scenes(scenes, front).s, render_scenes(scenes, side).s
    exact = reprojection(front, s_front, side, s_side)
    assert float(exact.error.max()) < 0.3
    assert float(exact.share.min()) > 0.7
    shuffled = reprojection(front, s_front, side, s_side.roll(7, -1))
    assert (shuffled.share < exact.share).all()


def test_nothing_in_common_is_nan():
    front = canonical_camera(1, height_px=SIDE, width_px=SIDE)
    away = turned(180.0)
    pose = away.cam_to_world.clone()
    pose[:, :3, 2] *= -1  # looks away from everything
    pose[:, :3, 0] *= -1
    found = reprojection(front, wall(front), Camera(pose, away.intrinsics, SIDE, SIDE), wall(front))
    assert torch.isnan(found.error).all()
