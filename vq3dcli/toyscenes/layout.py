"""What a toy scene consists of, and how the parameters of plain ones are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vq3dcli.seeding import uniform
from vq3dcli.toyscenes.photos import PhotoSurfaces
from vq3dcli.toyscenes.shapes import NUM_DIMENSIONS, SHAPES
from vq3dcli.toyscenes.textures import NUM_TEXTURE_DRAWS, between, cos_sin, make_texture, rgb_from_hsv

ELEVATION_RAD = (0.15, 0.40)  # 9 to 23 degrees
CLASS_NAMES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)
ABSENT = -1  # class of an object that a scene does not have
MAX_OBJECTS = 4  # of a scene
_HAZE_M = 9.0


@dataclass(frozen=True)
class ToyObjects:
    """Up to k objects of n scenes each; the first is the main one, and is always there."""

    class_index: Tensor  # index into CLASS_NAMES, or ABSENT, int64 `[n, k]`
    dimensions: Tensor  # see `Shape`; zero where it has fewer `[n, k, NUM_DIMENSIONS]`
    extent: Tensor  # half width x, height, half width z of the object's box in its own frame `[n, k, 3]`
    foot: Tensor  # where the middle of its base is, in the scene's frame `[n, k, 3]`
    turn: Tensor  # cosine and sine of its yaw `[n, k, 2]`
    tilt: Tensor  # cosine and sine of the angle by which it leans over to its own left, before the yaw `[n, k, 2]`
    texture: Tensor  # of its first part `[n, k, 17]`, see `make_texture`
    accent: Tensor  # colour of its second part `[n, k, 3]`

    def select(self, index: Tensor | tuple[Tensor, ...]) -> ToyObjects:
        """The objects at positions of the leading axes."""
        return _selected(self, index)


@dataclass(frozen=True)
class ToyScenes:
    """Parameters of n scenes, in a frame whose ground is level. Lengths in metres, colours in [0, 1].

    The canonical camera looks down at the subject, as one who photographs an object does. More of a picture then has a
    disparity of its own: with level cameras, sky and walls, tied in rank, were half of it.
    """

    objects: ToyObjects  # k of each scene
    elevation: Tensor  # cosine and sine of the angle by which the canonical camera looks down `[n, 2]`
    roll: Tensor  # cosine and sine of the angle by which it is turned around its axis `[n, 2]`
    has_ground: Tensor  # bool `[n]`
    ground_y: Tensor  # height of the ground, y down `[n]`
    ground: Tensor  # texture of the ground `[n, 17]`
    has_wall: Tensor  # bool `[n]`; scenes without a wall show the sky
    wall_z_depth: Tensor  # from the canonical camera, at the middle of its view `[n]`
    wall_turn: Tensor  # cosine and sine of its yaw `[n, 2]`
    wall: Tensor  # texture of the wall `[n, 17]`
    zenith: Tensor  # colour of the sky above `[n, 3]`
    horizon: Tensor  # colour of the sky at the horizon, and of the distant ground `[n, 3]`
    haze_m: Tensor  # from the pivot, where distant ground has half of the horizon's colour `[n]`
    light: Tensor  # unit vector towards the light `[n, 3]`
    ambient: Tensor  # share of the light that comes from everywhere `[n]`
    photos: PhotoSurfaces | None = None  # photos on surfaces, instead of their textures; None for none

    def __len__(self) -> int:
        """Number of scenes."""
        return self.ambient.shape[0]

    @property
    def class_index(self) -> Tensor:
        """Of the main object: index into CLASS_NAMES, int64 `[n]`."""
        return self.objects.class_index[:, 0]

    def select(self, index: Tensor) -> ToyScenes:
        """The scenes at the positions `index`, int64 `[any]`, in that order."""
        return _selected(self, index)


class Draws:
    """Uniform numbers for scenes by name, a pure function of (seed, prefix, name, index)."""

    def __init__(self, index: Tensor, seed: int, prefix: str) -> None:
        self._index, self._seed, self._prefix = index, seed, prefix

    def scenes(self, name: str, count: int) -> list[Tensor]:
        """`count` numbers a scene, each `[n]`."""
        return list(uniform(self._seed, f"{self._prefix}/{name}", self._index, count).unbind(-1))

    def objects(self, name: str, count: int) -> list[Tensor]:
        """`count` numbers an object, each `[n, k]`."""
        numbers = torch.stack(self.scenes(name, count * MAX_OBJECTS), -1)
        return list(numbers.reshape(-1, MAX_OBJECTS, count).unbind(-1))


def sample_scenes(index: Tensor, *, seed: int, purpose: str = "train") -> ToyScenes:
    """Scenes number `index`, int64 `[n]`, of (seed, purpose).

    Equal seeds under different purposes share no scenes; by convention "train", "eval", or "input" for scenes that a
    user names.
    """
    draw = Draws(index, seed, f"toyscenes/{purpose}").scenes
    kind, *size = draw("object", 1 + NUM_DIMENSIONS)
    class_index = (kind * len(SHAPES)).to(torch.int64)
    dimensions, extent, max_yaw_rad = measures(class_index, size)
    place_x, place_z, yaw, ground_y = draw("place", 4)
    hue, contrast_hue, object_saturation, ground_saturation, wall_saturation = draw("colour", 5)
    object_value, ground_value, wall_value, accent_hue, wall_hue = draw("value", 5)
    accent_saturation, accent_value = draw("accent", 2)
    has_wall, wall_z, wall_yaw = draw("wall", 3)
    azimuth, elevation, ambient = draw("light", 3)
    (looks_down,) = draw("elevation", 1)
    sky_hue, sky_saturation, sky_value = draw("sky", 3)

    ground_hue = hue
    object_hue = hue + between(contrast_hue, 0.25, 0.75)  # never the hue of the ground
    sky = torch.where(sky_hue < 0.75, between(sky_hue, 0.53, 0.65), between(sky_hue, -0.32, 0.09))
    level = between(ground_y, 0.78, 1.0)
    upright = cos_sin(torch.zeros_like(yaw))
    foot = torch.stack([between(place_x, -0.38, 0.38), level, between(place_z, -0.45, 0.4)], -1)
    objects = ToyObjects(
        class_index=class_index[:, None],
        dimensions=dimensions[:, None],
        extent=extent[:, None],
        foot=foot[:, None],
        turn=cos_sin((2.0 * yaw - 1.0) * max_yaw_rad)[:, None],
        tilt=upright[:, None],
        texture=make_texture(
            draw("object texture", NUM_TEXTURE_DRAWS),
            (object_hue, between(object_saturation, 0.5, 0.85), between(object_value, 0.75, 1.0)),
            hue_shift=0.12,
            plain=0.45,
            frequency=(1.2, 2.2),
        )[:, None],
        accent=rgb_from_hsv(
            object_hue + between(accent_hue, 0.3, 0.7),
            between(accent_saturation, 0.1, 0.5),
            between(accent_value, 0.4, 0.95),
        )[:, None],
    )
    return ToyScenes(
        objects=objects,
        elevation=cos_sin(between(looks_down, *ELEVATION_RAD)),
        roll=upright,
        has_ground=torch.ones_like(index, dtype=torch.bool),
        ground_y=level,
        ground=make_texture(
            draw("ground texture", NUM_TEXTURE_DRAWS),
            (ground_hue, between(ground_saturation, 0.12, 0.45), between(ground_value, 0.5, 0.85)),
            hue_shift=0.05,
            plain=0.2,
            frequency=(0.45, 1.1),
        ),
        has_wall=has_wall < 0.6,
        wall_z_depth=between(wall_z, 4.5, 9.0),
        wall_turn=cos_sin(between(wall_yaw, -0.3, 0.3)),
        wall=make_texture(
            draw("wall texture", NUM_TEXTURE_DRAWS),
            (wall_hue, between(wall_saturation, 0.08, 0.4), between(wall_value, 0.6, 0.95)),
            hue_shift=0.05,
            plain=0.3,
            frequency=(0.35, 0.8),
        ),
        zenith=rgb_from_hsv(sky, between(sky_saturation, 0.35, 0.65), between(sky_value, 0.7, 0.95)),
        horizon=rgb_from_hsv(sky, between(sky_saturation, 0.05, 0.2), between(sky_value, 0.85, 1.0)),
        haze_m=torch.full_like(ambient, _HAZE_M),
        light=towards_light(between(azimuth, -1.2, 1.2), between(elevation, 0.55, 0.85)),
        ambient=between(ambient, 0.35, 0.5),
    )


def measures(class_index: Tensor, size: list[Tensor], scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """How large objects are, by NUM_DIMENSIONS uniform draws each, `[...]`, and a scale of plain ones' size.

    Of classes `[...]`; absent objects have no size. Returns dimensions `[..., NUM_DIMENSIONS]` and extent `[..., 3]` as
    in `ToyObjects`, and how far they may turn to either side, in radians `[...]`.
    """
    dimensions = torch.zeros(*class_index.shape, NUM_DIMENSIONS, device=class_index.device)
    extent = torch.zeros(*class_index.shape, 3, device=class_index.device)
    max_yaw_rad = torch.zeros(class_index.shape, device=class_index.device)
    scale = torch.as_tensor(scale, device=class_index.device).expand(class_index.shape)
    for number, shape in enumerate(SHAPES):
        chosen = class_index == number
        metres = [between(u[chosen], *limits) * scale[chosen] for u, limits in zip(size, shape.ranges_m, strict=False)]
        dimensions[..., : len(metres)][chosen] = torch.stack(metres, -1)
        extent[chosen] = torch.stack(shape.extent(*metres), -1)
        max_yaw_rad[chosen] = shape.max_yaw_rad
    return dimensions, extent, max_yaw_rad


def towards_light(azimuth_rad: Tensor, sin_elevation: Tensor) -> Tensor:
    """Unit vectors `[..., 3]` towards the light; azimuth 0 is behind the camera, positive ones to its right."""
    cos_elevation = (1.0 - sin_elevation * sin_elevation).sqrt()
    turn = cos_sin(azimuth_rad)
    return torch.stack([cos_elevation * turn[..., 1], -sin_elevation, -cos_elevation * turn[..., 0]], -1)


_Record = TypeVar("_Record", ToyScenes, ToyObjects, PhotoSurfaces)


def _selected(record: _Record, index: Tensor | tuple[Tensor, ...]) -> _Record:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value[index]
        elif is_dataclass(value):
            values[name] = _selected(value, index)  # type: ignore[type-var]
    return type(record)(**values)
