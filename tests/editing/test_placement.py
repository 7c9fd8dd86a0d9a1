"""Fields and surfaces in one scene, against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vq3dcli.editing.placement import (
    Hits,
    Placement,
    Shadow,
    carved,
    darkened,
    empty_field,
    kept,
    merged,
    nearest_hits,
    placed,
    placed_surface,
    render_composed,
)
from vq3dcli.rendering.cameras import (
    FAR,
    NEAR,
    Camera,
    Rays,
    canonical_camera,
    image_rays,
    pivot_camera,
    s_from_z_depth,
)
from vq3dcli.rendering.render import Field, render

RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9)
SAMPLES = 256


def ball(colour: tuple[float, float, float], radius: float = 0.5, density: float = 1e4) -> Field:
    """A ball around the origin of its own coordinates."""

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        inside = (points.square().sum(-1) < radius**2).float()
        return inside * density, points.new_tensor(colour).expand_as(points)

    return field


def in_scene(field: Field, at: tuple[float, float, float], scale: float = 1.0) -> Field:
    return placed(field, Placement(at=at, scale=scale), lower=(-0.5, -0.5, -0.5), upper=(0.5, 0.5, 0.5))


def room(points: Tensor) -> tuple[Tensor, Tensor]:
    """Some haze and a wall at z = 2, with colours that differ everywhere."""
    density = 0.05 + 40.0 * (points[..., 2] > 2.0).float()
    return density, (0.5 + 0.4 * torch.sin(3.0 * points)).clamp(0.0, 1.0)


def first_ball(camera: Camera, balls: list[tuple[tuple[float, float, float], float]]) -> tuple[Tensor, Tensor]:
    """Which ball each ray meets first (-1: none) and at which z_depth, by the quadratic equation; rim rays are -2."""
    rays = image_rays(camera)
    nearest = torch.full(rays.origin.shape[:-1], math.inf)
    which = torch.full(nearest.shape, -1)
    for number, (centre, radius) in enumerate(balls):
        away = rays.origin - torch.tensor(centre)
        a = rays.direction.square().sum(-1)
        b = (away * rays.direction).sum(-1)
        root = b.square() - a * (away.square().sum(-1) - radius**2)
        z = (-b - root.clamp(min=0.0).sqrt()) / a
        first = (root > 0.0) & (z < nearest)
        nearest, which = torch.where(first, z, nearest), torch.where(first, number, which)
        # A ray through the rim spends less than a sample's interval inside.
        which = torch.where((root.abs() < 0.02) & (z <= nearest), -2, which)
    return which, nearest


# --- placements ------------------------------------------------------------------------------------------------------


def test_a_placement_and_back() -> None:
    placement = Placement((0.1, -0.2, 0.3), (1.0, 2.0, 3.0), 1.7, 0.4, -0.3, 0.2, 1.5, 0.75)
    points = torch.randn(50, 3)
    torch.testing.assert_close(placement.to_object(placement.to_scene(points)), points, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(placement.to_scene(torch.tensor([0.1, -0.2, 0.3])), torch.tensor([1.0, 2.0, 3.0]))
    rotation = placement.rotation(points)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("turn", "before", "after"),
    [
        ({"yaw_rad": math.pi / 2}, (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)),
        ({"pitch_rad": math.pi / 2}, (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
        ({"roll_rad": math.pi / 2}, (0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    ],
)
def test_turns_go_the_way_they_say(
    turn: dict[str, float], before: tuple[float, float, float], after: tuple[float, float, float]
) -> None:
    moved = Placement(**turn).to_scene(torch.tensor(before))  # type: ignore[arg-type]
    torch.testing.assert_close(moved, torch.tensor(after), atol=1e-6, rtol=0)


def test_a_thing_is_turned_about_the_vertical_axis_first() -> None:
    """Its face, turned to the right, stays there as the top leans back, and goes down as it rolls clockwise."""
    turned = Placement(yaw_rad=0.5 * math.pi, pitch_rad=0.5 * math.pi)
    torch.testing.assert_close(turned.to_scene(torch.tensor([0.0, 0.0, -1.0])), torch.tensor([1.0, 0.0, 0.0]))
    rolled = Placement(yaw_rad=0.5 * math.pi, pitch_rad=0.5 * math.pi, roll_rad=0.5 * math.pi)
    torch.testing.assert_close(rolled.to_scene(torch.tensor([0.0, 0.0, -1.0])), torch.tensor([0.0, 1.0, 0.0]))


def test_a_shadow_reaches_half_as_far_upwards() -> None:
    left = Shadow((0.0, 0.5, 0.0), 0.4, 0.5).left(torch.tensor([[0.4, 0.5, 0.0], [0.0, 0.3, 0.0], [0.0, 0.5, 0.4]]))
    torch.testing.assert_close(left, torch.full((3,), 1.0 - 0.5 * math.exp(-0.5)))


def test_things_keep_their_shape_between_photos_of_different_shapes() -> None:
    """What is as wide as high in one photo is so in the other; a photo of aspect A stretches y by A."""
    placement = Placement(scale=2.0, yaw_rad=0.3, object_aspect=1.5, scene_aspect=0.75)
    corner, right, top = torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, -1.5, 0.0])
    shown = [placement.to_scene(point) / torch.tensor([1.0, 0.75, 1.0]) for point in (corner, right, top)]
    for point in shown[1:]:
        torch.testing.assert_close((point - shown[0]).norm(), torch.tensor(2.0))


def test_rays_keep_their_parameter() -> None:
    placement = Placement((0.1, 0.0, 0.3), (0.5, 0.2, 1.0), 0.6, 0.4, 0.1, object_aspect=1.5, scene_aspect=0.7)
    rays = image_rays(pivot_camera(torch.tensor([0.2]), torch.tensor([0.1]), height_px=4, width_px=5))
    own = placement.rays_to_object(rays)
    z = 2.7
    torch.testing.assert_close(
        own.origin + z * own.direction, placement.to_object(rays.origin + z * rays.direction), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_above_zero(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Placement(scale=scale)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.8])
def test_a_haze_is_as_opaque_at_any_scale(scale: float) -> None:
    """Through the middle of a ball of density sigma and radius r go exp(-2 sigma r) of the light, however placed."""
    field = in_scene(ball(RED, density=2.0), (0.0, 0.0, 0.0), scale)
    rays = Rays(torch.tensor([[[0.0, 0.0, -3.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]]))
    rgb, _, _ = render(field, rays, 2048, opaque_end=False)
    assert float(rgb[0, 0, 0]) == pytest.approx(RED[0] * (1.0 - math.exp(-2.0)), rel=0.01)


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [room, ball(GREEN)])
def test_an_empty_object_changes_not_a_bit(scene: Field) -> None:
    rays = image_rays(pivot_camera(torch.tensor([0.2]), torch.tensor([0.1]), height_px=12, width_px=12))
    plain = render(scene, rays, 40)
    nothing = placed(empty_field, Placement(at=(0.0, 0.0, 0.3)), lower=(-1.0, -1.0, -1.0), upper=(1.0, 1.0, 1.0))
    for objects in ([], [nothing], [nothing, nothing]):
        composed = render_composed(merged(scene, objects), rays, 40)
        assert all(torch.equal(a, b) for a, b in zip(plain, composed, strict=True))


@pytest.mark.parametrize("yaw_rad", [-0.35, 0.0, 0.35])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_balls_occlude_each_other_as_computed(yaw_rad: float, swapped: bool) -> None:
    """From each side: the nearer one hides the other, whichever was inserted."""
    camera = pivot_camera(torch.tensor([yaw_rad]), torch.tensor([0.1]), height_px=28, width_px=28)
    places = [((0.0, -0.1, -0.4), 0.5), ((0.1, 0.6, 0.4), 0.45)]
    red, green = in_scene(ball(RED), places[0][0]), in_scene(ball(GREEN), places[1][0], 0.9)
    field = merged(green, [red]) if swapped else merged(red, [green])
    rgb, s, _ = render(field, image_rays(camera), SAMPLES, opaque_end=False)
    which, z_depth = first_ball(camera, places)
    colours = torch.tensor([RED, GREEN, (0.0, 0.0, 0.0)])
    sure = which > -2
    assert min((which == 0).sum(), (which == 1).sum()) > 20
    torch.testing.assert_close(rgb[sure], colours[which[sure]], atol=0.02, rtol=0)
    hit = which >= 0
    assert (s - s_from_z_depth(z_depth))[hit].abs().max() < 1.5 / SAMPLES


def test_an_object_hides_the_scene_and_the_scene_hides_it() -> None:
    rays = image_rays(canonical_camera(1, height_px=9, width_px=9))
    middle = 40
    before, behind = in_scene(ball(RED), (0.0, 0.0, 0.0)), in_scene(ball(RED), (0.0, 0.0, 3.0))
    plain, _, _ = render(room, rays, SAMPLES)
    shown, _, _ = render_composed(merged(room, [before]), rays, SAMPLES)
    hidden, _, _ = render_composed(merged(room, [behind]), rays, SAMPLES)
    # 1.15 metres of haze of density 0.05 lie in front of the ball's nearest point, from near at z = -1.65.
    clear = math.exp(-0.05 * 1.15)
    assert float(shown[0, middle, 0] - RED[0] * clear) == pytest.approx(0.0, abs=0.06)
    assert abs(float(shown[0, middle, 1]) - RED[1]) < 0.06
    torch.testing.assert_close(hidden, plain, atol=1e-3, rtol=0)


def test_the_order_of_objects_does_not_matter() -> None:
    rays = image_rays(pivot_camera(torch.tensor([-0.2]), torch.tensor([0.1]), height_px=16, width_px=16))
    objects = [
        in_scene(ball(RED, density=3.0), (-0.2, 0.0, -0.3)),
        in_scene(ball(GREEN, density=9.0), (0.1, 0.1, 0.1), 1.2),
        in_scene(ball(BLUE), (0.2, -0.2, 0.4)),
    ]
    first = render_composed(merged(room, objects), rays, 64)
    for order in itertools.permutations(objects):
        other = render_composed(merged(room, order), rays, 64)
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_media_in_one_place_mix_by_their_densities() -> None:
    points = torch.zeros(1, 1, 3)
    density, rgb = merged(ball(RED, density=1.0), [ball(GREEN, density=3.0)])(points)
    assert float(density) == 4.0
    torch.testing.assert_close(rgb[0, 0], 0.25 * torch.tensor(RED) + 0.75 * torch.tensor(GREEN))


def test_what_is_kept_and_what_is_carved_add_up_to_the_whole() -> None:
    points = torch.randn(1, 200, 3)

    def left(at: Tensor) -> Tensor:
        return torch.sigmoid(-5.0 * at[:, 0])

    density, rgb = room(points)
    inside, outside = kept(room, left)(points), carved(room, left)(points)
    torch.testing.assert_close(inside[0] + outside[0], density)
    assert torch.equal(inside[1], rgb)
    both, mixed = merged(carved(room, left), [kept(room, left)])(points)
    torch.testing.assert_close(both, density)
    torch.testing.assert_close(mixed, rgb, atol=1e-6, rtol=0)


def test_a_shadow_darkens_where_it_lies_and_moves_nothing() -> None:
    points = torch.tensor([[[0.0, 0.5, 0.0], [0.0, 0.5, 5.0]]])
    density, rgb = room(points)
    dark_density, dark = darkened(room, Shadow((0.0, 0.5, 0.0), 0.4, 0.5))(points)
    assert torch.equal(density, dark_density)
    torch.testing.assert_close(dark[0, 0], 0.5 * rgb[0, 0])
    torch.testing.assert_close(dark[0, 1], rgb[0, 1])


# --- surfaces --------------------------------------------------------------------------------------------------------


def plane(rays: Rays) -> tuple[Tensor, Tensor]:
    """The blue plane z = 0 of its own coordinates, left of x = 0."""
    z = -rays.origin[0, :, 2] / rays.direction[0, :, 2]
    x = rays.origin[0, :, 0] + z * rays.direction[0, :, 0]
    return torch.where((x < 0.0) & (z > 0.0), z, math.inf), z.new_tensor(BLUE).expand(len(z), 3)


def test_a_surface_ends_what_a_ray_sees_exactly_there() -> None:
    """Haze of density 0.3 in front of a plane that lies inside a sample's interval."""

    def haze(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(points[..., 0], 0.3), points.new_tensor(GREEN).expand_as(points)

    rays = image_rays(canonical_camera(1, height_px=6, width_px=6))
    surface = placed_surface(plane, Placement(at=(0.0, 0.0, 0.2345)))
    hits = nearest_hits([surface], [rays])
    met = torch.isfinite(hits.z_depth[:, 0])
    assert met.sum() == 18
    torch.testing.assert_close(hits.z_depth[met, 0], torch.full((18,), 3.2345))
    rgb, _, _ = render_composed(haze, rays, 16, hits)
    clear = torch.exp(-0.3 * (3.2345 - NEAR) * rays.direction[0].square().sum(-1).sqrt())[:, None]
    expected = (1.0 - clear) * torch.tensor(GREEN) + clear * torch.tensor(BLUE)
    torch.testing.assert_close(rgb[0, met], expected[met], atol=1e-5, rtol=1e-5)
    plain, _, _ = render(haze, rays, 16)
    torch.testing.assert_close(rgb[0, ~met], plain[0, ~met])


def test_surfaces_and_fields_occlude_each_other() -> None:
    rays = image_rays(canonical_camera(1, height_px=8, width_px=8))
    left = rays.direction[0, :, 0] < 0.0
    scene = merged(room, [in_scene(ball(RED), (0.0, 0.0, 0.0), 2.0)])
    in_front = nearest_hits([placed_surface(plane, Placement(at=(0.0, 0.0, -1.2)))], [rays])
    behind = nearest_hits([placed_surface(plane, Placement(at=(0.0, 0.0, 2.5)))], [rays])
    rgb, s, _ = render_composed(scene, rays, SAMPLES, in_front)
    torch.testing.assert_close(rgb[0, left], torch.tensor(BLUE).expand(32, 3), atol=0.05, rtol=0)
    torch.testing.assert_close(
        s[0, left], torch.full((32,), float(s_from_z_depth(torch.tensor(1.8)))), atol=0.02, rtol=0
    )
    plain, _, _ = render(scene, rays, SAMPLES)
    hidden, _, _ = render_composed(scene, rays, SAMPLES, behind)
    torch.testing.assert_close(hidden, plain, atol=1e-3, rtol=0)


def test_the_nearer_of_two_surfaces_is_seen_whatever_their_order() -> None:
    rays = image_rays(canonical_camera(1, height_px=4, width_px=4))

    def red_plane(of: Rays) -> tuple[Tensor, Tensor]:
        z, rgb = plane(of)
        return z, rgb.new_tensor(RED).expand_as(rgb)

    near, far = placed_surface(plane, Placement(at=(0, 0, -0.5))), placed_surface(red_plane, Placement(at=(0, 0, 0.5)))
    a, b = nearest_hits([near, far], [rays]), nearest_hits([far, near], [rays])
    met = torch.isfinite(a.z_depth)
    assert torch.equal(a.z_depth, b.z_depth)
    assert torch.equal(a.rgb[met], b.rgb[met])
    torch.testing.assert_close(a.rgb[met], torch.tensor(BLUE).expand(8, 3))


def test_a_pixel_is_the_mean_of_its_rays_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = image_rays(canonical_camera(1, height_px=4, width_px=4))
    never, always = torch.full((16,), math.inf), torch.full((16,), 2.0)
    blue = torch.tensor(BLUE).expand(16, 3)
    half = Hits(torch.stack([never, always], 1), torch.stack([blue, blue], 1))
    whole = Hits(always[:, None], blue[:, None])
    rgb, _, _ = render_composed(room, rays, 64, half)
    plain, covered = render(room, rays, 64)[0], render_composed(room, rays, 64, whole)[0]
    torch.testing.assert_close(rgb, 0.5 * (plain + covered), atol=1e-5, rtol=0)
    monkeypatch.setattr("vq3dcli.editing.placement._RAYS_AT_ONCE", 3)
    assert torch.equal(rgb, render_composed(room, rays, 64, half)[0])


@pytest.mark.parametrize("z_depth", [0.5 * NEAR, 2.0 * FAR, math.inf])
def test_surfaces_outside_near_and_far_are_not_seen(z_depth: float) -> None:
    rays = image_rays(canonical_camera(1, height_px=3, width_px=3))
    hits = Hits(torch.full((9, 1), z_depth), torch.zeros(9, 1, 3))
    for a, b in zip(render_composed(room, rays, 20, hits), render(room, rays, 20), strict=True):
        assert torch.equal(a, b)
