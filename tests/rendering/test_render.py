"""Volume rendering against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vq3dcli.rendering.cameras import (
    FAR,
    NEAR,
    Rays,
    canonical_camera,
    image_rays,
    pivot_camera,
    pixel_centres,
    project,
    rays_at_pixels,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.ray_samples import stratified_samples, uniform_samples, with_importance
from vq3dcli.rendering.render import ray_weights, render, render_rays


def _sphere_field(radius: float, sharpness: float) -> object:
    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        inside = (points.square().sum(-1).sqrt() < radius).float()
        return inside * sharpness, points.mul(0.5).add(0.5).clamp(0, 1)

    return field


def test_pixel_to_ray_to_pixel() -> None:
    camera = pivot_camera(torch.tensor([0.3, -0.2]), torch.tensor([0.1, -0.15]), height_px=12, width_px=16)
    pixels = pixel_centres(12, 16)
    rays = rays_at_pixels(camera, pixels)
    z = torch.linspace(1.0, 9.0, pixels.shape[0])
    back, z_back = project(camera, rays.origin + z[:, None] * rays.direction)
    torch.testing.assert_close(back, pixels.expand(2, -1, -1), atol=1e-3, rtol=0)
    torch.testing.assert_close(z_back, z.expand(2, -1), atol=1e-4, rtol=1e-5)


def test_canonical_camera_looks_along_z_and_its_middle_pixel_at_the_pivot() -> None:
    camera = canonical_camera(1, height_px=64, width_px=64)
    pixels, z_depth = project(camera, torch.zeros(1, 1, 3))
    torch.testing.assert_close(pixels, torch.full((1, 1, 2), 32.0))
    torch.testing.assert_close(z_depth, torch.full((1, 1), 3.0))
    assert (image_rays(camera).direction[..., 2] == 1.0).all()


def test_s_runs_from_one_at_near_to_zero_at_far() -> None:
    z = torch.tensor([NEAR, 3.0, FAR, 1e9, 0.1])
    s = s_from_z_depth(z)
    assert s[0] == 1.0
    assert s[2] == 0.0
    assert s[3] == 0.0
    assert s[4] == 1.0
    torch.testing.assert_close(z_depth_from_s(s[:3]), z[:3], rtol=1e-4, atol=0)


def test_a_constant_slab_absorbs_by_its_thickness() -> None:
    """Between two edges of the bins the quadrature is exact: 1 - exp(-sigma L), L along the slanted ray."""
    samples, sigma = 32, 0.7
    edges = z_depth_from_s(uniform_samples(samples).edges_s)
    front, back = float(edges[10]), float(edges[20])

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        z = points[..., 2]
        return sigma * ((z > front) & (z < back)).float(), torch.ones_like(points)

    direction = torch.tensor([[[0.0, 0.0, 1.0], [0.5, -0.25, 1.0]]])
    rays = Rays(torch.zeros_like(direction), direction)
    rendering = render_rays(field, rays, uniform_samples(samples), opaque_end=False)
    length = (back - front) * direction.square().sum(-1).sqrt()
    torch.testing.assert_close(rendering.rgb[..., 0], 1.0 - torch.exp(-sigma * length), rtol=1e-5, atol=1e-6)


def test_sums_over_samples_by_brute_force() -> None:
    """Sample by sample: what is left of the light, times what the sample takes of it."""
    torch.manual_seed(0)
    samples = stratified_samples(torch.rand(2, 3, 16))
    direction = torch.cat([torch.randn(2, 3, 2), torch.ones(2, 3, 1)], -1)
    density, colour = 0.2 * torch.rand(2, 48), torch.rand(2, 48, 3)
    found = render_rays(lambda points: (density, colour), Rays(torch.zeros(2, 3, 3), direction), samples)
    for scene in range(2):
        for ray in range(3):
            s = samples.s[scene, ray].tolist()
            edges = [1.0, *((a + b) / 2 for a, b in itertools.pairwise(s)), 0.0]
            z = [1 / (edge / NEAR + (1 - edge) / FAR) for edge in edges]
            left, weights = 1.0, []
            for i in range(16):
                thickness = (
                    float(density[scene, 16 * ray + i]) * (z[i + 1] - z[i]) * float(direction[scene, ray].norm())
                )
                taken = 1.0 if i == 15 else 1 - math.exp(-thickness)
                weights.append(left * taken)
                left *= 1 - taken
            mean = sum(w * x for w, x in zip(weights, s, strict=True))
            variance = sum(w * (x - mean) ** 2 for w, x in zip(weights, s, strict=True))
            rgb = torch.tensor(weights) @ colour[scene, 16 * ray : 16 * ray + 16]
            assert found.weights[scene, ray].tolist() == pytest.approx(weights, abs=1e-5)
            assert (float(found.s[scene, ray]), float(found.weight_variance[scene, ray])) == pytest.approx(
                (mean, variance), abs=1e-5
            )
            torch.testing.assert_close(found.rgb[scene, ray], rgb, atol=1e-5, rtol=0)


def test_an_opaque_sphere_renders_to_its_disparity() -> None:
    camera = canonical_camera(1, height_px=24, width_px=24)
    rays = image_rays(camera)
    samples = 1536
    rendering = render_rays(_sphere_field(0.8, 1e4), rays, uniform_samples(samples))
    a = rays.direction.square().sum(-1)
    b = (rays.origin * rays.direction).sum(-1)
    c = rays.origin.square().sum(-1) - 0.64
    root = b.square() - a * c
    hit = root > 0.02
    exact = s_from_z_depth((-b - root.clamp(min=0).sqrt()) / a)
    assert hit.sum() > 100
    assert (rendering.s - exact)[hit].abs().max() < 1.5 / samples
    assert rendering.weight_variance[hit].max() < 1e-5


def test_weights_sum_to_at_most_one_and_to_one_with_an_opaque_end() -> None:
    tau = torch.rand(7, 50) * torch.logspace(-6, 6, 7)[:, None]
    open_weights = ray_weights(tau, opaque_end=False)
    assert (open_weights >= 0).all()
    assert (open_weights.sum(-1) <= 1 + 1e-5).all()
    torch.testing.assert_close(open_weights.sum(-1), 1 - torch.exp(-tau.double().sum(-1)).float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ray_weights(tau, opaque_end=True).sum(-1), torch.ones(7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_gradients_are_finite_over_huge_ranges(scale: float) -> None:
    tau = torch.full((3, 16), scale, requires_grad=True)
    weights = ray_weights(tau, opaque_end=True)
    (weights * torch.linspace(0, 1, 16)).sum().backward()
    assert tau.grad is not None
    assert torch.isfinite(tau.grad).all()


def test_chunks_do_not_change_a_bit() -> None:
    rays = image_rays(pivot_camera(torch.tensor([0.2]), torch.tensor([0.1]), height_px=20, width_px=20))
    field = _sphere_field(0.9, 3.0)
    whole = render(field, rays, 40, rays_per_chunk=400)
    for rays_per_chunk in (1, 7, 128):
        parts = render(field, rays, 40, rays_per_chunk=rays_per_chunk)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_stratified_samples_stay_in_their_bins_and_descend() -> None:
    samples_s, middle = stratified_samples(torch.rand(5, 32)).s, uniform_samples(32).s
    assert (samples_s - middle).abs().max() <= 0.5 / 32 + 1e-6
    assert (samples_s[:, 1:] < samples_s[:, :-1]).all()
    # A larger number is farther away.
    for jitter in (0.0, 0.25, 0.5):
        torch.testing.assert_close(stratified_samples(torch.full((4,), jitter)).s, 1 - (torch.arange(4) + jitter) / 4)


def test_importance_samples_follow_the_weights_and_carry_no_gradient() -> None:
    samples = stratified_samples(torch.full((4, 16), 0.5))
    weights = torch.zeros(4, 16)
    weights[:, 5] = 1.0
    weights.requires_grad_()
    merged = with_importance(samples, weights, torch.rand(4, 64))
    assert merged.s.shape == (4, 80) and not merged.s.requires_grad
    assert (merged.s[:, 1:] <= merged.s[:, :-1]).all() and (merged.edges_s.diff() <= 0).all()
    # The 16 samples themselves are among them: two of them in the wider interval, one in the narrower.
    away = (merged.s - samples.s[:, 5:6]).abs()
    assert (away <= 0.5 / 16 + 1e-6).float().mean() > 0.36
    assert (away <= 1.5 / 16 + 1e-6).float().mean() > 0.78


def test_an_importance_pass_sharpens_a_surface() -> None:
    camera = canonical_camera(1, height_px=8, width_px=8)
    field = _sphere_field(0.8, 1e4)
    jitter = torch.full((1, 64, 64), 0.5)
    coarse = uniform_samples(24)
    fine = render_rays(field, image_rays(camera), coarse, importance=jitter)
    reference = render_rays(field, image_rays(camera), uniform_samples(1536))
    plain = render_rays(field, image_rays(camera), coarse)
    hit = reference.s > 0.5
    assert (fine.s - reference.s)[hit].abs().mean() < 0.2 * (plain.s - reference.s)[hit].abs().mean()
