"""The objects of toy scenes: unions of pieces whose signed distance has a closed form.

Each shape lives in its own frame in metres: y points up, the base touches y = 0 and the vertical axis passes through
the origin. A distance may underestimate (a bound) but never overestimates, so sphere tracing cannot step through a
surface. Only arithmetic and square roots are used, which round the same way everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUM_DIMENSIONS = 3  # most numbers that describe a shape's size
Dimensions = Sequence[Tensor]
_FLAT_RAD = math.radians(55.0)
_Piece = tuple[Any, ...]  # a function below, the centre (x, y, z) that it is seen from, and its other arguments


@dataclass(frozen=True)
class Shape:
    """One class of object: the union of its pieces."""

    name: str  # class name
    # smallest and largest value of each dimension, at most NUM_DIMENSIONS pairs
    ranges_m: tuple[tuple[float, float], ...]
    # dimensions -> half width in x, full height, half width in z: the box that holds the shape
    extent: Callable[..., tuple[Tensor, Tensor, Tensor]]
    parts: Callable[..., Sequence[_Piece]]  # dimensions -> its pieces
    num_accents: int = 0  # this many of the last pieces have the second colour
    convex_pieces: bool = True  # every piece's distance is a convex function, which the tracer makes use of
    max_yaw_rad: float = math.pi  # flat shapes turn less, so that they never show only their edge

    @property
    def casts_on_itself(self) -> bool:
        """False for shapes that are convex as a whole."""
        return self.num_accents > 0 or not self.convex_pieces

    def pieces(self, x: Tensor, y: Tensor, z: Tensor, dims: Dimensions) -> list[Tensor]:
        """Signed distances of the pieces, `[n]` each."""
        parts = self.parts(*dims[: len(self.ranges_m)])
        return [
            distance(*(p if isinstance(c, int) else p - c for p, c in zip((x, y, z), centre, strict=True)), *sizes)
            for distance, centre, *sizes in parts
        ]

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


def _block(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(x.abs() - a, y.abs() - b), z.abs() - c)


def _turned_block(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _block(0.8 * x - 0.6 * z, y, 0.6 * x + 0.8 * z, a, b, c)


def _rod(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor | float) -> Tensor:
    return torch.maximum(_length(x, z) - radius, y.abs() - half)


def _lying_rod(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    return _rod(y, x, z, radius, half)


def _disc(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    return _rod(x, z, y, radius, half)


def _egg(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """An ellipsoid: the scaled sphere's distance times the smallest radius is a lower bound."""
    return _ball(x / a, y / b, z / c, torch.ones_like(x)) * torch.minimum(torch.minimum(a, b), c)


def _half_egg(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(_egg(x, y, z, a, b, c), -y)


def _cone(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, height: Tensor) -> Tensor:
    side = (height * _length(x, z) + radius * (y - height)) / _length(radius, height)
    return torch.maximum(side, -y)


def _torus(x: Tensor, y: Tensor, z: Tensor, ring: Tensor, tube: Tensor) -> Tensor:
    return _length(_length(x, y) - ring, z) - tube


def _capsule(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    return _ball(x, (y.abs() - half).clamp(min=0.0), z, radius)


def _octahedron(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    level = (x.abs() + z.abs()) / radius + y.abs() / half - 1.0
    return level / (2.0 / (radius * radius) + 1.0 / (half * half)).sqrt()


def _prism(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    across = torch.maximum(z.abs(), math.sqrt(0.75) * x.abs() + 0.5 * z.abs())
    return torch.maximum(across - radius, y.abs() - half)


def _arch(x: Tensor, y: Tensor, z: Tensor, a: Tensor, height: Tensor, c: Tensor) -> Tensor:
    opening = _length(x, (y - 0.42 * height).clamp(min=0.0)) - 0.55 * a
    half = 0.5 * height
    return torch.maximum(_block(x, y - half, z, a, half, c), -opening)


def _table(a: Tensor, h: Tensor, c: Tensor) -> list[_Piece]:
    thick, leg = 0.1 * h, 0.14 * a
    apart = a - 1.6 * leg, c - 1.6 * leg
    legs = [
        (_block, (side * apart[0], 0.5 * h, end * apart[1]), leg, 0.5 * h, leg) for side in (-1, 1) for end in (-1, 1)
    ]
    return [(_block, (0, h - thick, 0), a, thick, c), *legs]


# Letters are the dimensions in metres: a half width or radius, h a height or half height, ...
SHAPES: tuple[Shape, ...] = (
    Shape("sphere", ((0.36, 0.66),), lambda r: (r, 2.0 * r, r), lambda r: [(_ball, (0, r, 0), r)]),
    Shape(
        "box",
        ((0.25, 0.55), (0.25, 0.65), (0.25, 0.55)),
        lambda a, h, c: (a, 2.0 * h, c),
        lambda a, h, c: [(_block, (0, h, 0), a, h, c)],
    ),
    Shape("cylinder", ((0.26, 0.52), (0.3, 0.7)), lambda r, h: (r, 2.0 * h, r), lambda r, h: [(_rod, (0, h, 0), r, h)]),
    Shape("cone", ((0.38, 0.66), (0.8, 1.6)), lambda r, h: (r, h, r), lambda r, h: [(_cone, (0, 0, 0), r, h)]),
    Shape(
        "torus",
        ((0.34, 0.5), (0.12, 0.21)),
        lambda ring, tube: (ring + tube, 2.0 * (ring + tube), tube),
        lambda ring, tube: [(_torus, (0, ring + tube, 0), ring, tube)],
        max_yaw_rad=_FLAT_RAD,
        convex_pieces=False,
    ),
    Shape(
        "capsule",
        ((0.22, 0.4), (0.2, 0.5)),
        lambda r, h: (r, 2.0 * (r + h), r),
        lambda r, h: [(_capsule, (0, r + h, 0), r, h)],
    ),
    Shape(
        "ellipsoid",
        ((0.45, 0.7), (0.28, 0.5), (0.34, 0.55)),
        lambda a, h, c: (a, 2.0 * h, c),
        lambda a, h, c: [(_egg, (0, h, 0), a, h, c)],
    ),
    Shape(
        "octahedron",
        ((0.5, 0.75), (0.5, 0.85)),
        lambda r, h: (r, 2.0 * h, r),
        lambda r, h: [(_octahedron, (0, h, 0), r, h)],
    ),
    Shape(
        "prism",
        ((0.3, 0.5), (0.35, 0.7)),
        lambda r, h: (r * (2.0 / math.sqrt(3.0)), 2.0 * h, r),
        lambda r, h: [(_prism, (0, h, 0), r, h)],
    ),
    Shape(
        "snowman",
        ((0.3, 0.46),),
        lambda r: (r, 3.75 * r, r),
        lambda r: [
            (_ball, (0, r, 0), r),
            (_ball, (0, 2.1 * r, 0), 0.7 * r),
            (_ball, (0, 2.95 * r, 0), 0.48 * r),
            (_rod, (0, 3.28 * r, 0), 0.56 * r, 0.05 * r),
            (_rod, (0, 3.5 * r, 0), 0.34 * r, 0.25 * r),
        ],
        num_accents=2,
    ),
    Shape(
        "tower",
        ((0.34, 0.52), (0.17, 0.28)),
        lambda a, h: (1.06 * a, 6.0 * h, 1.06 * a),
        lambda a, h: [
            (_block, (0, h, 0), a, h, a),
            (_block, (0, 5.0 * h, 0), 0.5 * a, h, 0.5 * a),
            (_turned_block, (0, 3.0 * h, 0), 0.75 * a, h, 0.75 * a),
        ],
        num_accents=1,
    ),
    Shape(
        "dumbbell",
        ((0.27, 0.4), (0.42, 0.58)),
        lambda r, half: (r + half, 2.0 * r, r),
        lambda r, half: [(_ball, (half, r, 0), r), (_ball, (-half, r, 0), r), (_lying_rod, (0, r, 0), 0.35 * r, half)],
        max_yaw_rad=_FLAT_RAD,
        num_accents=1,
    ),
    Shape(
        "mushroom",
        ((0.42, 0.66), (0.45, 0.85), (0.13, 0.22)),
        lambda r, h, stem: (r, h + 0.75 * r, r),
        lambda r, h, stem: [(_half_egg, (0, h, 0), r, 0.75 * r, r), (_rod, (0, 0.5 * h, 0), stem, 0.5 * h)],
        num_accents=1,
    ),
    Shape("table", ((0.48, 0.72), (0.55, 0.95), (0.34, 0.55)), lambda a, h, c: (a, h, c), _table, num_accents=4),
    Shape(
        "arch",
        ((0.5, 0.68), (0.95, 1.4), (0.17, 0.32)),
        lambda a, h, c: (a, h, c),
        lambda a, h, c: [(_arch, (0, 0, 0), a, h, c)],
        max_yaw_rad=_FLAT_RAD,
        convex_pieces=False,
    ),
    Shape(
        "lollipop",
        ((0.32, 0.5), (0.5, 0.75), (0.09, 0.15)),
        lambda r, stick, thick: (r, stick + 2.0 * r, torch.maximum(thick, 0.6 * r)),
        lambda r, stick, thick: [
            (_disc, (0, stick + r, 0), r, thick),
            (_rod, (0, 0.5 * stick, 0), 0.13 * r, 0.5 * stick),
            (_rod, (0, 0.04, 0), 0.6 * r, 0.04),
        ],
        max_yaw_rad=_FLAT_RAD,
        num_accents=2,
    ),
)
