"""Toy scenes: the same bytes in any batch, and disparity that a brute-force march confirms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

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
from vq3dcli.toyscenes import CLASS_NAMES, ToyScenes, render, render_scenes, sample_scenes, sample_varied_scenes
from vq3dcli.toyscenes.photos import SIDE_PX, PhotoBank
from vq3dcli.toyscenes.shapes import SHAPES


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


def photo_bank() -> PhotoBank:
    generator = torch.Generator().manual_seed(0)
    return PhotoBank(torch.randint(0, 256, (5, 3, SIDE_PX, SIDE_PX), generator=generator, dtype=torch.uint8))


def draw(kind: str, index: Tensor, seed: int, purpose: str = "train") -> ToyScenes:
    if kind == "plain":
        return sample_scenes(index, seed=seed, purpose=purpose)
    photos = photo_bank() if kind == "photos" else None
    return sample_varied_scenes(index, seed=seed, purpose=purpose, photos=photos)


def columns_of(record: object) -> list[Tensor]:
    """All tensors of a record, those of the records in it included."""
    values = [getattr(record, field.name) for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    records = [value for value in values if dataclasses.is_dataclass(value)]
    return [value for value in values if isinstance(value, Tensor)] + [
        t for value in records for t in columns_of(value)
    ]


def test_plain_scenes_stay_what_they_are() -> None:
    """Data sets, figures and embedded weights are of them. Last bits depend on the processor, so not the very bytes."""
    scenes = sample_scenes(torch.arange(48), seed=7)
    golden = {
        (0.0, 0.0): ([124.1684, 121.6905, 124.1822], 45.2170, 0.276190, 0.149416),
        (-13.0, 7.0): ([121.4449, 119.1524, 121.6238], 41.3917, 0.287655, 0.134900),
    }
    for (yaw_deg, pitch_deg), (colour, spread, mean_s, std_s) in golden.items():
        views = render_scenes(scenes, camera_at(48, yaw_deg, pitch_deg, 20))
        rgb, s = views.rgb.double(), views.s.double()
        assert rgb.mean((0, 2, 3)).tolist() == pytest.approx(colour, abs=2e-3)
        assert float(rgb.std()) == pytest.approx(spread, abs=2e-3)
        assert float(s.mean()) == pytest.approx(mean_s, abs=2e-5)
        assert float(s.std()) == pytest.approx(std_s, abs=2e-5)


def test_there_are_sixteen_classes_and_all_appear() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 16
    counts = torch.bincount(sample_scenes(torch.arange(1600), seed=0).class_index, minlength=16)
    assert counts.min() > 60
    assert counts.max() < 150


@pytest.mark.parametrize("kind", ["plain", "varied", "photos"])
def test_scenes_are_a_function_of_seed_purpose_and_index(kind: str) -> None:
    index = torch.arange(100)
    scenes = draw(kind, index, 5)
    assert all(map(torch.equal, columns_of(scenes), columns_of(draw(kind, index, 5))))
    alone = draw(kind, index[37:38], 5)
    assert all(map(torch.equal, columns_of(scenes.select(index[37:38])), columns_of(alone)))
    for other in (draw(kind, index, 6), draw(kind, index, 5, "eval")):
        assert not (other.objects.foot == scenes.objects.foot).all(-1).any()
        assert not torch.equal(other.class_index, scenes.class_index)


@pytest.mark.parametrize(
    ("kind", "yaw_deg", "pitch_deg"),
    [("plain", 0.0, 0.0), ("plain", -13.0, 7.0), ("varied", 9.0, 3.0), ("photos", 0.0, 0.0)],
)
def test_a_picture_has_the_same_bytes_in_any_batch(kind: str, yaw_deg: float, pitch_deg: float) -> None:
    scenes = draw(kind, torch.arange(48), 1)
    views = render_scenes(scenes, camera_at(48, yaw_deg, pitch_deg, 29))
    again = render_scenes(scenes, camera_at(48, yaw_deg, pitch_deg, 29))
    assert torch.equal(views.rgb, again.rgb)
    assert torch.equal(views.s, again.s)
    for i in range(0, 48, 3):
        alone = render_scenes(scenes.select(torch.tensor([i])), camera_at(1, yaw_deg, pitch_deg, 29))
        assert torch.equal(alone.rgb[0], views.rgb[i]), i
        assert torch.equal(alone.s[0], views.s[i]), i


@pytest.mark.parametrize("kind", ["plain", "photos"])
def test_rendering_in_small_blocks_gives_the_same_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = draw(kind, torch.arange(20), 4)
    camera = camera_at(20, 5.0, 5.0, 23)
    whole = render_scenes(scenes, camera)
    monkeypatch.setattr(render, "_MAX_RAYS", 601)
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
    """Positive in the free space of scene i, negative inside objects, below the ground and behind the wall."""
    x, y, z = point.unbind(-1)
    cos, sin = scenes.roll[i].double()
    x, y = cos * x + sin * y, cos * y - sin * x
    cos, sin = scenes.elevation[i].double()
    y, z = cos * y + sin * z, cos * z - sin * y
    free = scenes.ground_y[i].double() - y if scenes.has_ground[i] else torch.full_like(y, torch.inf)
    for number in range(scenes.objects.class_index.shape[1]):
        if scenes.objects.class_index[i, number] >= 0:
            free = torch.minimum(free, to_object(scenes, i, number, x, y, z))
    if scenes.has_wall[i]:
        cos, sin = scenes.wall_turn[i].double()
        free = torch.minimum(free, (scenes.wall_z_depth[i].double() - CAMERA_RADIUS - z) * cos - x * sin)
    return free


def to_object(scenes: ToyScenes, i: int, number: int, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Distance to one object of scene i, of points in the scene's frame."""
    dx, dy, dz = (value - foot for value, foot in zip((x, y, z), scenes.objects.foot[i, number].double(), strict=True))
    cos, sin = scenes.objects.turn[i, number].double()
    across, up, ahead = cos * dx + sin * dz, -dy, cos * dz - sin * dx
    cos, sin = scenes.objects.tilt[i, number].double()
    shape = SHAPES[int(scenes.objects.class_index[i, number])]
    dims = list(scenes.objects.dimensions[i, number].double())
    return shape.distance(cos * across + sin * up, cos * up - sin * across, ahead, dims)


def marched_z_depth(
    scenes: ToyScenes, i: int, origin: Tensor, direction: Tensor, step_m: float, farthest_m: float
) -> Tensor:
    """First sign change along rays in scene i, float64 `[m]`; infinite in the sky.

    The planes' functions are linear along a ray, so behind the objects large steps lose nothing.
    """
    steps = [torch.arange(1.3, farthest_m, step_m), torch.arange(farthest_m, 62.0, 1.2)]
    grid = torch.cat(steps).double()
    inside = torch.cat([implicit(scenes, i, origin + t[:, None, None] * direction) <= 0.0 for t in grid.split(1000)])
    first = inside.to(torch.int8).argmax(0)
    low, high = grid[(first - 1).clamp(min=0)], grid[first]
    for _ in range(30):
        middle = 0.5 * (low + high)
        is_inside = implicit(scenes, i, origin + middle[:, None] * direction) <= 0.0
        low, high = torch.where(is_inside, low, middle), torch.where(is_inside, middle, high)
    return torch.where(inside.any(0), high, torch.inf)


@pytest.mark.parametrize(
    ("kind", "yaw_deg", "pitch_deg", "farthest_m"),
    [("plain", 0.0, 0.0, 4.4), ("plain", 20.0, -10.0, 4.4), ("varied", -20.0, 10.0, 16.0)],
)
def test_a_brute_force_march_finds_the_same_surfaces(
    kind: str, yaw_deg: float, pitch_deg: float, farthest_m: float
) -> None:
    scenes = scenes_of_every_class(2) if kind == "plain" else draw(kind, torch.arange(16), 1)
    camera = camera_at(len(scenes), yaw_deg, pitch_deg, 16 if kind == "plain" else 12)
    s = render_scenes(scenes, camera, supersample=1).s.flatten(1).double()
    rays = image_rays(camera)
    for i in range(len(scenes)):
        origin, direction, found = rays.origin[i].double(), rays.direction[i].double(), s[i]
        for step_m in (6e-3, 1e-4):  # the second for rims thinner than a step of the first
            expected = marched_z_depth(scenes, i, origin, direction, step_m, farthest_m)
            wrong = (found - s_from_z_depth(expected)).abs() > 2e-5  # at 2 m in front of the camera 6e-5 m
            wrong |= (expected < 6.0) & ((z_depth_from_s(found) - expected).abs() > 1e-4)
            origin, direction, found, expected = origin[wrong], direction[wrong], found[wrong], expected[wrong]
        # A ray that grazes an edge may dip into the object by a hair before the surface that is found.
        between = torch.lerp(expected, z_depth_from_s(found), torch.linspace(0, 1, 20, dtype=torch.float64)[:, None])
        depth_inside = implicit(scenes, i, origin + between[..., None] * direction).abs()
        assert (depth_inside < 1e-4).all(), (i, CLASS_NAMES[int(scenes.class_index[i])])
        assert len(found) <= 1


def without_main_object(scenes: ToyScenes) -> ToyScenes:
    foot = scenes.objects.foot.clone()
    foot[:, 0] = -100.0
    return dataclasses.replace(scenes, objects=dataclasses.replace(scenes.objects, foot=foot))


def test_everything_is_beyond_near_and_the_object_is_visible() -> None:
    count = 300
    scenes = sample_scenes(torch.arange(count), seed=9)
    away = without_main_object(scenes)
    for yaw_deg, pitch_deg in [(0, 0), (20, 10), (-20, -10), (20, -10)]:
        camera = camera_at(count, yaw_deg, pitch_deg, 16)
        s = render_scenes(scenes, camera, supersample=1).s
        assert z_depth_from_s(s).min() > NEAR + 0.03
        covered = (s != render_scenes(away, camera, supersample=1).s).flatten(1).float().mean(1)
        assert covered.min() > 0.01
        assert covered.max() < 0.6


def test_everything_is_beyond_near_in_varied_scenes_and_most_show_their_main_object() -> None:
    count = 250
    scenes = sample_varied_scenes(torch.arange(count), seed=9)
    for yaw_deg, pitch_deg in [(0, 0), (20, 10), (-20, -10), (20, -10), (-13, 10), (6, -6)]:
        s = render_scenes(scenes, camera_at(count, yaw_deg, pitch_deg, 10), supersample=1).s
        assert z_depth_from_s(s).min() > NEAR + 0.02
    front = canonical_camera(count, height_px=16, width_px=16)
    s = render_scenes(scenes, front, supersample=1).s
    covered = (s != render_scenes(without_main_object(scenes), front, supersample=1).s).flatten(1).float().mean(1)
    assert (covered > 0.015).float().mean() > 0.95
    assert covered.max() > 0.8


def test_varied_scenes_vary() -> None:
    scenes = sample_varied_scenes(torch.arange(600), seed=2, photos=photo_bank())
    there = scenes.objects.class_index >= 0
    assert there[:, 0].all()
    assert all(share > 0.1 for share in (there.sum(1)[:, None] == torch.arange(1, 5)).float().mean(0)[:3])
    assert torch.bincount(scenes.class_index, minlength=16).min() > 15
    for share in (scenes.has_ground, scenes.has_wall, scenes.photos.planes[:, 2, 0] >= 0):
        assert 0.15 < share.float().mean() < 0.85
    assert 0.65 < (scenes.photos.planes[:, 0, 0] >= 0).float().mean() < 0.85
    degrees = torch.atan2(scenes.elevation[:, 1], scenes.elevation[:, 0]).rad2deg()
    assert degrees.min() < 0.0
    assert degrees.max() > 42.0


def test_objects_hide_the_light_from_each_other() -> None:
    """Other objects darken what is there without them, and brighten nothing."""
    scenes = sample_varied_scenes(torch.arange(200), seed=0)
    some = scenes.select(torch.nonzero((scenes.objects.class_index[:, 1] >= 0) & scenes.has_ground)[:60, 0])
    front = canonical_camera(len(some), height_px=24, width_px=24)
    class_index = some.objects.class_index.clone()
    class_index[:, 1:] = -1
    fewer = dataclasses.replace(some, objects=dataclasses.replace(some.objects, class_index=class_index))
    both, main = render_scenes(some, front, supersample=1), render_scenes(fewer, front, supersample=1)
    same = both.s == main.s
    changed = same & (both.rgb.int() != main.rgb.int()).any(1)
    assert (changed.flatten(1).any(1)).float().mean() > 0.3
    assert (both.rgb.int() <= main.rgb.int()).all(1)[same].all()


@pytest.mark.parametrize("kind", ["plain", "varied"])
def test_novel_views_show_the_surfaces_of_the_canonical_view(kind: str) -> None:
    scenes = scenes_of_every_class(2) if kind == "plain" else draw(kind, torch.arange(32), 2)
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
    assert agree.float().mean() > (0.93 if kind == "plain" else 0.9)
