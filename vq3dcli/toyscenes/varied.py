"""Varied toy scenes: the same surfaces as plain ones, drawn from a wide distribution.

What is learnt from plain scenes fails on photos where these differ: several objects, subjects that the frame cuts,
cameras that look steeply down or are not level, close-ups before something blurred, textures that no procedure draws.
So all of that is drawn here (domain randomisation: Tobin et al., 2017). With a bank of photos most surfaces show a
patch of one.

Legend: n scenes, k objects a scene.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS
from vq3dcli.toyscenes.layout import ABSENT, Draws, ToyObjects, ToyScenes, measures, towards_light
from vq3dcli.toyscenes.photos import NUM_PATCH_DRAWS, PhotoBank, PhotoSurfaces, make_patch
from vq3dcli.toyscenes.places import Bodies, Setting, View, place_main, place_others, place_wall
from vq3dcli.toyscenes.shapes import NUM_DIMENSIONS, SHAPES
from vq3dcli.toyscenes.textures import NUM_TEXTURE_DRAWS, Colour, between, cos_sin, make_texture, rgb_from_hsv

_PHOTO_SHARE = 0.75


def sample_varied_scenes(
    index: Tensor, *, seed: int, purpose: str = "train", photos: PhotoBank | None = None
) -> ToyScenes:
    """Varied scenes number `index` of (seed, purpose): others than the plain ones of these, whatever the purpose.

    Surfaces show photos, or textures and skies alone.
    """
    draws = Draws(index, seed, f"toyscenes-varied/{purpose}")
    view = _draw_view(draws)
    setting = _draw_setting(draws, with_backdrops=photos is not None)
    (closeness,) = draws.scenes("close-up", 1)
    close_up = closeness < 0.16
    bodies = _draw_bodies(draws, setting, close_up)
    centre_x, centre_y, centre_z, ground_y = place_main(draws, view, setting, bodies, close_up)
    wall_z, wall_turn = place_wall(draws, view, bodies, (centre_x, centre_z), setting)
    centre, present = place_others(
        draws, view, setting, bodies, (centre_x, centre_y, centre_z), ground_y, wall_z, wall_turn
    )
    zenith, horizon = _draw_sky(draws)
    surfaces = None if photos is None else _draw_photos(draws, photos, setting)
    if surfaces is not None:
        backdrop = surfaces.planes[:, 2]
        seen = surfaces.bank.mean[backdrop[:, 0].long().clamp(min=0)] * backdrop[:, 6:]
        horizon = torch.where(setting.has_backdrop[:, None], seen.clamp(max=1.0), horizon)
    azimuth, sin_height, ambient, overcast, haze = draws.scenes("light", 5)
    # Behind a wall there is no light.
    reach_rad = torch.where(setting.has_wall, 1.3, 2.6)
    diffuse = overcast < 0.25
    return ToyScenes(
        objects=_objects(draws, bodies, centre, present),
        elevation=view.elevation,
        roll=view.roll,
        has_ground=setting.has_ground,
        ground_y=ground_y,
        ground=_surface(draws, "ground", frequency=(0.3, 1.4)),
        has_wall=setting.has_wall,
        wall_z_depth=wall_z + CAMERA_RADIUS,
        wall_turn=wall_turn,
        wall=_surface(draws, "wall", frequency=(0.2, 1.2)),
        zenith=zenith,
        horizon=horizon,
        haze_m=between(haze * haze, 6.0, 60.0),
        light=towards_light((2.0 * azimuth - 1.0) * reach_rad, between(sin_height, 0.3, 0.95)),
        ambient=torch.where(diffuse, between(ambient, 0.75, 0.92), between(ambient, 0.35, 0.65)),
        photos=surfaces,
    )


def _draw_view(draws: Draws) -> View:
    kind, angle, roll = draws.scenes("view", 3)
    degrees = torch.where(kind < 0.35, between(angle, -3.0, 10.0), between(angle, 8.0, 28.0))
    degrees = torch.where(kind > 0.8, between(angle, 25.0, 45.0), degrees)
    lean = 2.0 * roll - 1.0  # most photos are nearly level
    return View(cos_sin(degrees * (math.pi / 180.0)), cos_sin(lean * lean.abs() * math.radians(6.0)))


def _draw_setting(draws: Draws, *, with_backdrops: bool) -> Setting:
    ground, behind = draws.scenes("setting", 2)
    has_ground = ground < 0.8
    has_wall = behind < torch.where(has_ground, 0.48, 0.42)
    backdrop = (behind > torch.where(has_ground, 0.74, 0.5)) & ~has_wall
    return Setting(has_ground, has_wall, backdrop if with_backdrops else torch.zeros_like(backdrop))


def _draw_bodies(draws: Draws, setting: Setting, close_up: Tensor) -> Bodies:
    kind, scale, pose, lean, yaw, *size = draws.objects("object", 5 + NUM_DIMENSIONS)
    class_index = (kind * len(SHAPES)).to(torch.int64)
    # As many small ones as large ones: half of the range below 1.
    scale = torch.where(scale < 0.5, between(2.0 * scale, 0.5, 1.0), between(2.0 * scale - 1.0, 1.0, 1.8))
    of_main = torch.where(close_up, between(scale[:, 0], 0.9, 1.3), scale[:, 0].clamp(min=0.65))
    scale = torch.cat([of_main[:, None], scale[:, 1:]], 1)
    dimensions, extent, max_yaw_rad = measures(class_index, size, scale)
    lying = torch.where(lean < 0.5, -0.5 * math.pi, 0.5 * math.pi) * (pose < 0.2)
    floating = torch.where(pose < 0.7, (2.0 * lean - 1.0) * math.pi, 0.0)
    angle = torch.where(setting.has_ground[:, None], lying, floating)
    tilt, turn = cos_sin(angle), cos_sin((2.0 * yaw - 1.0) * max_yaw_rad)
    half_x, height, half_z = extent.unbind(-1)
    cos, sin = tilt[..., 0].abs(), tilt[..., 1].abs()
    across, up = cos * half_x + sin * (0.5 * height), sin * half_x + cos * (0.5 * height)
    return Bodies(class_index, dimensions, extent, turn, tilt, across, up, half_z)


def _objects(draws: Draws, bodies: Bodies, centre: Tensor, present: Tensor) -> ToyObjects:
    half = 0.5 * bodies.extent[..., 1]
    cos, sin = bodies.turn.unbind(-1)
    lean_cos, lean_sin = bodies.tilt.unbind(-1)
    # The foot is half of the height away from the centre, along the object's own axis.
    foot = centre + torch.stack([lean_sin * cos * half, lean_cos * half, lean_sin * sin * half], -1)
    hue, saturation, value = draws.objects("accent", 3)
    return ToyObjects(
        class_index=torch.where(present, bodies.class_index, ABSENT),
        dimensions=bodies.dimensions,
        extent=bodies.extent,
        foot=foot,
        turn=bodies.turn,
        tilt=bodies.tilt,
        texture=_texture(draws.objects("texture", 4 + NUM_TEXTURE_DRAWS), frequency=(0.8, 4.0)),
        accent=rgb_from_hsv(hue, saturation, between(value, 0.25, 1.0)),
    )


def _surface(draws: Draws, name: str, *, frequency: tuple[float, float]) -> Tensor:
    return _texture(draws.scenes(f"{name} texture", 4 + NUM_TEXTURE_DRAWS), frequency=frequency)


def _texture(numbers: list[Tensor], *, frequency: tuple[float, float]) -> Tensor:
    """Any colours: pale ones and strong ones, dark ones and bright ones."""
    hue, saturation, value, shift, *pattern = numbers
    colour: Colour = (hue, saturation * between(shift, 0.4, 1.0), between(value, 0.35, 1.0))
    return make_texture(pattern, colour, hue_shift=between(shift, -0.3, 0.3), plain=0.25, frequency=frequency)


def _draw_sky(draws: Draws) -> tuple[Tensor, Tensor]:
    """Colours above and at the horizon `[n, 3]`: blue, grey, of an evening, or of a studio."""
    kind, hue, saturation, value, pale, bright = draws.scenes("sky", 6)
    tone = torch.where(kind < 0.6, between(hue, 0.53, 0.65), hue)
    zenith = rgb_from_hsv(tone, saturation * 0.8, between(value, 0.35, 1.0))
    near = torch.where(kind < 0.3, hue, tone)
    return zenith, rgb_from_hsv(near, pale * 0.35, between(bright, 0.6, 1.0))


def _draw_photos(draws: Draws, bank: PhotoBank, setting: Setting) -> PhotoSurfaces:
    on_objects = [draws.objects(f"photos of {name}", NUM_PATCH_DRAWS) for name in ("objects", "accents")]
    ground, wall, backdrop = (
        draws.scenes(f"photo of the {name}", NUM_PATCH_DRAWS) for name in ("ground", "wall", "backdrop")
    )
    shown, share = setting.has_backdrop.float(), _PHOTO_SHARE
    objects = [make_patch(bank, each, share=share, period=(0.7, 6.0), max_turn_rad=math.pi) for each in on_objects]
    planes = (
        make_patch(bank, ground, share=share, period=(2.0, 14.0), max_turn_rad=math.pi),
        make_patch(bank, wall, share=share, period=(2.5, 14.0), max_turn_rad=0.3),
        make_patch(bank, backdrop, share=shown, period=(0.6, 4.0), max_turn_rad=0.15),
    )
    return PhotoSurfaces(bank, torch.stack(objects, -2), torch.stack(planes, 1))
