"""Run by test_fused_cuda.py, with TRITON_INTERPRET=1."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from tests.rendering.test_fused import SPACES, rays, scene
from vq3dcli.rendering import fused_cuda
from vq3dcli.rendering.render import exact_rendering, render
from vq3dcli.rendering.space import Frustum, Space

CPU = torch.device("cpu")


@pytest.mark.parametrize("space", SPACES, ids=["frustum", "contracted"])
@pytest.mark.parametrize("shape", [(16, 64, 1), (12, 70, 2)])
def test_pictures_are_those_of_the_oracle(shape: tuple[int, int, int], space: Space):
    _, field = scene(shape, space, sharp=8.0)
    on_device = fused_cuda.fused_or_exact(field.scene, field.exact, CPU)
    assert isinstance(on_device, fused_cuda.CudaField)
    expected_rgb, expected_s, expected_variance = render(field.exact, rays(8, 1), 12)
    rgb, s, variance = render(on_device, rays(8, 1), 12)
    assert -10.0 * math.log10(float((rgb - expected_rgb).square().mean())) > 60.0
    assert float((s - expected_s).abs().max()) < 1.0 / 255.0
    assert float((variance - expected_variance).abs().max()) < 1.0 / 255.0
    with exact_rendering():
        assert torch.equal(render(on_device, rays(8, 1), 12)[0], expected_rgb)


def test_emptiness_is_that_of_the_other_renderer():
    _, field = scene((16, 64, 1), Frustum(), sharp=8.0)
    occupied = fused_cuda.CudaField(field.scene, field.exact, CPU).occupied.numpy() != 0
    assert 0.02 < occupied.mean() < 0.98
    assert (occupied != field.occupied).mean() < 1e-4


def test_rays_have_the_same_bits_in_any_company():
    # At the same place in a block: rows of a matrix product differ by place here, since it is NumPy's.
    _, field = scene((16, 64, 1), Frustum(), sharp=4.0)
    on_device = fused_cuda.CudaField(field.scene, field.exact, CPU)
    seen = rays(10, 3)
    for whole, first, second in zip(
        on_device.along(seen, 12),
        on_device.along(seen[torch.arange(30)], 12),
        on_device.along(seen[torch.arange(64, 100)], 12),
        strict=True,
    ):
        assert torch.equal(whole[:, :30], first) and torch.equal(whole[:, 64:], second)


def test_numbers_that_are_none_do_not_become_a_picture():
    model, _ = scene((16, 64, 1), Frustum())
    field = model.frozen_field(torch.full((1, 3, 8, 8, 16), math.nan))
    rgb, s, _ = fused_cuda.CudaField(field.scene, field.exact, CPU).along(rays(3, 0), 4)
    assert rgb.isnan().all() and s.isnan().all()


def test_what_cannot_be_compiled_is_rendered_by_tensor_operations(caplog: pytest.LogCaptureFixture):
    _, field = scene((16, 64, 1), Frustum())
    broken = field.scene._replace(weights=None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert fused_cuda.fused_or_exact(broken, field.exact, CPU) is field.exact
    assert len(caplog.records) == 1
