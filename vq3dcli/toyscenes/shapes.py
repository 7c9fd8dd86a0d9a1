"""Signed distances of the objects that stand in toy scenes.

Each shape lives in its own frame in metres: y points up, the base touches y = 0 and the vertical axis passes through
the origin. A distance may underestimate (a bound) but never overestimates, so sphere tracing cannot step through a
surface. Only arithmetic and square roots are used, which round the same way for every tensor layout.

Legend: n points. Points are three tensors x, y, z, dimensions a few tensors, all `[n]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_DIMENSIONS = 3  # most numbers that describe a shape's size
Dimensions = Sequence[Tensor]
Extent = tuple[Tensor, Tensor, Tensor]
Pieces = Callable[[Tensor, Tensor, Tensor, Dimensions], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Shape:
    """One class of object: the union of its pieces.

    Attributes:
        name: Class name.
        ranges_m: Smallest and largest value of each dimension, at most NUM_DIMENSIONS pairs.
        extent: Dimensions -> half width in x, full height, half width in z: the box that holds the shape.
        pieces: (x, y, z, dimensions) -> distances.
        num_accents: This many of the last pieces have the second colour.
        convex_pieces: Every piece's distance is a convex function, which the tracer makes use of.
        casts_on_itself: False for shapes that are convex as a whole.
        max_yaw_rad: Flat shapes turn less, so that they never show only their edge.
    """

    name: str
    ranges_m: tuple[tuple[float, float], ...]
    extent: Callable[[Dimensions], Extent]
    pieces: Pieces
    num_accents: int = 0
    convex_pieces: bool = True
    casts_on_itself: bool = False
    max_yaw_rad: float = math.pi

    def distance(self, x: Tensor, y: Tensor, z: Tensor, dims: Dimensions) -> Tensor:
        """Signed distance `[n]`, negative inside."""
        return union(self.pieces(x, y, z, dims))


def union(distances: Sequence[Tensor]) -> Tensor:
    """Signed distance of what the pieces cover together."""
    return functools.reduce(torch.minimum, distances)


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def _ball(x: Tensor, y: Tensor, z: Tensor, radius: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt() - radius


def _block(x: Tensor, y: Tensor, z: Tensor, half_x: Tensor, half_y: Tensor, half_z: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(x.abs() - half_x, y.abs() - half_y), z.abs() - half_z)


def _rod(across_1: Tensor, along: Tensor, across_2: Tensor, radius: Tensor, half_length: Tensor) -> Tensor:
    """A solid cylinder around the axis `along`."""
    return torch.maximum(_length(across_1, across_2) - radius, along.abs() - half_length)


def _egg(x: Tensor, y: Tensor, z: Tensor, radius_x: Tensor, radius_y: Tensor, radius_z: Tensor) -> Tensor:
    """An ellipsoid: the scaled sphere's distance times the smallest radius is a lower bound."""
    scaled = _ball(x / radius_x, y / radius_y, z / radius_z, torch.ones_like(x))
    return scaled * torch.minimum(torch.minimum(radius_x, radius_y), radius_z)


def _sphere(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    return (_ball(x, y - d[0], z, d[0]),)


def _box(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    return (_block(x, y - d[1], z, d[0], d[1], d[2]),)


def _cylinder(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    return (_rod(x, y - d[1], z, d[0], d[1]),)


def _cone(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    radius, height = d[0], d[1]
    side = (height * _length(x, z) + radius * (y - height)) / _length(radius, height)
    return (torch.maximum(side, -y),)


def _torus(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    ring, tube = d[0], d[1]
    return (_length(_length(x, y - (ring + tube)) - ring, z) - tube,)


def _capsule(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    radius, half = d[0], d[1]
    beyond = ((y - (radius + half)).abs() - half).clamp(min=0.0)
    return (_ball(x, beyond, z, radius),)


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    return (_egg(x, y - d[1], z, d[0], d[1], d[2]),)


def _octahedron(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    radius, half = d[0], d[1]
    level = (x.abs() + z.abs()) / radius + (y - half).abs() / half - 1.0
    return (level / (2.0 / (radius * radius) + 1.0 / (half * half)).sqrt(),)


def _prism(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    across = torch.maximum(z.abs(), math.sqrt(0.75) * x.abs() + 0.5 * z.abs())
    return (torch.maximum(across - d[0], (y - d[1]).abs() - d[1]),)


def _snowman(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    r = d[0]
    brim = _rod(x, y - 3.28 * r, z, 0.56 * r, 0.05 * r)
    crown = _rod(x, y - 3.5 * r, z, 0.34 * r, 0.25 * r)
    belly, chest = _ball(x, y - r, z, r), _ball(x, y - 2.1 * r, z, 0.7 * r)
    return belly, chest, _ball(x, y - 2.95 * r, z, 0.48 * r), brim, crown


def _tower(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    a, h = d[0], d[1]
    turned_x, turned_z = 0.8 * x - 0.6 * z, 0.6 * x + 0.8 * z
    bottom = _block(x, y - h, z, a, h, a)
    middle = _block(turned_x, y - 3.0 * h, turned_z, 0.75 * a, h, 0.75 * a)
    top = _block(x, y - 5.0 * h, z, 0.5 * a, h, 0.5 * a)
    return bottom, top, middle


def _dumbbell(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    radius, half = d[0], d[1]
    above = y - radius
    bar = _rod(above, x, z, 0.35 * radius, half)
    return _ball(x - half, above, z, radius), _ball(x + half, above, z, radius), bar


def _mushroom(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    cap_radius, stem_height, stem_radius = d[0], d[1], d[2]
    cap = torch.maximum(_egg(x, y - stem_height, z, cap_radius, 0.75 * cap_radius, cap_radius), stem_height - y)
    half = 0.5 * stem_height
    return cap, _rod(x, y - half, z, stem_radius, half)


def _table(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    half_x, height, half_z = d[0], d[1], d[2]
    thick = 0.1 * height
    top = _block(x, y - (height - thick), z, half_x, thick, half_z)
    leg, leg_height = 0.14 * half_x, 0.5 * height
    apart_x, apart_z = half_x - 1.6 * leg, half_z - 1.6 * leg
    above = y - leg_height
    legs = [
        _block(x + side * apart_x, above, z + end * apart_z, leg, leg_height, leg)
        for side in (-1.0, 1.0)
        for end in (-1.0, 1.0)
    ]
    return top, *legs


def _arch(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    half_x, height, half_z = d[0], d[1], d[2]
    opening = _length(x, (y - 0.42 * height).clamp(min=0.0)) - 0.55 * half_x
    half = 0.5 * height
    return (torch.maximum(_block(x, y - half, z, half_x, half, half_z), -opening),)


def _lollipop(x: Tensor, y: Tensor, z: Tensor, d: Dimensions) -> tuple[Tensor, ...]:
    radius, stick, thick = d[0], d[1], d[2]
    sweet = _rod(x, z, y - (stick + radius), radius, thick)
    half = 0.5 * stick
    foot = _rod(x, y - 0.04, z, 0.6 * radius, torch.full_like(radius, 0.04))
    return sweet, _rod(x, y - half, z, 0.13 * radius, half), foot


_FLAT_RAD = math.radians(55.0)

SHAPES: tuple[Shape, ...] = (
    Shape("sphere", ((0.36, 0.66),), lambda d: (d[0], 2.0 * d[0], d[0]), _sphere),
    Shape("box", ((0.25, 0.55), (0.25, 0.65), (0.25, 0.55)), lambda d: (d[0], 2.0 * d[1], d[2]), _box),
    Shape("cylinder", ((0.26, 0.52), (0.3, 0.7)), lambda d: (d[0], 2.0 * d[1], d[0]), _cylinder),
    Shape("cone", ((0.38, 0.66), (0.8, 1.6)), lambda d: (d[0], d[1], d[0]), _cone),
    Shape(
        "torus",
        ((0.34, 0.5), (0.12, 0.21)),
        lambda d: (d[0] + d[1], 2.0 * (d[0] + d[1]), d[1]),
        _torus,
        max_yaw_rad=_FLAT_RAD,
        convex_pieces=False,
        casts_on_itself=True,
    ),
    Shape("capsule", ((0.22, 0.4), (0.2, 0.5)), lambda d: (d[0], 2.0 * (d[0] + d[1]), d[0]), _capsule),
    Shape(
        "ellipsoid",
        ((0.45, 0.7), (0.28, 0.5), (0.34, 0.55)),
        lambda d: (d[0], 2.0 * d[1], d[2]),
        _ellipsoid,
    ),
    Shape("octahedron", ((0.5, 0.75), (0.5, 0.85)), lambda d: (d[0], 2.0 * d[1], d[0]), _octahedron),
    Shape(
        "prism",
        ((0.3, 0.5), (0.35, 0.7)),
        lambda d: (d[0] * (2.0 / math.sqrt(3.0)), 2.0 * d[1], d[0]),
        _prism,
    ),
    Shape(
        "snowman",
        ((0.3, 0.46),),
        lambda d: (d[0], 3.75 * d[0], d[0]),
        _snowman,
        num_accents=2,
        casts_on_itself=True,
    ),
    Shape(
        "tower",
        ((0.34, 0.52), (0.17, 0.28)),
        lambda d: (1.06 * d[0], 6.0 * d[1], 1.06 * d[0]),
        _tower,
        num_accents=1,
        casts_on_itself=True,
    ),
    Shape(
        "dumbbell",
        ((0.27, 0.4), (0.42, 0.58)),
        lambda d: (d[0] + d[1], 2.0 * d[0], d[0]),
        _dumbbell,
        max_yaw_rad=_FLAT_RAD,
        num_accents=1,
        casts_on_itself=True,
    ),
    Shape(
        "mushroom",
        ((0.42, 0.66), (0.45, 0.85), (0.13, 0.22)),
        lambda d: (d[0], d[1] + 0.75 * d[0], d[0]),
        _mushroom,
        num_accents=1,
        casts_on_itself=True,
    ),
    Shape(
        "table",
        ((0.48, 0.72), (0.55, 0.95), (0.34, 0.55)),
        lambda d: (d[0], d[1], d[2]),
        _table,
        num_accents=4,
        casts_on_itself=True,
    ),
    Shape(
        "arch",
        ((0.5, 0.68), (0.95, 1.4), (0.17, 0.32)),
        lambda d: (d[0], d[1], d[2]),
        _arch,
        max_yaw_rad=_FLAT_RAD,
        convex_pieces=False,
        casts_on_itself=True,
    ),
    Shape(
        "lollipop",
        ((0.32, 0.5), (0.5, 0.75), (0.09, 0.15)),
        lambda d: (d[0], d[1] + 2.0 * d[0], torch.maximum(d[2], 0.6 * d[0])),
        _lollipop,
        max_yaw_rad=_FLAT_RAD,
        num_accents=2,
        casts_on_itself=True,
    ),
)
