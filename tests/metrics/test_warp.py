import math

import pytest
import torch

from vq3dcli.metrics.warp import EVALUATION_VIEWS_DEG, evaluation_cameras, exact_warp, flat_warp, plane_z_depth
from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    Camera,
    canonical_camera,
    image_rays,
    pivot_camera,
    pixel_centres,
    s_from_z_depth,
)

SIZE = 24
SOURCE = canonical_camera(2, height_px=SIZE, width_px=SIZE)
TARGET = pivot_camera(torch.tensor([0.3, -0.1]), torch.tensor([0.1, -0.2]), height_px=SIZE, width_px=SIZE)
PLANE_Z = torch.tensor([2.5, 4.0])


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def plane_s(z_depth: torch.Tensor) -> torch.Tensor:
    """Exact s in TARGET of the plane at `z_depth` before SOURCE, from the plane's equation in the world."""
    rays = image_rays(TARGET)
    distance = (z_depth[:, None] - CAMERA_RADIUS - rays.origin[..., 2]) / rays.direction[..., 2]
    return s_from_z_depth(distance).reshape(2, SIZE, SIZE)


def test_no_motion_changes_nothing(image):
    assert torch.allclose(flat_warp(image, SOURCE, SOURCE, PLANE_Z), image, atol=1e-4)
    s = torch.full((2, SIZE, SIZE), 0.3)
    assert torch.allclose(exact_warp(image, SOURCE, SOURCE, s, s), image, atol=1e-4)


def test_bytes_become_the_unit_range(image):
    as_bytes = (image * 255).round().to(torch.uint8)
    assert torch.allclose(
        flat_warp(as_bytes, SOURCE, TARGET, PLANE_Z), flat_warp(image, SOURCE, TARGET, PLANE_Z), atol=1 / 255
    )


def test_flat_warp_is_the_homography_of_the_plane(image):
    # A plane n . X = z in the source camera maps target to source pixels by the inverse of K (R + t n^T / z) K^-1.
    warped = flat_warp(image, SOURCE, TARGET, PLANE_Z)
    pixels = torch.cat([pixel_centres(SIZE, SIZE), torch.ones(SIZE * SIZE, 1)], -1).double()
    for index in range(2):
        source_to_target = torch.linalg.inv(TARGET.cam_to_world[index].double()) @ SOURCE.cam_to_world[index].double()
        normal = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
        k = SOURCE.intrinsics[index].double()
        plane = source_to_target[:3, :3] + source_to_target[:3, 3:] @ normal / PLANE_Z[index].double()
        homography = k @ plane @ torch.linalg.inv(k)
        mapped = pixels @ torch.linalg.inv(homography).T
        position = mapped[:, :2] / mapped[:, 2:] - 0.5
        for number in range(0, SIZE * SIZE, 7):
            x, y = position[number].clamp(0, SIZE - 1).tolist()
            left, top = min(int(x), SIZE - 2), min(int(y), SIZE - 2)
            fx, fy = x - left, y - top
            corners = image[index, :, top : top + 2, left : left + 2]
            rows = corners[:, :, 0] * (1 - fx) + corners[:, :, 1] * fx
            expected = rows[:, 0] * (1 - fy) + rows[:, 1] * fy
            assert torch.allclose(warped[index].flatten(1)[:, number], expected, atol=1e-3)


def test_flat_and_exact_warp_agree_on_a_plane(image):
    s_source = s_from_z_depth(PLANE_Z)[:, None, None].expand(2, SIZE, SIZE)
    exact = exact_warp(image, SOURCE, TARGET, s_source, plane_s(PLANE_Z))
    assert torch.allclose(flat_warp(image, SOURCE, TARGET, PLANE_Z), exact, atol=1e-3)


def test_what_an_object_hides_is_not_painted_with_it():
    # A red board at z = 2 before a wall at z = 5 whose left half is green and right half is blue.
    wall_z, board_z, half_width = 5.0, 2.0, 0.15

    def look(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
        rays = image_rays(camera)
        on_board = rays.origin + ((board_z - CAMERA_RADIUS - rays.origin[..., 2:]) / rays.direction[..., 2:]) * (
            rays.direction
        )
        hit = on_board[..., 0].abs() < half_width
        z_depth = torch.where(hit, board_z, wall_z) - CAMERA_RADIUS - rays.origin[..., 2]
        z_depth = z_depth / rays.direction[..., 2]
        wall_x = rays.origin[..., 0] + z_depth * rays.direction[..., 0]
        red, green = hit.float(), (~hit & (wall_x < 0)).float()
        rgb = torch.stack([red, green, 1 - red - green], 1).reshape(1, 3, SIZE, SIZE)
        return rgb, s_from_z_depth(z_depth).reshape(1, SIZE, SIZE)

    source = canonical_camera(1, height_px=SIZE, width_px=SIZE)
    target = pivot_camera(torch.tensor([0.3]), torch.zeros(1), height_px=SIZE, width_px=SIZE)
    image, s_source = look(source)
    true, s_target = look(target)
    warped = exact_warp(image, source, target, s_source, s_target)
    board_pixels = true[0, 0].sum()
    assert board_pixels > 2 * SIZE
    assert warped[0, 0].sum() == pytest.approx(board_pixels.item(), rel=0.35)
    naive = exact_warp(image, source, target, torch.zeros_like(s_source), s_target)
    assert naive[0, 0].sum() > 1.6 * board_pixels


def test_edges_are_replicated():
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[..., 0] = 1.0
    left = pivot_camera(torch.tensor([-1.2]), torch.zeros(1), height_px=SIZE, width_px=SIZE)
    warped = flat_warp(image, canonical_camera(1, height_px=SIZE, width_px=SIZE), left, torch.tensor([3.0]))
    assert torch.isfinite(warped).all()
    assert warped[..., 0].min() == 1.0


def test_the_plane_stands_at_the_mean_disparity():
    z_depth = torch.tensor([2.0, 4.0]).reshape(1, 1, 2)
    assert plane_z_depth(s_from_z_depth(z_depth)).item() == pytest.approx(1 / 0.375, rel=1e-5)


def test_evaluation_cameras_look_at_the_pivot():
    cameras = evaluation_cameras(canonical_camera(2, height_px=8, width_px=12))
    assert len(cameras) == len(EVALUATION_VIEWS_DEG) == 6
    for (yaw_deg, pitch_deg), camera in zip(EVALUATION_VIEWS_DEG, cameras, strict=True):
        position = camera.cam_to_world[1, :3, 3]
        assert position.norm().item() == pytest.approx(CAMERA_RADIUS, rel=1e-5)
        assert math.degrees(math.asin(position[0] / CAMERA_RADIUS)) == pytest.approx(yaw_deg, abs=1e-3)
        assert math.degrees(math.asin(-position[1] / CAMERA_RADIUS)) == pytest.approx(pitch_deg, abs=1e-3)
