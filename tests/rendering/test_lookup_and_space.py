"""Tri-planes and the spaces that they cover."""

from __future__ import annotations

import math

import pytest
import torch

from vq3dcli.rendering.cameras import FAR, NEAR, canonical_camera, image_rays, z_depth_from_s
from vq3dcli.rendering.lookup import PLANE_AXES, gather_planes, sample_planes
from vq3dcli.rendering.space import ContractedSpace, Frustum, contract


def test_the_planes_are_xy_xz_yz() -> None:
    """In this order, the first axis along the width: weights and saved scenes mean it so."""
    points = torch.rand(1, 9, 3) * 1.8 - 0.9
    x, y, z = points[0].T
    ramp = (torch.arange(16) + 0.5) / 8 - 1
    for plane, (width, height) in enumerate(((x, y), (x, z), (y, z))):
        planes = torch.zeros(1, 3, 16, 16, 2)
        planes[0, plane] = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), -1)
        for sample in (sample_planes, gather_planes):
            torch.testing.assert_close(sample(planes, points)[0], torch.stack([width, height], -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_moving_along_an_axis_changes_the_two_planes_that_hold_it(axis: int) -> None:
    points = torch.zeros(1, 2, 3)
    points[0, 1, axis] = 0.4
    for plane, axes in enumerate(PLANE_AXES):
        planes = torch.zeros(1, 3, 8, 8, 2)
        planes[:, plane] = torch.randn(8, 8, 2)
        features = sample_planes(planes, points)[0]
        assert torch.allclose(features[0], features[1]) == (axis not in axes)


def test_the_lookup_equals_grid_sample_inside_and_outside() -> None:
    planes = torch.randn(2, 3, 9, 13, 5)
    points = torch.randn(2, 400, 3)
    torch.testing.assert_close(gather_planes(planes, points), sample_planes(planes, points), atol=2e-5, rtol=1e-4)


def test_contraction_against_its_formula() -> None:
    points = torch.randn(200, 3) * 3
    norm = points.norm(dim=-1, keepdim=True)
    expected = torch.where(norm <= 1, points, (2 - 1 / norm) * points / norm)
    torch.testing.assert_close(contract(points), expected)
    assert contract(torch.tensor([1e6, 0.0, 0.0])).norm() < 2.0 + 1e-6


def test_contraction_has_finite_gradients_everywhere() -> None:
    points = torch.tensor([[0.0, 0, 0], [1e-30, 0, 0], [1.0, 0, 0], [1e8, 1e8, 0]], requires_grad=True)
    contract(points).sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_the_frustum_puts_pixels_on_texels() -> None:
    """The ray of pixel (i, j) keeps plane coordinates x_i, y_j at every distance, and s runs from -1 to 1."""
    rays = image_rays(canonical_camera(1, height_px=8, width_px=8))
    centres = (torch.arange(8) + 0.5) / 4 - 1
    for z in (NEAR, 2.0, 10.0, FAR):
        mapped = Frustum()(rays.origin + z * rays.direction)[0].reshape(8, 8, 3)
        torch.testing.assert_close(mapped[..., 0], centres.expand(8, 8), atol=1e-4, rtol=0)
        torch.testing.assert_close(mapped[..., 1], centres[:, None].expand(8, 8), atol=1e-4, rtol=0)
    near = Frustum()(torch.tensor([0.0, 0.0, NEAR - 3.0]))
    far = Frustum()(torch.tensor([0.0, 0.0, FAR - 3.0]))
    torch.testing.assert_close(torch.stack([near[2], far[2]]), torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0)


def test_points_behind_the_canonical_camera_are_harmless() -> None:
    points = torch.tensor([[0.0, 0.0, -50.0], [5.0, 5.0, -3.0]])
    assert (Frustum().z_depth(points) == NEAR).all()
    assert torch.isfinite(Frustum()(points)).all()


def test_the_contracted_box_holds_what_cameras_can_reach() -> None:
    from vq3dcli.rendering.cameras import pivot_camera

    degrees = [(y, p) for y in (-20, 0, 20) for p in (-10, 0, 10)]
    yaw, pitch = (torch.tensor([math.radians(d[i]) for d in degrees]) for i in (0, 1))
    rays = image_rays(pivot_camera(yaw, pitch, height_px=8, width_px=8))
    z = z_depth_from_s(torch.linspace(0, 1, 32))
    points = rays.origin[:, :, None] + z[:, None] * rays.direction[:, :, None]
    assert ContractedSpace()(points).abs().max() <= 1.02
