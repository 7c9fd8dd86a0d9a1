"""Cutting a ball out of a room in closed form, and closing the hole that it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.editing.cutout import Cutout, FirstView, cut_out, point_at
from vq3dcli.editing.placement import Placement, carved, kept, merged, placed, render_composed
from vq3dcli.editing.relief import RELAXATIONS, fill_holes
from vq3dcli.errors import DataError
from vq3dcli.rendering.cameras import canonical_camera, image_rays, pivot_camera
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import Frustum

SIDE_PX = 48
SAMPLES = 128
CENTRE, RADIUS = (0.15, 0.35, 0.0), 0.45


def empty_room(points: Tensor) -> tuple[Tensor, Tensor]:
    """A blue ground that ends at a brown wall."""
    ground, wall = points[..., 1] > 0.8, points[..., 2] > 2.5
    density = 200.0 * (ground | wall)
    blue, brown = points.new_tensor([0.2, 0.3, 0.7]), points.new_tensor([0.5, 0.4, 0.2])
    return density, torch.where(ground[..., None], blue, brown)


def ball(points: Tensor) -> tuple[Tensor, Tensor]:
    inside = (points - points.new_tensor(CENTRE)).square().sum(-1) < RADIUS**2
    return 200.0 * inside, points.new_tensor([0.9, 0.1, 0.1]).expand_as(points)


room = merged(empty_room, [ball])


def look(field: Field, yaw_rad: float = 0.0) -> FirstView:
    camera = pivot_camera(torch.tensor([yaw_rad]), torch.tensor([0.0]), height_px=SIDE_PX, width_px=SIDE_PX)
    rgb, s, _ = render_composed(field, image_rays(camera), SAMPLES)
    return FirstView(rgb[0].T.reshape(3, SIDE_PX, SIDE_PX), s.reshape(SIDE_PX, SIDE_PX))


@pytest.fixture(scope="module")
def cutout() -> Cutout:
    return cut_out(look(room), Frustum())


def is_ball(view: FirstView) -> Tensor:
    return (view.rgb[0] > 0.6) & (view.rgb[2] < 0.4)


def test_a_plane_is_continued_exactly() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    plane = 0.1 + 0.004 * x + 0.01 * y
    known = torch.ones(48, 48, dtype=torch.bool)
    known[12:40, 9:30] = False
    holed = torch.where(known, plane, 7.0)
    torch.testing.assert_close(
        fill_holes(holed[None], known.float(), relaxations=RELAXATIONS)[0], plane, atol=2e-3, rtol=0
    )
    assert torch.equal(fill_holes(plane[None], torch.ones(48, 48), relaxations=RELAXATIONS)[0], plane)


def test_the_mask_is_the_ball(cutout: Cutout) -> None:
    mask, exact = cutout.mask > 0.5, is_ball(look(room))
    assert (mask & exact).sum() / (mask | exact).sum() > 0.9
    assert cutout.width == pytest.approx(2 * RADIUS, rel=0.15)
    assert cutout.foot[0] == pytest.approx(CENTRE[0], abs=0.06)
    assert cutout.foot[1] == pytest.approx(0.8, abs=0.12)
    centre = torch.tensor([CENTRE, (CENTRE[0], CENTRE[1], CENTRE[2] - 0.3), (-0.6, 0.3, 0.0), (0.15, 0.35, 2.6)])
    torch.testing.assert_close(cutout.membership(centre)[1:], torch.tensor([1.0, 0.0, 0.0]))


def test_other_things_in_the_box_than_the_nearest_by_their_distance() -> None:
    """The box holds both; between these distances is only the wall."""
    cutout = cut_out(look(room), Frustum(), (0.2, 0.2, 0.8, 0.6), (5.0, 6.5))
    mask, exact = cutout.mask > 0.5, is_ball(look(room))
    assert mask.sum() > 60
    assert (mask & exact).sum() < 0.02 * mask.sum()


def test_nothing_in_the_box() -> None:
    with pytest.raises(DataError, match="nothing stands out"):
        cut_out(look(empty_room), Frustum())
    with pytest.raises(DataError, match="nothing stands out"):
        cut_out(look(room), Frustum(), (0.0, 0.0, 0.2, 0.3))


@pytest.mark.parametrize("yaw_rad", [0.0, 0.25])
def test_a_deleted_ball_leaves_the_room(cutout: Cutout, yaw_rad: float) -> None:
    left = look(merged(carved(room, cutout.hole()), [cutout.fill()]), yaw_rad)
    before, expected = look(room, yaw_rad), look(empty_room, yaw_rad)
    assert is_ball(before).sum() > 80
    # A few pixels where it touched the ground may stay.
    assert is_ball(left).sum() < 0.1 * is_ball(before).sum()
    # What the hole shows is guessed from around it.
    assert (left.rgb - expected.rgb).abs().mean() < 0.03
    assert (left.s - expected.s).abs().mean() < 0.01


def test_a_moved_ball_is_seen_where_it_went(cutout: Cutout) -> None:
    hollow = merged(carved(room, cutout.hole()), [cutout.fill()])
    target = (cutout.foot[0] - 0.7, cutout.foot[1], cutout.foot[2] + 0.8)
    there = placed(
        kept(room, cutout.membership), Placement(cutout.foot, target), lower=cutout.lower, upper=cutout.upper
    )
    shown = is_ball(look(merged(hollow, [there])))
    moved = placed(ball, Placement(at=(-0.7, 0.0, 0.8)), lower=(-0.5, -0.5, -0.6), upper=(0.8, 0.9, 0.6))
    exact = is_ball(look(merged(empty_room, [moved])))
    assert (shown & exact).sum() / (shown | exact).sum() > 0.75


def test_a_point_of_the_first_view() -> None:
    camera = canonical_camera(1, height_px=8, width_px=8)
    rays = image_rays(camera)
    expected = rays.origin[0, 10] + 2.5 * rays.direction[0, 10]
    torch.testing.assert_close(torch.tensor(point_at(2.5 / 8, 1.5 / 8, 2.5, Frustum())), expected)
