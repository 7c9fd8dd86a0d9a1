"""The fused renderer against the one of tensor operations, which is its oracle."""

from __future__ import annotations

import math

import pytest
import torch

from vq3dcli.model.field import FieldMLP, FieldModel
from vq3dcli.model.scene import Scene
from vq3dcli.rendering import fused
from vq3dcli.rendering.cameras import FOV_RAD, Rays, image_rays
from vq3dcli.rendering.render import exact_rendering, render
from vq3dcli.rendering.space import ContractedSpace, Frustum, Space
from vq3dcli.rendering.trajectories import trajectory

SPACES = [Frustum(), ContractedSpace()]
SHAPES = [(16, 64, 1), (12, 24, 2), (32, 96, 3)]  # channels, units, hidden layers


def scene(shape: tuple[int, int, int], space: Space, *, sharp: float = 1.0) -> tuple[FieldModel, fused.FusedField]:
    """A field of waves: with a large `sharp`, of surfaces and empty space."""
    channels, units, layers = shape
    generator = torch.Generator().manual_seed(channels)
    torch.manual_seed(units)
    mlp = FieldMLP(channels, units, layers).requires_grad_(False)
    coarse = torch.randn(3, channels, 5, 5, generator=generator)
    planes = torch.nn.functional.interpolate(coarse, (20, 20), mode="bicubic").permute(0, 2, 3, 1)[None].contiguous()
    mlp.out.weight[0] *= sharp
    model = FieldModel(mlp, space, Frustum())
    field = model.frozen_field(planes)
    assert isinstance(field, fused.FusedField)
    return model, field


def rays(size: int, view: int) -> Rays:
    camera = trajectory("orbit", 4, height_px=size, width_px=size, fov_rad=FOV_RAD)
    every = image_rays(camera)
    return Rays(every.origin[view : view + 1], every.direction[view : view + 1])


@pytest.mark.parametrize("space", SPACES, ids=["frustum", "contracted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_are_those_of_the_field(shape: tuple[int, int, int], space: Space):
    _, field = scene(shape, space)
    points = torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(1)) * 3.0
    expected_density, expected_rgb = field.exact(points)
    density, rgb = field(points)
    torch.testing.assert_close(density, expected_density, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(rgb, expected_rgb, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("space", SPACES, ids=["frustum", "contracted"])
@pytest.mark.parametrize("sharp", [1.0, 8.0], ids=["mist", "surfaces"])
def test_pictures_are_those_of_the_oracle(space: Space, sharp: float):
    _, field = scene((16, 64, 1), space, sharp=sharp)
    expected_rgb, expected_s, expected_variance = render(field.exact, rays(24, 1), 48)
    rgb, s, variance = render(field, rays(24, 1), 48)
    assert -10.0 * math.log10(float((rgb - expected_rgb).square().mean())) > 60.0
    assert float((s - expected_s).abs().max()) < 1.0 / 255.0
    assert float((variance - expected_variance).abs().max()) < 1.0 / 255.0
    with exact_rendering():
        same = render(field, rays(24, 1), 48)
    assert torch.equal(same[0], expected_rgb) and torch.equal(same[1], expected_s)


def test_a_grid_that_is_full_changes_only_what_is_empty():
    _, field = scene((16, 64, 1), Frustum(), sharp=8.0)
    assert 0.02 < field.occupied.mean() < 0.98
    sparse = field.along(rays(16, 2), 64)
    full = fused.FusedField(field.scene, field.exact)
    full.__dict__["occupied"] = field.occupied | True
    assert float((sparse[0] - full.along(rays(16, 2), 64)[0]).abs().max()) < 1.0 / 255.0


def test_rays_have_the_same_bits_in_any_company_and_on_any_number_of_threads():
    _, field = scene((32, 96, 3), Frustum(), sharp=4.0)
    seen, before = rays(72, 3), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = field.along(seen, 32)
    finally:
        torch.set_num_threads(before)
    some = torch.arange(5, seen.origin.shape[1], 7)
    for whole, part in zip(together, field.along(seen[some], 32), strict=True):
        assert torch.equal(whole[:, some], part)


def test_numbers_that_are_none_do_not_become_a_picture():
    model, _ = scene((16, 64, 1), Frustum())
    field = model.frozen_field(torch.full((1, 3, 8, 8, 16), math.nan))
    rgb, s, _ = render(field, rays(8, 0), 8)
    assert rgb.isnan().all() and s.isnan().all()


def test_a_scene_finds_out_once_where_it_is_empty():
    model, _ = scene((16, 64, 1), Frustum())
    seen = Scene(model, torch.randn(2, 3, 8, 8, 16), torch.empty(2, 0, dtype=torch.int64))
    camera = trajectory("orbit", 2, height_px=8, width_px=8, fov_rad=FOV_RAD)
    first = seen.render(camera, samples=8)
    assert seen.fields[0] is seen.fields[0]
    assert torch.equal(first.rgb[1:], seen[1].render(camera[1], samples=8).rgb)
