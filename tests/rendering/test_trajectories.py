"""Camera paths: closed, bounded, aimed at the pivot."""

from __future__ import annotations

import math

import pytest
import torch

from vq3dcli.rendering.cameras import CAMERA_RADIUS, canonical_camera, project
from vq3dcli.rendering.trajectories import PATHS, PITCH_RATIO, trajectory

NAMES = sorted(PATHS)


@pytest.mark.parametrize("name", NAMES)
def test_every_camera_is_rigid_and_looks_at_the_pivot(name: str) -> None:
    camera = trajectory(name, 17, height_px=24, width_px=32)
    rotation = camera.cam_to_world[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(17, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(17))
    pixels, z_depth = project(camera, torch.zeros(17, 1, 3))
    torch.testing.assert_close(pixels, torch.tensor([16.0, 12.0]).expand(17, 1, 2), atol=1e-4, rtol=0)
    assert bool((z_depth > 0.5 * CAMERA_RADIUS).all())
    assert bool((z_depth < CAMERA_RADIUS + 1e-5).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_closes_smoothly(name: str) -> None:
    """The step from the last frame back to the first is no longer than its neighbours' plus a little."""
    position = trajectory(name, 120, height_px=8, width_px=8).cam_to_world[:, :3, 3]
    step = (position.roll(-1, 0) - position).norm(dim=-1)
    assert float(step[-1]) <= 1.1 * float(torch.maximum(step[-2], step[0])) + 1e-5
    # No jump or kink anywhere: velocities of neighbouring frames differ by little.
    velocity = position.roll(-1, 0) - position
    assert float((velocity.roll(-1, 0) - velocity).norm(dim=-1).max()) < 0.2 * float(step.max())


@pytest.mark.parametrize("name", ["swing", "spiral", "dolly", "dolly-zoom"])
def test_starts_at_the_canonical_view(name: str) -> None:
    camera = trajectory(name, 10, height_px=16, width_px=16)
    canonical = canonical_camera(1, height_px=16, width_px=16)
    torch.testing.assert_close(camera.cam_to_world[:1], canonical.cam_to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(camera.intrinsics[:1], canonical.intrinsics)


@pytest.mark.parametrize("name", ["orbit", "swing", "spiral"])
def test_angles_stay_within_the_amplitude(name: str) -> None:
    amplitude_rad = math.radians(15.0)
    forward = trajectory(name, 240, height_px=8, width_px=8, amplitude_rad=amplitude_rad).cam_to_world[:, :3, 2]
    yaw_rad = torch.atan2(-forward[:, 0], forward[:, 2])
    pitch_rad = torch.asin(forward[:, 1])
    assert float(yaw_rad.abs().max()) == pytest.approx(amplitude_rad, rel=0.15)
    assert float(yaw_rad.abs().max()) <= amplitude_rad + 1e-5
    assert float(pitch_rad.abs().max()) <= PITCH_RATIO * amplitude_rad + 1e-5
    # Both sides are seen, to the same extent.
    assert float(yaw_rad.max() + yaw_rad.min()) == pytest.approx(0.0, abs=1e-4)


def test_where_paths_begin_and_which_way_they_turn() -> None:
    """An orbit above the canonical view and to the right, a swing to the right, a dolly straight on."""
    x, y, z = trajectory("orbit", 8, height_px=8, width_px=8).cam_to_world[:, :3, 3].T
    assert abs(float(x[0])) < 1e-5 and y[0] < -0.1 and x[2] > 0.5 and y[4] > 0.1 and x[6] < -0.5
    x, y, z = trajectory("swing", 8, height_px=8, width_px=8).cam_to_world[:, :3, 3].T
    assert x[2] > 0.5 and x[6] < -0.5 and (y.abs() < 1e-5).all()
    x, y, z = trajectory("dolly", 8, height_px=8, width_px=8).cam_to_world[:, :3, 3].T
    assert z[4] > z[2] > z[0] == -CAMERA_RADIUS and (x.abs() + y.abs() < 1e-5).all()


def test_a_dolly_zoom_keeps_the_subject_and_changes_the_background() -> None:
    camera = trajectory("dolly-zoom", 9, height_px=64, width_px=64)
    subject, _ = project(camera, torch.tensor([0.4, 0.3, 0.0]).expand(9, 1, 3))
    torch.testing.assert_close(subject, subject[:1].expand_as(subject), atol=1e-3, rtol=0)
    background, _ = project(camera, torch.tensor([1.5, 1.0, 5.0]).expand(9, 1, 3))
    assert float((background - background[:1]).abs().max()) > 1.0


def test_both_fields_of_view_are_spanned_when_asked() -> None:
    camera = trajectory("swing", 1, height_px=30, width_px=50, fov_rad=0.7, fov_y_rad=0.7)
    edge = torch.tensor([[[math.tan(0.35), math.tan(0.35), 1.0 - CAMERA_RADIUS]]])
    pixels, _ = project(camera, edge)
    torch.testing.assert_close(pixels, torch.tensor([[[50.0, 30.0]]]))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="swing"):
        trajectory("loop", 4, height_px=8, width_px=8)
    with pytest.raises(ValueError, match="at least 1"):
        trajectory("orbit", 0, height_px=8, width_px=8)
    with pytest.raises(ValueError, match="amplitude"):
        trajectory("orbit", 4, height_px=8, width_px=8, amplitude_rad=2.0)
    with pytest.raises(ValueError, match="view"):
        trajectory("orbit", 4, height_px=8, width_px=8, fov_rad=4.0)
