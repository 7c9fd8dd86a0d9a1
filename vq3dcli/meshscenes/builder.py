"""Triangles put together to a scene, in its level frame: x right, y down, z away, the pivot at the origin.

Grounds, walls and boxes show a `Skin`: a picture with its size and tint. The pictures here are grey and few.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.meshscenes.models import Model, Texture, make_texture
from vq3dcli.meshscenes.raster import NOTHING, Bytes, Floats, Ints, Singles, Textures, Triangles
from vq3dcli.seeding import uniform

WHITE: Bytes = np.full(3, 255, np.uint8)
NUM_PLAIN = 8
NUM_BOARDS = 4
NUM_TILES = 3
_PX = 64


class Skin(NamedTuple):
    """A texture, the length that one picture of it covers, and the colour `[3]` that it is multiplied by."""

    texture: Texture
    period_m: float
    tint: Bytes = WHITE


@functools.cache
def plain(number: int) -> Texture:
    """Nearly one grey, from even (0) to blotched and grainy (NUM_PLAIN - 1)."""
    strength = number / (NUM_PLAIN - 1)
    grain = _noise(f"grain/{number}", _PX) * 0.05 * strength
    blotches = _stretched(_noise(f"blotches/{number}", 4), 16) * 0.16 * strength
    return _grey(0.92 + grain + blotches)


@functools.cache
def boards(number: int) -> Texture:
    """Boards side by side, each of its own grey, with grain along them."""
    wide = (8, 16, 16, 32)[number]
    tone = np.repeat(_noise(f"tone/{number}", _PX // wide), wide, 1)[:1] * 0.3
    grain = np.repeat(_noise(f"fibre/{number}", _PX)[::8], 8, 0) * 0.12
    gap = np.where(np.arange(_PX) % wide == 0, -0.25, 0.0)
    return _grey(0.85 + tone + grain + gap)


@functools.cache
def tiles(number: int) -> Texture:
    """Square tiles with joints."""
    wide = (16, 32, 32)[number]
    tone = np.kron(_noise(f"tile/{number}", _PX // wide), np.ones((wide, wide))) * (0.0, 0.1, 0.3)[number]
    at = np.arange(_PX) % wide < 2
    return _grey(0.88 + tone - np.where(at[:, None] | at[None], (0.3, 0.15, 0.4)[number], 0.0))


def _grey(level: Singles) -> Texture:
    texels = (level.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return make_texture(np.stack([texels, texels, texels, np.full_like(texels, 255)], -1))


def _noise(name: str, side: int) -> Singles:
    """Numbers `[side, side]` in [-0.5, 0.5), the same in all scenes of all seeds."""
    drawn: Singles = uniform(0, f"meshsurfaces/{name}", torch.tensor([0]), side * side)[0].numpy().astype(np.float32)
    return drawn.reshape(side, side) - np.float32(0.5)


def _stretched(small: Singles, times: int) -> Singles:
    """A map `times` as large a side, linear in between."""
    at = (np.arange(len(small) * times) + 0.5) / times - 0.5
    left = np.floor(at).astype(int)
    share = (at - left).astype(np.float32)[:, None]
    low, high = left.clip(0, len(small) - 1), (left + 1).clip(0, len(small) - 1)
    rows = small[low] * (1.0 - share) + small[high] * share
    result: Singles = (rows[:, low] * (1.0 - share.T) + rows[:, high] * share.T).astype(np.float32)
    return result


class Builder:
    """Collects the triangles of a scene; what is added by `model` and `box` casts shadows, `quad` does not."""

    def __init__(self) -> None:
        self._parts: list[Triangles] = []
        self._textures: dict[int, tuple[int, Texture, bool]] = {}  # by id: number, texture, whether it is mirrored

    @property
    def count(self) -> int:
        """Number of triangles so far."""
        return sum(len(each.part) for each in self._parts)

    def texture(self, texture: Texture, *, mirrored: bool) -> int:
        """Number of a texture in the scene."""
        return self._textures.setdefault(id(texture), (len(self._textures), texture, mirrored))[0]

    def model(self, model: Model, place: Floats, yaw_rad: float, scale: Floats, part: int) -> None:
        """Add a model as part number `part`: its base at a place `[3]`, turned, its axes times `scale` `[3]`."""
        numbers = np.array([self.texture(t, mirrored=False) for t in model.textures] + [NOTHING], np.int32)
        corners = turned(model.corners * scale, yaw_rad) + place
        normals = turned(model.normals / scale, yaw_rad)
        texture = numbers[model.texture]  # NOTHING is -1, which is the last one
        self._add(corners, normals, model.uv, model.colour, texture, part)

    def quad(
        self,
        corner: Floats,
        along: Floats,
        across: Floats,
        skin: Skin,
        offset: tuple[float, float] = (0.0, 0.0),
        part: int = NOTHING,
    ) -> None:
        """Add a rectangle from `corner`, its sides `along` and `across`."""
        four = np.stack([corner, corner + along, corner + along + across, corner + across])
        reach = np.array([math.sqrt(float((along * along).sum())), math.sqrt(float((across * across).sum()))])
        units = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        # The middle has small coordinates, which single precision holds well.
        uv = (units - 0.5) * reach / skin.period_m + np.array(offset)
        normal = np.cross(along, across)
        self._add_plane(four, normal / math.sqrt(float((normal * normal).sum())), uv, skin, part)

    def strip(self, foot: Floats, width_m: float, tops: tuple[float, float], skin: Skin) -> None:
        """Add an upright strip that faces the camera: from `foot` to the right, its tops at two heights (negative)."""
        x, y = np.array([width_m, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
        four = np.stack([foot, foot + x, foot + x + tops[1] * y, foot + tops[0] * y])
        self._add_plane(four, np.array([0.0, 0.0, -1.0]), four[:, :2] / skin.period_m, skin, NOTHING)

    def _add_plane(self, corners: Floats, normal: Floats, uv: Floats, skin: Skin, part: int) -> None:
        """Add the two triangles of four corners `[4, 3]`, with uv `[4, 2]`."""
        two, shape = [[0, 1, 2], [0, 2, 3]], (2, 3, 3)
        texture = np.full(2, self.texture(skin.texture, mirrored=True), np.int32)
        colour = np.broadcast_to(skin.tint, shape)
        self._add(corners[two], np.broadcast_to(normal, shape), uv[two].astype(np.float32), colour, texture, part)

    def _add(self, corners: Floats, normals: Floats, uv: Singles, colour: Bytes, texture: Ints, part: int) -> None:
        numbers = np.full(len(corners), part, np.int32)
        self._parts.append(
            Triangles(corners.astype(np.float32), normals.astype(np.float32), uv, colour, texture, numbers)
        )

    def box(self, lower: Floats, upper: Floats, yaw_rad: float, skin: Skin, part: int) -> None:
        """Add a box between two corners, turned around the vertical axis through the origin."""
        x, y, z = np.diag(upper - lower)
        offset = (0.37 * float(x[0]), 0.0)
        for corner, along, across in (
            (lower, x, z), (lower + y, x, z), (lower, x, y), (lower + z, x, y), (lower, z, y), (lower + x, z, y),
        ):  # fmt: skip
            place, first, second = (turned(v, yaw_rad) for v in (corner, along, across))
            self.quad(place, first, second, skin, offset, part)

    def triangles(self) -> Triangles:
        """All triangles, in the order in which they were added."""
        return Triangles(*map(np.concatenate, zip(*self._parts, strict=True)))

    def textures(self) -> Textures:
        """All textures in one table, by their numbers."""
        numbered = [(texture, mirrored) for _, texture, mirrored in self._textures.values()]
        most = max([len(texture.sizes) for texture, _ in numbered], default=1)
        shape = (max(1, len(numbered)), most)
        sizes = np.tile(np.array([0, 1, 1], np.int32), (*shape, 1))
        levels, cutoff = np.ones(shape[0], np.int32), np.zeros(shape[0], np.int32)
        flags, start = np.zeros(shape[0], np.uint8), 0
        for number, (texture, mirrored) in enumerate(numbered):
            levels[number], cutoff[number], flags[number] = len(texture.sizes), texture.cutoff, mirrored
            for level, (wide, high) in enumerate(texture.sizes):
                sizes[number, level] = start, wide, high
                start += wide * high
        texels = [texture.texels for texture, _ in numbered] or [np.zeros((1, 4), np.uint8)]
        return Textures(np.concatenate(texels), sizes, levels, cutoff, flags)


def turned(vectors: Floats | Singles, yaw_rad: float) -> Floats:
    """Vectors `[..., 3]` turned around the vertical axis."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    x, y, z = (vectors[..., axis].astype(np.float64) for axis in range(3))
    return np.stack([cos * x + sin * z, y, cos * z - sin * x], -1)


def tilted(vectors: Floats | Singles, elevation_rad: float, roll_rad: float) -> Floats:
    """Level vectors `[..., 3]` in the world, whose canonical camera looks down by the elevation."""
    cos, sin = math.cos(elevation_rad), math.sin(elevation_rad)
    x, y, z = (vectors[..., axis].astype(np.float64) for axis in range(3))
    y, z = cos * y - sin * z, sin * y + cos * z
    cos, sin = math.cos(roll_rad), math.sin(roll_rad)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)
