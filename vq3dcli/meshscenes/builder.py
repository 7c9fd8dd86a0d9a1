"""Triangles put together to a scene, in its level frame: x right, y down, z away, the pivot at the origin."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vq3dcli.meshscenes.library import gather_textures
from vq3dcli.meshscenes.models import Model, Texture
from vq3dcli.meshscenes.raster import NOTHING, Bytes, Floats, Ints, Singles, Textures, Triangles
from vq3dcli.meshscenes.surfaces import Skin


class Pose(NamedTuple):
    """How a model stands: its base at (x, y, z), turned by `yaw_rad`, its axes times `scale` `[3]`."""

    x: float
    y: float
    z: float
    yaw_rad: float
    scale: tuple[float, float, float]


class Builder:
    """Collects the triangles of a scene; what is added by `model` and `box` casts shadows, `quad` does not."""

    def __init__(self) -> None:
        self._corners: list[Floats] = []
        self._normals: list[Floats] = []
        self._uv: list[Singles] = []
        self._colour: list[Bytes] = []
        self._texture: list[Ints] = []
        self._part: list[Ints] = []
        self._textures: list[Texture] = []
        self._mirrored: list[bool] = []
        self._known: dict[int, int] = {}

    @property
    def count(self) -> int:
        """Number of triangles so far."""
        return sum(map(len, self._part))

    def texture(self, texture: Texture, *, mirrored: bool) -> int:
        """Number of a texture in the scene."""
        if id(texture) not in self._known:
            self._known[id(texture)] = len(self._textures)
            self._textures.append(texture)
            self._mirrored.append(mirrored)
        return self._known[id(texture)]

    def model(self, model: Model, pose: Pose, part: int) -> None:
        """Add a model as part number `part`."""
        scale = np.array(pose.scale)
        numbers = np.array([self.texture(t, mirrored=False) for t in model.textures] + [NOTHING], np.int32)
        self._corners.append(turned(model.corners * scale, pose.yaw_rad) + np.array([pose.x, pose.y, pose.z]))
        self._normals.append(turned(model.normals / scale, pose.yaw_rad))
        self._uv.append(model.uv)
        self._colour.append(model.colour)
        self._texture.append(numbers[model.texture])  # NOTHING is -1, which is the last one
        self._part.append(np.full(len(model.corners), part, np.int32))

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
        normal /= math.sqrt(float((normal * normal).sum()))
        corners = [[0, 1, 2], [0, 2, 3]]
        self._add(four[corners], normal, uv[corners], skin, part)

    def _add(self, corners: Floats, normal: Floats, uv: Floats, skin: Skin, part: int) -> None:
        """Add two triangles of a plane."""
        number = self.texture(skin.texture, mirrored=True)
        self._corners.append(corners)
        self._normals.append(np.broadcast_to(normal, (2, 3, 3)))
        self._uv.append(uv.astype(np.float32))
        self._colour.append(np.broadcast_to(skin.tint, (2, 3, 3)))
        self._texture.append(np.full(2, number, np.int32))
        self._part.append(np.full(2, part, np.int32))

    def strip(self, foot: Floats, width_m: float, tops: tuple[float, float], skin: Skin) -> None:
        """Add an upright strip that faces the camera: from `foot` to the right, its tops at two heights (negative)."""
        x, y = np.array([width_m, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
        four = np.stack([foot, foot + x, foot + x + tops[1] * y, foot + tops[0] * y])
        corners = [[0, 1, 2], [0, 2, 3]]
        self._add(four[corners], np.array([0.0, 0.0, -1.0]), four[corners][..., :2] / skin.period_m, skin, NOTHING)

    def box(self, lower: Floats, upper: Floats, yaw_rad: float, skin: Skin, part: int) -> None:
        """Add a box between two corners, turned around the vertical axis through the origin."""
        size = upper - lower
        x, y, z = np.diag(size)
        for corner, along, across in (
            (lower, x, z), (lower + y, x, z), (lower, x, y), (lower + z, x, y), (lower, z, y), (lower + x, z, y),
        ):  # fmt: skip
            place, first, second = (turned(v, yaw_rad) for v in (corner, along, across))
            self.quad(place, first, second, skin, (0.37 * float(size[0]), 0.0), part)

    def triangles(self) -> Triangles:
        """All triangles, in the order in which they were added."""
        return Triangles(
            np.concatenate(self._corners).astype(np.float32),
            np.concatenate(self._normals).astype(np.float32),
            np.concatenate(self._uv),
            np.concatenate(self._colour),
            np.concatenate(self._texture),
            np.concatenate(self._part),
        )

    def textures(self) -> Textures:
        """All textures, by their numbers."""
        return gather_textures(self._textures, self._mirrored)


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
