"""What a toy scene consists of, and how its parameters are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from vq3dcli.data.toyshapes import NUM_DIMENSIONS, SHAPES
from vq3dcli.data.toytextures import NUM_TEXTURE_DRAWS, Texture, between, cos_sin, make_texture, rgb_from_hsv
from vq3dcli.seeding import uniform

ELEVATION_RAD = (0.15, 0.40)  # 9 to 23 degrees
CLASS_NAMES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)


@dataclass(frozen=True)
class ToyScenes:
    """Parameters of n scenes, in a frame whose ground is level. Lengths in metres, colours in [0, 1].

    The canonical camera looks down at the subject, as one who photographs an object does. More of a picture then has a
    disparity of its own: with level cameras, sky and walls, tied in rank, were half of it.

    Attributes:
        class_index: Index into CLASS_NAMES, int64 `[n]`.
        elevation: Cosine and sine of the angle by which the canonical camera looks down `[n, 2]`.
        dimensions: Of the object, see its `Shape`; zero where it has fewer `[n, NUM_DIMENSIONS]`.
        extent: Half width x, height, half width z of the object's box in its own frame `[n, 3]`.
        object_xz: Where the object stands `[n, 2]`.
        object_turn: Cosine and sine of its yaw `[n, 2]`.
        object_texture: Of its first part.
        accent: Colour of its second part `[n, 3]`.
        ground_y: Height of the ground, y down `[n]`.
        ground: Texture of the ground.
        has_wall: Bool `[n]`; scenes without a wall show the sky.
        wall_z_depth: From the canonical camera, at the middle of its view `[n]`.
        wall_turn: Cosine and sine of its yaw `[n, 2]`.
        wall: Texture of the wall.
        zenith: Colour of the sky above `[n, 3]`.
        horizon: Colour of the sky at the horizon, and of the distant ground `[n, 3]`.
        light: Unit vector towards the light `[n, 3]`.
        ambient: Share of the light that comes from everywhere `[n]`.
    """

    class_index: Tensor
    elevation: Tensor
    dimensions: Tensor
    extent: Tensor
    object_xz: Tensor
    object_turn: Tensor
    object_texture: Texture
    accent: Tensor
    ground_y: Tensor
    ground: Texture
    has_wall: Tensor
    wall_z_depth: Tensor
    wall_turn: Tensor
    wall: Texture
    zenith: Tensor
    horizon: Tensor
    light: Tensor
    ambient: Tensor

    def __len__(self) -> int:
        """Number of scenes."""
        return self.class_index.shape[0]

    def select(self, index: Tensor) -> ToyScenes:
        """The scenes at the positions `index`, int64 `[any]`, in that order."""
        return select(self, index)


def sample_scenes(index: Tensor, *, seed: int, purpose: str = "train") -> ToyScenes:
    """Scenes number `index` of (seed, purpose).

    Args:
        index: int64 `[n]`.
        purpose: Equal seeds under different purposes share no scenes; by convention "train", "eval", or "input" for
            scenes that a user names.
    """

    def draw(name: str, count: int) -> list[Tensor]:
        return list(uniform(seed, f"toyscenes/{purpose}/{name}", index, count).unbind(-1))

    kind, *size = draw("object", 1 + NUM_DIMENSIONS)
    class_index = (kind * len(SHAPES)).to(torch.int64)
    dimensions = torch.zeros(*index.shape, NUM_DIMENSIONS, device=index.device)
    extent = torch.zeros(*index.shape, 3, device=index.device)
    max_yaw_rad = torch.zeros(index.shape, device=index.device)
    for number, shape in enumerate(SHAPES):
        chosen = class_index == number
        metres = [between(u[chosen], *limits) for u, limits in zip(size, shape.ranges_m, strict=False)]
        dimensions[chosen, : len(metres)] = torch.stack(metres, -1)
        extent[chosen] = torch.stack(shape.extent(metres), -1)
        max_yaw_rad[chosen] = shape.max_yaw_rad

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
    azimuth_rad = between(azimuth, -1.2, 1.2)
    sin_elevation = between(elevation, 0.55, 0.85)
    cos_elevation = (1.0 - sin_elevation * sin_elevation).sqrt()
    light_turn = cos_sin(azimuth_rad)
    light = torch.stack([cos_elevation * light_turn[..., 1], -sin_elevation, -cos_elevation * light_turn[..., 0]], -1)
    sky = torch.where(sky_hue < 0.75, between(sky_hue, 0.53, 0.65), between(sky_hue, -0.32, 0.09))
    return ToyScenes(
        class_index=class_index,
        elevation=cos_sin(between(looks_down, *ELEVATION_RAD)),
        dimensions=dimensions,
        extent=extent,
        object_xz=torch.stack([between(place_x, -0.38, 0.38), between(place_z, -0.45, 0.4)], -1),
        object_turn=cos_sin((2.0 * yaw - 1.0) * max_yaw_rad),
        object_texture=make_texture(
            draw("object texture", NUM_TEXTURE_DRAWS),
            (object_hue, between(object_saturation, 0.5, 0.85), between(object_value, 0.75, 1.0)),
            hue_shift=0.12,
            plain=0.45,
            frequency=(1.2, 2.2),
        ),
        accent=rgb_from_hsv(
            object_hue + between(accent_hue, 0.3, 0.7),
            between(accent_saturation, 0.1, 0.5),
            between(accent_value, 0.4, 0.95),
        ),
        ground_y=between(ground_y, 0.78, 1.0),
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
        light=light,
        ambient=between(ambient, 0.35, 0.5),
    )


_Record = TypeVar("_Record", ToyScenes, Texture)


def select(record: _Record, index: Tensor) -> _Record:
    """The records at the positions `index`, int64 `[any]`."""
    chosen: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        chosen[field.name] = select(value, index) if isinstance(value, Texture) else value[index]
    return type(record)(**chosen)
