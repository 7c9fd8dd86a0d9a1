"""Views for the discriminators: cameras in range, patches that are crops, nothing that depends on the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_RELATIVE
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.rendering.cameras import CAMERA_RADIUS
from vq3dcli.training.views import (
    crop,
    front_view,
    novel_cameras,
    patch_corners,
    rays_through,
    real_disparity,
    render_view,
    render_views,
    sample_at_size,
)


@pytest.fixture(scope="module")
def recipe() -> Stage1Recipe:
    return _recipe()


def _recipe(*overrides: str) -> Stage1Recipe:
    common = "model.image_size=24 adversarial.size_px=16 adversarial.main=1 adversarial.novel=1 adversarial.yaw_deg=20"
    more = "adversarial.pitch_deg=10 rendering.samples=10 rendering.importance_samples=0 adversarial.main_patch=false"
    return load_recipe("toy-cpu", Stage1Recipe, [*common.split(), *more.split(), *overrides])


def _field(points: Tensor) -> tuple[Tensor, Tensor]:
    """A soft, coloured ball."""
    density = 8.0 * torch.sigmoid(20.0 * (0.8 - points.square().sum(-1).add(1e-6).sqrt()))
    return density, torch.sigmoid(points * 2.0)


def test_novel_cameras_lie_in_range_and_fill_it(recipe: Stage1Recipe) -> None:
    camera = novel_cameras(torch.arange(4000), recipe)
    position = camera.cam_to_world[:, :3, 3]
    torch.testing.assert_close(position.norm(dim=1), torch.full((4000,), CAMERA_RADIUS))
    pitch = torch.asin(-position[:, 1] / CAMERA_RADIUS)
    yaw = torch.atan2(position[:, 0], -position[:, 2])
    for angle, limit in ((yaw, math.radians(20)), (pitch, math.radians(10))):
        assert angle.abs().max() <= limit + 1e-6
        # Uniform: mean 0, variance limit^2 / 3.
        assert abs(angle.mean().item()) < 0.05 * limit
        assert angle.var().item() == pytest.approx(limit**2 / 3, rel=0.06)
    assert abs(torch.corrcoef(torch.stack([yaw, pitch]))[0, 1].item()) < 0.05


def test_a_camera_belongs_to_its_sample_alone(recipe: Stage1Recipe) -> None:
    whole = novel_cameras(torch.arange(100, 110), recipe).cam_to_world
    assert torch.equal(novel_cameras(torch.tensor([107, 102]), recipe).cam_to_world, whole[[7, 2]])
    assert not torch.equal(novel_cameras(torch.arange(100, 110), _recipe("training.seed=1")).cam_to_world, whole)


@pytest.mark.parametrize("importance_samples", [0, 6])
def test_a_patch_is_the_crop_of_the_whole_view(importance_samples: int) -> None:
    recipe = _recipe(f"rendering.importance_samples={importance_samples}")
    index = torch.arange(3)
    camera = front_view(index, 24, recipe)
    corner = patch_corners(index, seed=0, image_px=24, patch_px=16)
    whole = render_view(_field, camera, index, recipe, "main")
    patch = render_view(_field, camera, index, recipe, "main", corner, 16)
    assert whole.rgb.shape == (3, 3, 24, 24)
    torch.testing.assert_close(patch.rgb, crop(whole.rgb, corner, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(patch.s, crop(whole.s, corner, 16), rtol=0, atol=1e-5)


def test_rays_of_photos_are_made_once(recipe: Stage1Recipe) -> None:
    pixel, seen = torch.tensor([[0, 23, 24], [575, 1, 300]]), front_view(torch.arange(2), 24, recipe)
    ours, plain = (rays_through(view, pixel) for view in (seen, build_canonical_camera(recipe, 24, 2)))
    assert torch.equal(ours.direction, plain.direction) and torch.equal(ours.origin, plain.origin)
    assert front_view(torch.arange(5), 24, recipe) is seen


def test_patches_lie_inside_and_reach_every_place() -> None:
    corner = patch_corners(torch.arange(2000), seed=0, image_px=24, patch_px=16)
    for axis in (0, 1):
        assert set(corner[:, axis].tolist()) == set(range(9))
    assert (patch_corners(torch.arange(50), seed=0, image_px=16, patch_px=16) == 0).all()


def test_crops_are_slices() -> None:
    images, corner = torch.rand(2, 3, 8, 10), torch.tensor([[1, 2], [5, 0]])
    patches = crop(images, corner, 5)
    assert torch.equal(patches[0], images[0, :, 2:7, 1:6])
    assert torch.equal(patches[1], images[1, :, 0:5, 5:10])
    assert torch.equal(crop(images[:, 0], corner, 5), patches[:, 0])


@pytest.mark.parametrize("main_patch", [False, True])
def test_a_true_reconstruction_looks_like_its_photo(main_patch: bool) -> None:
    more = (f"adversarial.main_patch={str(main_patch).lower()}", "rendering.samples=64")
    recipe = _recipe(*more)
    index = torch.arange(4)
    photo = render_view(_field, front_view(index, 24, recipe), index, recipe, "photo")
    labelled, classes = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    views = render_views(_field, photo.rgb, photo.s, labelled, index, classes, recipe)
    assert views.main is not None
    assert views.novel is not None
    assert views.main.fake.rgb.shape == views.main.real.rgb.shape == views.novel.fake.rgb.shape == (4, 3, 16, 16)
    assert (views.main.fake.rgb - views.main.real.rgb).abs().mean() < 0.02
    assert (views.main.fake.s - views.main.real.s).abs().mean() < 0.02
    assert (views.novel.fake.rgb - views.novel.real.rgb).abs().mean() > 0.02
    assert (
        render_views(_field, photo.rgb, photo.s, labelled, index, classes, _recipe("adversarial.novel=0", *more)).novel
        is None
    )
    rows = slice(2, 3)
    alone = render_views(_field, photo.rgb[rows], photo.s[rows], labelled[rows], index[rows], classes[rows], recipe)
    assert alone.novel is not None
    torch.testing.assert_close(alone.novel.fake.rgb, views.novel.fake.rgb[rows], rtol=0, atol=1e-5)


def test_gradients_reach_the_field_and_detached_views_have_none(recipe: Stage1Recipe) -> None:
    shade = torch.tensor(0.0, requires_grad=True)

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = _field(points)
        return density * torch.exp(shade), (rgb + shade).clamp(0, 1)

    views = render_views(
        field,
        torch.zeros(2, 3, 24, 24),
        torch.zeros(2, 24, 24),
        torch.ones(2, dtype=torch.bool),
        torch.arange(2),
        torch.zeros(2, dtype=torch.int64),
        recipe,
    )
    assert views.main is not None
    assert views.novel is not None
    for view in (views.main.fake, views.novel.fake):
        for value in view:
            (gradient,) = torch.autograd.grad(value.mean(), shade, retain_graph=True)
            assert gradient.abs() > 0
    detached = views.detached()
    assert detached.novel is not None
    assert not detached.novel.fake.rgb.requires_grad
    assert torch.equal(detached.novel.fake.s, views.novel.fake.s)


def test_photos_are_sampled_where_the_rays_pass() -> None:
    ramp = ((torch.arange(24) + 0.5) / 24).expand(1, 1, 24, 24)
    expected = ((torch.arange(16) + 0.5) / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(sample_at_size(ramp, 16), expected)
    assert sample_at_size(ramp, 24) is ramp


def test_real_disparity_aligns_relative_labels_only() -> None:
    label = torch.rand(2, 24, 24)
    aligned = real_disparity(label * 7, torch.tensor([LABEL_METRIC, LABEL_RELATIVE]), mean=0.4, std=0.1)
    assert torch.equal(aligned[0], label[0] * 7)
    assert aligned[1].mean().item() == pytest.approx(0.4, abs=0.02)
    assert aligned[1].std().item() == pytest.approx(0.1, abs=0.02)
