"""A thing cut out of a photo by its edges, carried as a card, and what closes the hole that it leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vq3dcli.editing.card import Card, card_of
from vq3dcli.editing.continued import continued
from vq3dcli.editing.cutout import Cutout, FirstView, cut_out
from vq3dcli.editing.placement import ComposedScene, Placement, Shadow, Standing, empty_field, placed_surface
from vq3dcli.rendering.cameras import Camera, canonical_camera, image_rays, z_depth_from_s
from vq3dcli.rendering.scene import SceneView, to_uint8
from vq3dcli.rendering.space import Frustum

SIDE_PX = 96
GREY, RED = (0.5, 0.55, 0.5), (0.8, 0.2, 0.15)
DISC = (52.0, 40.0, 20.0)  # row, column and radius


def grid() -> tuple[Tensor, Tensor]:
    return torch.meshgrid(torch.arange(float(SIDE_PX)), torch.arange(float(SIDE_PX)), indexing="ij")


def disc(by_px: float = 0.0) -> Tensor:
    y, x = grid()
    return ((y - DISC[0]).square() + (x - DISC[1]).square()).sqrt() < DISC[2] + by_px


def photo() -> FirstView:
    """A red disc on grey, whose relief is blurred and too large by some pixels, as a depth network's is."""
    noise = 0.04 * torch.randn(3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    rgb = torch.where(disc(), torch.tensor(RED)[:, None, None], torch.tensor(GREY)[:, None, None])
    y, x = grid()
    away = ((y - DISC[0]).square() + (x - DISC[1]).square()).sqrt() - DISC[2] - 4.0
    ground = 0.1 + 0.1 * y / SIDE_PX
    return FirstView((rgb + noise).clamp(0.0, 1.0), ground + 0.2 * torch.sigmoid(-away / 3.0))


@pytest.fixture(scope="module")
def view() -> FirstView:
    return photo()


@pytest.fixture(scope="module")
def cutout(view: FirstView) -> Cutout:
    return cut_out(view, Frustum(), (0.1, 0.25, 0.75, 0.85), of_photo=True)


def overlap(mask: Tensor, exact: Tensor) -> float:
    return float((mask & exact).sum() / (mask | exact).sum())


def test_the_cut_follows_the_photos_edge_and_not_the_reliefs(view: FirstView, cutout: Cutout) -> None:
    assert overlap(cutout.mask > 0.5, disc()) > 0.97
    by_relief = cut_out(view, Frustum(), (0.1, 0.25, 0.75, 0.85))
    assert overlap(by_relief.mask > 0.5, disc()) < 0.9
    assert bool(cutout.hole_mask[disc(2.0)].min() > 0.99)
    # It stands where its own lower edge is, at its own distance, not on what is behind it.
    row = 0.5 + 0.5 * float(cutout.frustum(torch.tensor([cutout.foot]))[0, 1])
    assert row == pytest.approx((DISC[0] + DISC[2]) / SIDE_PX, abs=0.02)
    front = z_depth_from_s(view.s[disc()]).median()
    assert cutout.foot[2] + cutout.frustum.radius == pytest.approx(float(front), rel=0.15)
    assert cutout.share == pytest.approx((2 * DISC[2] / SIDE_PX,) * 2, abs=0.03)


def test_a_thing_at_the_border_of_its_photo_is_cut_as_far_as_it_goes(view: FirstView) -> None:
    moved = FirstView(*(part.roll(30, -2) for part in view))
    cut = cut_out(moved, Frustum(), (0.1, 0.5, 0.75, 1.0), of_photo=True)
    assert bool((cut.mask[-1, 30:50] > 0.5).all())


def test_a_hole_in_a_thing_stays_where_the_relief_has_it_too() -> None:
    """A ring: what is seen through it is no part of it; a grey spot on a disc is."""
    y, x = grid()
    radius = ((y - 48.0).square() + (x - 48.0).square()).sqrt()
    ring = (radius < 28.0) & (radius > 12.0)
    rgb = torch.where(ring, torch.tensor(RED)[:, None, None], torch.tensor(GREY)[:, None, None])
    for relief, at_middle in ((ring, False), (radius < 28.0, True)):
        cut = cut_out(FirstView(rgb, 0.1 + 0.3 * relief), Frustum(), (0.1, 0.1, 0.9, 0.9), of_photo=True)
        assert (float(cut.mask[48, 48]) > 0.5) == at_middle
        assert float(cut.mask[48, 68]) > 0.5


def test_texture_tells_apart_what_has_the_same_colours() -> None:
    """A disc of the ground's colour, of which the relief shows only a part; a feature of the photo shows all of it."""
    relief = disc() & (grid()[0] < DISC[0])
    noise = torch.randn(3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    view = FirstView((torch.tensor(GREY)[:, None, None] + 0.04 * noise).clamp(0.0, 1.0), 0.1 + 0.3 * relief)
    texture = torch.stack([disc().float(), torch.zeros(SIDE_PX, SIDE_PX)])[:, ::2, ::2]
    found = [
        overlap(cut_out(view, Frustum(), (0.15, 0.3, 0.7, 0.8), of_photo=True, texture=features).mask > 0.5, disc())
        for features in (None, torch.zeros_like(texture), texture)
    ]
    assert found[0] == found[1] < 0.6
    assert found[2] > 0.8


def test_what_stands_out_is_kept_where_a_box_leaves_little_to_compare() -> None:
    """A red thing with a large grey part, as a car with its wheels, before grey, in a box that is nearly all."""
    y, x = grid()
    thing = (x > 8) & (x < 88) & (y > 16) & (y < 84)
    part = thing & (y > 56) & (x > 16) & (x < 80)
    red = (thing & ~part)[None]
    rgb = torch.where(red, torch.tensor(RED)[:, None, None], torch.tensor(GREY)[:, None, None])
    cut = cut_out(FirstView(rgb, 0.1 + 0.3 * thing), Frustum(), (0.0, 0.03, 1.0, 0.97), of_photo=True)
    assert overlap(cut.mask > 0.5, thing) > 0.9


def seen(card: Card, camera: Camera, placement: Placement | None = None) -> tuple[Tensor, Tensor]:
    z_depth, rgb = placed_surface(card, placement or Placement())(image_rays(camera))
    size = (camera.height_px, camera.width_px)
    return z_depth.reshape(size), rgb.T.reshape(3, *size)


def test_a_card_is_the_thing_without_a_fringe(view: FirstView, cutout: Cutout) -> None:
    card = card_of(cutout, view, view.rgb)
    z_depth, rgb = seen(card, canonical_camera(1, height_px=SIDE_PX, width_px=SIDE_PX))
    met = torch.isfinite(z_depth)
    assert overlap(met, disc()) > 0.97
    assert float((rgb[:, met] - torch.tensor(RED)[:, None]).abs().mean()) < 0.06
    grey = (rgb[:, met] - torch.tensor(GREY)[:, None]).abs().amax(0) < 0.15
    assert not bool(grey.any())
    # No wall goes from its edge to the background.
    assert float(z_depth[met].max() - z_depth[met].min()) <= 0.85 * cutout.width
    # Half as large at twice the distance, it covers a quarter of the width.
    far = Placement(cutout.foot, (0.0, 0.0, 3.0), scale=0.5)
    shown = torch.isfinite(seen(card, canonical_camera(1, height_px=SIDE_PX, width_px=SIDE_PX), far)[0])
    own_z, wide = cutout.foot[2] + 3.0, 2.0 * DISC[2]
    assert int(shown.any(0).sum()) == pytest.approx(wide * 0.5 * own_z / 6.0, abs=2.5)


def test_in_a_picture_surfaces_hide_and_are_hidden_and_cast_shadows() -> None:
    """A white wall whose left half is near; a blue plane between; a shadow on the wall."""
    camera, depth_range = canonical_camera(1, height_px=16, width_px=16), Frustum().depth_range
    s = torch.full((1, 16, 16), 0.1)
    s[..., :8] = 0.6
    wall = SceneView(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8), s, torch.zeros_like(s))
    blue = torch.tensor([0.0, 0.0, 1.0])

    def plane(rays: object) -> tuple[Tensor, Tensor]:
        return torch.full((256,), 3.0), blue.expand(256, 3)

    def look(*surfaces: Standing, shadows: tuple[Shadow, ...] = ()) -> SceneView:
        device = torch.device("cpu")
        return ComposedScene(empty_field, surfaces, depth_range, device, lambda _: wall, shadows).render(camera)

    assert torch.equal(look().rgb, wall.rgb)
    between = look(Standing(plane))
    assert torch.equal(between.rgb[0, :, 0, 0], torch.tensor([255, 255, 255], dtype=torch.uint8))
    assert torch.equal(between.rgb[0, :, 0, 15], to_uint8(blue))
    torch.testing.assert_close(z_depth_from_s(between.s[0, 0, 15]), torch.tensor(3.0))
    # What may lie a little behind what the picture shows does not vanish into it.
    assert torch.equal(look(Standing(plane, give=2.0)).rgb[0, :, 0, 0], to_uint8(blue))
    wall_z = float(z_depth_from_s(torch.tensor(0.1)))
    dark = look(shadows=(Shadow((1.0, 0.0, wall_z - 3.0), 0.5, 0.5),)).rgb[0, 0, 8].float()
    assert dark[0] == 255
    assert 100 < float(dark[8:].min()) < 200


def test_stripes_go_on_behind_what_was_taken_away() -> None:
    """Across a hole of 24 pixels: a mean of what is around would be grey."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    stripes = ((x // 4) % 2).float().expand(3, 64, 80).clone()
    stripes[:, :20] = torch.tensor([0.2, 0.4, 0.9])[:, None, None]
    hole = (y >= 12) & (y < 40) & (x >= 28) & (x < 52)
    damaged = torch.where(hole, 0.7, stripes)
    s = 0.1 + 0.3 * (y >= 20).float()
    whole = continued(damaged, hole, s)
    assert torch.equal(whole[:, ~hole], stripes[:, ~hole])
    wrong = (whole - stripes).abs().mean(0) > 0.25
    assert float(wrong[hole].float().mean()) < 0.15
    assert float((whole[:, 12:19, 30:50] - stripes[:, 12:19, 30:50]).abs().mean()) < 0.05
    assert torch.equal(whole, continued(damaged, hole, s))


def test_a_hole_that_leaves_nothing_to_copy_is_filled_smoothly() -> None:
    rgb = torch.full((3, 20, 20), 0.25)
    hole = torch.zeros(20, 20, dtype=torch.bool)
    hole[2:18, 2:18] = True
    torch.testing.assert_close(continued(torch.where(hole, 1.0, rgb), hole, torch.zeros(20, 20)), rgb)
    assert torch.equal(continued(rgb, torch.zeros_like(hole), torch.zeros(20, 20)), rgb)
    assert math.isfinite(float(continued(rgb, torch.ones_like(hole), torch.zeros(20, 20)).sum()))
