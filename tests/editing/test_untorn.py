"""Photo detail without tears: slopes beside things, straight edges that stay straight, and where steps stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vq3dcli.data_tools.depth.models import DepthModel
from vq3dcli.editing.march import camera_lines, intersect
from vq3dcli.editing.photo_scene import STRETCH_FADES, STRETCH_GONE, PhotoScene
from vq3dcli.editing.untorn import evened, untorn, with_slopes
from vq3dcli.pipelines.export import Wish, wished_photo_scene
from vq3dcli.pipelines.export_layers import turned_cameras
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.geometry import Geometry, geometry_of_map, photo_relief
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.pipelines.render import Look, staged_photo
from vq3dcli.rendering.cameras import Camera, pivot_pose
from vq3dcli.rendering.space import Frustum

SIZE = (96, 128)
FRUSTUM = Frustum()
PLAIN = torch.full((3, *SIZE), 90, dtype=torch.uint8)


def turned(*yaw_deg: float) -> Camera:
    yaw = torch.tensor([math.radians(value) for value in yaw_deg])
    return FRUSTUM.camera(*SIZE).at(pivot_pose(yaw, torch.zeros_like(yaw)))


def card_s() -> Tensor:
    s = torch.full(SIZE, 0.2)
    s[30:66, 40:80] = 0.6
    return s


def most_stretch(s: Tensor, cameras: Camera) -> float:
    photo = FRUSTUM.camera(*s.shape)
    return max(
        float(intersect(s, camera_lines(photo, cameras[index], FRUSTUM.depth_range)).stretch.max())
        for index in range(len(cameras))
    )


def test_the_least_relief_above_another_without_steep_slopes() -> None:
    """A peak becomes an octagon around it: a cone of the greatest slope along both axes, and less than it across."""
    peak = torch.zeros(41, 41)
    peak[20, 20] = 1.0
    s = with_slopes(peak, 0.1)
    expected = (1.0 - 0.1 * (torch.arange(41.0) - 20.0).abs()).clamp(min=0.0)
    torch.testing.assert_close(s[20], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(s[:, 20], expected, atol=1e-6, rtol=0)
    assert 0.1 * 5 <= 1.0 - float(s[25, 25]) <= 0.1 * 10
    gentle = torch.linspace(0.0, 1.0, 41).expand(41, 41).contiguous()
    torch.testing.assert_close(with_slopes(gentle, 0.1), gentle)


def test_what_is_beside_a_thing_is_stretched_and_not_torn() -> None:
    cameras = turned(1.2, -1.2)
    s = untorn(card_s(), PLAIN, FRUSTUM, cameras)
    assert most_stretch(card_s(), cameras) > STRETCH_GONE
    assert most_stretch(s, cameras) < STRETCH_FADES
    # The thing stays as it is, with its outline, and what is far from it, too.
    torch.testing.assert_close(s[30:66, 40:80], torch.full((36, 40), 0.6), atol=1e-4, rtol=0)
    torch.testing.assert_close(s[:, :8], torch.full((96, 8), 0.2), atol=1e-4, rtol=0)


def test_no_surface_comes_to_lie_beyond_the_others() -> None:
    """At the foot of a bump along an edge, which a straight course would pass below."""
    rows = torch.arange(float(SIZE[0]))[:, None].expand(SIZE)
    s = 0.5 * torch.exp(-((rows - 48.0) / 12.0).square())
    photo, _ = bar(s)
    assert evened(s, photo).min() < -0.01
    assert untorn(s, photo, FRUSTUM, turned(1.0)).min() >= float(s.min())


def test_a_camera_that_goes_far_sees_steps() -> None:
    s = card_s()
    assert untorn(s, PLAIN, FRUSTUM, turned(8.0, -8.0)) is s
    assert untorn(s, PLAIN, FRUSTUM, turned(0.0)) is s


def bar(s: Tensor) -> tuple[Tensor, Tensor]:
    """A photo of a dark bar that leans, and how far a relief along it is from a straight line, at most."""
    photo = torch.full((3, *SIZE), 220, dtype=torch.uint8)
    rows = torch.arange(SIZE[0])
    columns = 40 + rows // 3
    for offset in range(4):
        photo[:, rows, columns + offset] = 30
    inner = slice(8, -8)
    along, t = s[rows, columns + 2][inner].double(), rows[inner].double()
    fit = torch.stack([t, torch.ones_like(t)], 1)
    return photo, (along - fit @ torch.linalg.lstsq(fit, along).solution).abs().max()


def test_an_edge_along_which_the_relief_errs_stays_straight() -> None:
    rows = torch.arange(float(SIZE[0]))[:, None].expand(SIZE)
    even = 0.2 + 0.2 * rows / SIZE[0]
    dented = even - 0.06 * torch.exp(-((rows - 48.0) / 8.0).square())
    photo, before = bar(dented)
    _, after = bar(evened(dented, photo))
    assert after < 0.25 * before
    # What rises evenly does already, and where there is no edge nothing shall change.
    assert (evened(even, photo) - even).abs().max() < 2e-3
    torch.testing.assert_close(evened(dented, PLAIN), dented)


@pytest.fixture(scope="module")
def scene(open_photo: Callable[[Tensor], OpenedScene]) -> OpenedScene:
    photo = torch.full((3, *SIZE), 30, dtype=torch.uint8)
    photo[:, 30:66, 40:80] = torch.tensor([220, 20, 20], dtype=torch.uint8)[:, None, None]
    return open_photo(photo)


def torn(shown: PhotoScene, camera: Camera) -> bool:
    """Whether any ray sees what lies behind the front layer."""
    lines = [camera_lines(shown.camera, camera[index], shown.frustum.depth_range) for index in range(len(camera))]
    return max(float(intersect(shown.front.s, each).stretch.max()) for each in lines) > STRETCH_FADES


def test_videos_are_not_torn_but_compositions_and_maps_keep_their_steps(tmp_path: Path, scene: OpenedScene) -> None:
    np.save(tmp_path / "card.npy", card_s().numpy())
    given = Look(geometry=geometry_of_map(tmp_path / "card.npy"))
    look = Look(geometry=Geometry("teacher", DepthModel(lambda images: images[:, 0].float(), "disparity", {})))
    shot = Shot("orbit", frames=4)
    for going, shown_as, in_layers, expected in (
        (shot, look, False, False),
        (shot, look, True, True),
        (replace(shot, amplitude_deg=10.0), look, False, True),
        (shot, given, False, True),
    ):
        shown, camera, _ = staged_photo(scene, going, shown_as, in_layers=in_layers)
        assert torn(shown, camera) == expected
    for wish, composed, expected in (
        (Wish("viewer", geometry=look.geometry), False, False),
        (Wish("viewer", geometry=look.geometry), True, True),
        (Wish("mpi", geometry=look.geometry), False, True),
        (Wish("viewer", geometry=given.geometry), False, True),
    ):
        picture, vantage = wished_photo_scene(scene, wish, SIZE, composed=composed)
        assert picture is not None
        assert torn(picture, turned_cameras(scene.frustum, vantage, [(1.0, 0.0)], SIZE)) == expected


def test_views_that_are_not_torn_tell_the_disparity_of_the_network(scene: OpenedScene) -> None:
    """The card's outline is a step there, wherever it is seen."""
    look = Look(geometry=Geometry("teacher", DepthModel(lambda images: images[:, 0].float(), "disparity", {})))
    assert scene.photo is not None
    shown, camera, _ = staged_photo(scene, Shot("orbit", frames=4), look)
    view = shown.render(camera[1])
    on_card = (view.rgb[0, 0] > 160) & (view.rgb[0, 1] < 25)
    inside = -torch.nn.functional.max_pool2d(-on_card[None].float(), 9, 1, 4)[0] > 0
    outside = torch.nn.functional.max_pool2d(on_card[None].float(), 13, 1, 6)[0] < 1
    near, far = view.s[0][inside], view.s[0][outside]
    assert len(near) and near.min() - far.max() > 0.8 * (near.mean() - far.mean())
    known = photo_relief(scene, scene.photo, look.geometry)
    still, camera, _ = staged_photo(scene, Shot(view_deg=(0.0, 0.0)), look)
    assert (still.render(camera).s[0] - known).abs().max() < 0.01
