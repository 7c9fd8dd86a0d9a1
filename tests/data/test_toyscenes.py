"""Toy scenes: the same bytes in any batch, and disparity that a brute-force march confirms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vq3dcli.data import toyscenes
from vq3dcli.data.toyscenes import CLASS_NAMES, ToyScenes, render_scenes, sample_scenes
from vq3dcli.data.toyshapes import SHAPES
from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    NEAR,
    Camera,
    canonical_camera,
    image_rays,
    pivot_camera,
    project,
    s_from_z_depth,
    z_depth_from_s,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations on small tensors wait for each other's threads when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def camera_at(count: int, yaw_deg: float, pitch_deg: float, size_px: int) -> Camera:
    yaw, pitch = torch.full((count,), math.radians(yaw_deg)), torch.full((count,), math.radians(pitch_deg))
    return pivot_camera(yaw, pitch, height_px=size_px, width_px=size_px)


def scenes_of_every_class(each: int) -> ToyScenes:
    scenes = sample_scenes(torch.arange(150 * each), seed=3)
    members = [torch.nonzero(scenes.class_index == number)[:each, 0] for number in range(len(CLASS_NAMES))]
    assert all(len(some) == each for some in members)
    return scenes.select(torch.cat(members))


def columns_of(record: object) -> list[Tensor]:
    """All tensors of a record, those of its textures included."""
    values = [getattr(record, field.name) for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    return [
        tensor for value in values for tensor in (columns_of(value) if dataclasses.is_dataclass(value) else [value])
    ]


def test_there_are_sixteen_classes_and_all_appear() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 16
    counts = torch.bincount(sample_scenes(torch.arange(1600), seed=0).class_index, minlength=16)
    assert counts.min() > 60
    assert counts.max() < 150


def test_scenes_are_a_function_of_seed_purpose_and_index() -> None:
    index = torch.arange(100)
    scenes = sample_scenes(index, seed=5, purpose="train")
    assert all(map(torch.equal, columns_of(scenes), columns_of(sample_scenes(index, seed=5, purpose="train"))))
    alone = sample_scenes(index[37:38], seed=5, purpose="train")
    assert all(map(torch.equal, columns_of(scenes.select(index[37:38])), columns_of(alone)))
    for other in (sample_scenes(index, seed=6), sample_scenes(index, seed=5, purpose="eval")):
        assert not (other.ground_y == scenes.ground_y).any()
        assert not torch.equal(other.class_index, scenes.class_index)


@pytest.mark.parametrize(("yaw_deg", "pitch_deg"), [(0.0, 0.0), (-13.0, 7.0)])
def test_a_picture_has_the_same_bytes_in_any_batch(yaw_deg: float, pitch_deg: float) -> None:
    scenes = sample_scenes(torch.arange(48), seed=1)
    views = render_scenes(scenes, camera_at(48, yaw_deg, pitch_deg, 29))
    again = render_scenes(scenes, camera_at(48, yaw_deg, pitch_deg, 29))
    assert torch.equal(views.rgb, again.rgb)
    assert torch.equal(views.s, again.s)
    for i in range(0, 48, 3):
        alone = render_scenes(scenes.select(torch.tensor([i])), camera_at(1, yaw_deg, pitch_deg, 29))
        assert torch.equal(alone.rgb[0], views.rgb[i]), i
        assert torch.equal(alone.s[0], views.s[i]), i


def test_rendering_in_small_blocks_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = sample_scenes(torch.arange(20), seed=4)
    camera = camera_at(20, 5.0, 5.0, 23)
    whole = render_scenes(scenes, camera)
    monkeypatch.setattr(toyscenes, "_MAX_RAYS", 601)
    blocks = render_scenes(scenes, camera)
    assert torch.equal(whole.rgb, blocks.rgb)
    assert torch.equal(whole.s, blocks.s)


def test_views_have_the_promised_types_and_scenes_their_own_cameras() -> None:
    scenes = sample_scenes(torch.arange(4), seed=2)
    yaw, pitch = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([0.1, 0.0, -0.1, 0.0])
    views = render_scenes(scenes, pivot_camera(yaw, pitch, height_px=12, width_px=20))
    assert views.rgb.shape == (4, 3, 12, 20)
    assert views.rgb.dtype == torch.uint8
    assert views.s.shape == (4, 12, 20)
    assert views.s.dtype == torch.float32
    for i in range(4):
        camera = pivot_camera(yaw[i : i + 1], pitch[i : i + 1], height_px=12, width_px=20)
        assert torch.equal(render_scenes(scenes.select(torch.tensor([i])), camera).s[0], views.s[i])
    with pytest.raises(ValueError, match="3 cameras for 4 scenes"):
        render_scenes(scenes, canonical_camera(3, height_px=8, width_px=8))
    with pytest.raises(ValueError, match="supersample"):
        render_scenes(scenes, canonical_camera(4, height_px=8, width_px=8), supersample=0)


def test_disparity_is_that_of_the_pixel_centre_and_colours_converge() -> None:
    scenes = scenes_of_every_class(1)
    camera = canonical_camera(len(scenes), height_px=40, width_px=40)
    coarse, usual, fine = (render_scenes(scenes, camera, supersample=n) for n in (1, 2, 5))
    assert torch.equal(coarse.s, usual.s)
    assert torch.equal(fine.s, usual.s)
    error = (usual.rgb.float() - fine.rgb.float()).abs().mean()
    assert error < 1.0
    assert error < 0.7 * (coarse.rgb.float() - fine.rgb.float()).abs().mean()


def implicit(scenes: ToyScenes, i: int, point: Tensor) -> Tensor:
    """Positive in the free space of scene i, negative inside the object, below the ground and behind the wall."""
    x, y, z = point.unbind(-1)
    cos, sin = scenes.elevation[i].double()
    y, z = cos * y + sin * z, cos * z - sin * y
    height = scenes.ground_y[i].double() - y
    dx, dz = x - scenes.object_xz[i, 0].double(), z - scenes.object_xz[i, 1].double()
    cos, sin = scenes.object_turn[i].double()
    dims = list(scenes.dimensions[i].double())
    to_object = SHAPES[int(scenes.class_index[i])].distance(cos * dx + sin * dz, height, cos * dz - sin * dx, dims)
    free = torch.minimum(height, to_object)
    if scenes.has_wall[i]:
        cos, sin = scenes.wall_turn[i].double()
        free = torch.minimum(free, (scenes.wall_z_depth[i].double() - CAMERA_RADIUS - z) * cos - x * sin)
    return free


def marched_z_depth(scenes: ToyScenes, i: int, origin: Tensor, direction: Tensor, step_m: float) -> Tensor:
    """First sign change along rays in scene i, float64 `[m]`; infinite in the sky.

    The planes' functions are linear along a ray, so away from the object large steps lose nothing.
    """
    grid = torch.cat(
        [torch.arange(1.3, 1.7, 0.1), torch.arange(1.7, 4.4, step_m), torch.arange(4.4, 62.0, 1.2)]
    ).double()
    inside = implicit(scenes, i, origin + grid[:, None, None] * direction) <= 0.0
    first = inside.to(torch.int8).argmax(0)
    low, high = grid[(first - 1).clamp(min=0)], grid[first]
    for _ in range(30):
        middle = 0.5 * (low + high)
        is_inside = implicit(scenes, i, origin + middle[:, None] * direction) <= 0.0
        low, high = torch.where(is_inside, low, middle), torch.where(is_inside, middle, high)
    return torch.where(inside.any(0), high, torch.inf)


@pytest.mark.parametrize(("yaw_deg", "pitch_deg"), [(0.0, 0.0), (20.0, -10.0)])
def test_a_brute_force_march_finds_the_same_surfaces(yaw_deg: float, pitch_deg: float) -> None:
    scenes = scenes_of_every_class(2)
    camera = camera_at(len(scenes), yaw_deg, pitch_deg, 16)
    s = render_scenes(scenes, camera, supersample=1).s.flatten(1).double()
    rays = image_rays(camera)
    for i in range(len(scenes)):
        origin, direction, found = rays.origin[i].double(), rays.direction[i].double(), s[i]
        for step_m in (6e-3, 1e-4):  # the second for rims thinner than a step of the first
            expected = marched_z_depth(scenes, i, origin, direction, step_m)
            wrong = (found - s_from_z_depth(expected)).abs() > 2e-5  # at 2 m in front of the camera 6e-5 m
            wrong |= (expected < 6.0) & ((z_depth_from_s(found) - expected).abs() > 1e-4)
            origin, direction, found, expected = origin[wrong], direction[wrong], found[wrong], expected[wrong]
        # A ray that grazes an edge may dip into the object by a hair before the surface that is found.
        between = torch.lerp(expected, z_depth_from_s(found), torch.linspace(0, 1, 20, dtype=torch.float64)[:, None])
        depth_inside = implicit(scenes, i, origin + between[..., None] * direction).abs()
        assert (depth_inside < 1e-4).all(), CLASS_NAMES[int(scenes.class_index[i])]
        assert len(found) <= 1


def test_everything_is_beyond_near_and_the_object_is_visible() -> None:
    count = 300
    scenes = sample_scenes(torch.arange(count), seed=9)
    away = dataclasses.replace(scenes, object_xz=torch.full((count, 2), -100.0))
    for yaw_deg, pitch_deg in [(0, 0), (20, 10), (-20, -10), (20, -10)]:
        camera = camera_at(count, yaw_deg, pitch_deg, 16)
        s = render_scenes(scenes, camera, supersample=1).s
        assert z_depth_from_s(s).min() > NEAR + 0.03
        covered = (s != render_scenes(away, camera, supersample=1).s).flatten(1).float().mean(1)
        assert covered.min() > 0.01
        assert covered.max() < 0.6


def test_novel_views_show_the_surfaces_of_the_canonical_view() -> None:
    scenes = scenes_of_every_class(2)
    size_px = 48
    canonical = canonical_camera(len(scenes), height_px=size_px, width_px=size_px)
    novel = camera_at(len(scenes), 8.0, 5.0, size_px)
    rays = image_rays(canonical)
    z_depth = z_depth_from_s(render_scenes(scenes, canonical, supersample=1).s.flatten(1))
    pixels, expected = project(novel, rays.origin + z_depth[..., None] * rays.direction)
    found = z_depth_from_s(render_scenes(scenes, novel, supersample=1).s)
    column, row = pixels.floor().long().unbind(-1)
    compare = (column >= 0) & (column < size_px) & (row >= 0) & (row < size_px) & (z_depth < 15.0)
    there = found[torch.arange(len(scenes))[:, None], row.clamp(0, size_px - 1), column.clamp(0, size_px - 1)]
    agree = ((there - expected).abs() < 0.05 * expected)[compare]
    assert agree.float().mean() > 0.93
