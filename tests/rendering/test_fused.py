"""The fused renderer against the one of tensor operations, which is its oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vq3dcli.model.field import FieldMLP, FieldModel
from vq3dcli.rendering import fused
from vq3dcli.rendering.cameras import FAR, FOV_RAD, NEAR, Rays, image_rays
from vq3dcli.rendering.render import render
from vq3dcli.rendering.space import ContractedSpace, Frustum, Space
from vq3dcli.rendering.trajectories import trajectory

DENSITY = fused.Density(24.0, 6.0, 8.0, 0.45, 2.5)
SHAPES = [(16, 64, 1), (12, 24, 2), (32, 96, 3)]  # channels, units, hidden layers


def scene(shape: tuple[int, int, int], space: Space, *, sharp: float = 1.0) -> tuple[FieldModel, Tensor, fused.Packed]:
    """A field of waves: with a large `sharp`, of surfaces and empty space."""
    channels, units, layers = shape
    generator = torch.Generator().manual_seed(channels)
    torch.manual_seed(units)
    mlp = FieldMLP(channels, units, layers).requires_grad_(False)
    coarse = torch.randn(3, channels, 5, 5, generator=generator)
    planes = torch.nn.functional.interpolate(coarse, (20, 20), mode="bicubic").permute(0, 2, 3, 1)[None].contiguous()
    mlp.out.weight[0] *= sharp
    model = FieldModel(mlp, space, Frustum())
    weights = [(each.weight, each.bias) for each in [*mlp.hidden, mlp.out]]
    return model, planes, fused.pack(planes[0], weights, space, DENSITY, radius=3.0, near=NEAR, far=FAR)


def rays(size: int, view: int) -> Rays:
    camera = trajectory("orbit", 4, height_px=size, width_px=size, fov_rad=FOV_RAD)
    every = image_rays(camera)
    return Rays(every.origin[view : view + 1], every.direction[view : view + 1])


@pytest.mark.parametrize("space", [Frustum(), ContractedSpace()], ids=["frustum", "contracted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_are_those_of_the_field(shape: tuple[int, int, int], space: Space):
    model, planes, packed = scene(shape, space)
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)) * 3.0
    expected_density, expected_rgb = model.frozen_field(planes)(points[None])
    density, rgb = fused.query(packed, points)
    torch.testing.assert_close(density, expected_density[0], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(rgb, expected_rgb[0], rtol=0.0, atol=2e-5)
    alone, none = fused.query(packed, points, colour=False)
    assert torch.equal(alone, density) and none.shape == (0, 3)


@pytest.mark.parametrize("space", [Frustum(), ContractedSpace()], ids=["frustum", "contracted"])
@pytest.mark.parametrize("sharp", [1.0, 8.0], ids=["mist", "surfaces"])
def test_pictures_are_those_of_the_oracle(space: Space, sharp: float):
    model, planes, packed = scene((16, 64, 1), space, sharp=sharp)
    seen = rays(24, 1)
    expected_rgb, expected_s, expected_variance = render(model.frozen_field(planes), seen, 48)
    rgb, s, variance = fused.render(packed, fused.occupied_cells(packed), seen.origin[0], seen.direction[0], 48)
    error = (rgb - expected_rgb[0]).square().mean()
    assert -10.0 * math.log10(float(error)) > 60.0
    assert float((s - expected_s[0]).abs().max()) < 1.0 / 255.0
    assert float((variance - expected_variance[0]).abs().max()) < 1.0 / 255.0


def test_a_grid_that_is_full_changes_only_what_is_empty():
    _, _, packed = scene((16, 64, 1), Frustum(), sharp=8.0)
    occupied = fused.occupied_cells(packed)
    assert 0.02 < occupied.mean() < 0.98
    seen = rays(16, 2)
    sparse = fused.render(packed, occupied, seen.origin[0], seen.direction[0], 64)
    full = fused.render(packed, occupied | True, seen.origin[0], seen.direction[0], 64)
    assert float((sparse[0] - full[0]).abs().max()) < 1.0 / 255.0


def test_rays_have_the_same_bits_in_any_company_and_on_any_number_of_threads():
    _, _, packed = scene((32, 96, 3), Frustum(), sharp=4.0)
    occupied, seen = fused.occupied_cells(packed), rays(72, 3)
    origin, direction = seen.origin[0], seen.direction[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = fused.render(packed, occupied, origin, direction, 32)
    finally:
        torch.set_num_threads(before)
    some = torch.arange(5, len(origin), 7)
    alone = fused.render(packed, occupied, origin[some], direction[some], 32)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[some], part)


def test_numbers_that_are_none_do_not_become_a_picture():
    model, planes, _ = scene((16, 64, 1), Frustum())
    weights = [(each.weight, each.bias) for each in [*model.field_mlp.hidden, model.field_mlp.out]]
    packed = fused.pack(planes[0] * math.nan, weights, model.space, DENSITY, radius=3.0, near=NEAR, far=FAR)
    seen = rays(8, 0)
    rgb, s, _ = fused.render(packed, fused.occupied_cells(packed), seen.origin[0], seen.direction[0], 8)
    assert rgb.isnan().all() and s.isnan().all()
