"""Reliefs seen from other cameras: closed forms for walls, identity from the camera itself, occlusion at steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from vq3dcli.editing.march import camera_lines, intersect, longest_shift
from vq3dcli.rendering.cameras import (
    DEPTH_RANGE,
    Camera,
    canonical_camera,
    image_rays,
    pivot_camera,
    project,
    s_from_z_depth,
)
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.render import exact_rendering


@pytest.fixture(autouse=True, params=["fused", "tensors"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    with exact_rendering() if request.param == "tensors" else nullcontext():
        yield


HERE = canonical_camera(1, height_px=40, width_px=56)


def turned(yaw_deg: float, pitch_deg: float = 0.0) -> Camera:
    angles = (torch.tensor([math.radians(value)]) for value in (yaw_deg, pitch_deg))
    return pivot_camera(*angles, height_px=40, width_px=56)


def test_the_camera_itself_sees_each_pixel_at_its_place() -> None:
    relief = torch.rand(40, 56, generator=torch.Generator().manual_seed(0))
    hits = intersect(relief, camera_lines(HERE, HERE, DEPTH_RANGE))
    expected = torch.stack(torch.meshgrid(torch.arange(56) + 0.5, torch.arange(40) + 0.5, indexing="xy"), -1)
    assert (hits.pixels - expected.reshape(-1, 2)).abs().max() < 1e-3
    assert (hits.stretch - 1.0).abs().max() < 1e-3


@pytest.mark.parametrize(("yaw_deg", "pitch_deg", "z_depth"), [(8.0, 0.0, 2.0), (-5.0, 4.0, 5.0), (0.0, -9.0, 3.0)])
def test_a_wall_is_a_homography(yaw_deg: float, pitch_deg: float, z_depth: float) -> None:
    camera = turned(yaw_deg, pitch_deg)
    s = float(s_from_z_depth(torch.tensor(z_depth)))
    hits = intersect(torch.full((40, 56), s), camera_lines(HERE, camera, DEPTH_RANGE))
    rays = image_rays(camera)
    distance = (z_depth - 3.0 - rays.origin[..., 2]) / rays.direction[..., 2]
    expected, _ = project(HERE, rays.origin + distance[..., None] * rays.direction)
    assert (hits.pixels - expected[0]).abs().max() < 2e-3
    assert (hits.stretch - 1.0).abs().max() < 1e-4


def test_a_slope_is_met_where_it_is() -> None:
    relief = torch.linspace(0.2, 0.6, 56).expand(40, 56)
    lines = camera_lines(HERE, turned(6.0), DEPTH_RANGE)
    hits = intersect(relief, lines)
    assert (look_up_px(relief[None], hits.pixels)[0] - hits.s).abs().max() < 2e-3
    on_line = lines.base + hits.s[:, None] * lines.step
    assert (on_line - hits.pixels).abs().max() < 1e-4


def test_what_is_near_hides_what_is_far_and_leaves_a_gap() -> None:
    relief = torch.full((40, 56), 0.2)
    relief[:, 20:36] = 0.6
    hits = intersect(relief, camera_lines(HERE, turned(6.0), DEPTH_RANGE))
    row = hits.s.reshape(40, 56)[20]
    stretch = hits.stretch.reshape(40, 56)[20]
    assert row[28] == pytest.approx(0.6, abs=1e-3)
    # A camera to the right sees behind the right edge of the thing: a gap there, none at the left.
    gap = (stretch > 3.0).nonzero()[:, 0]
    assert len(gap) >= 4 and gap.min() > 28
    assert int((gap[-1] - gap[0]) + 1) == len(gap)


def test_rays_do_not_depend_on_each_other() -> None:
    relief = torch.rand(10, 14, generator=torch.Generator().manual_seed(0))
    relief = torch.nn.functional.interpolate(relief[None, None], size=(40, 56), mode="bilinear")[0, 0]
    lines = camera_lines(HERE, turned(9.0, 3.0), DEPTH_RANGE)
    whole = intersect(relief, lines)
    some = torch.arange(0, len(lines.base), 3)
    part = intersect(relief, lines._replace(base=lines.base[some], step=lines.step[some]))
    # The number of steps may differ, and with it what is skipped at a grazed edge.
    assert ((whole.s[some] - part.s).abs() < 2e-3).float().mean() > 0.98


def test_a_camera_inside_does_not_look_back() -> None:
    relief = torch.full((40, 56), 0.9)
    relief[:, 20:] = 0.1
    camera = canonical_camera(1, height_px=40, width_px=56, radius=1.0)
    lines = camera_lines(HERE, camera, DEPTH_RANGE)
    assert lines.nearest_s < 0.9
    assert torch.isfinite(intersect(relief, lines).pixels).all()
    assert longest_shift(lines, 0.2, 0.1) <= 0.0
