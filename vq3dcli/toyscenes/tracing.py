"""Rays against the objects of toy scenes: boxes, tracing, normals.

Legend: k rays, p pieces of a shape. A vector is three tensors, one a component; `[k]` may be any shape that
broadcasts. Rays are `origin + t * direction`, directions of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vq3dcli.toyscenes.shapes import Dimensions, Shape, union

Vector = tuple[Tensor, Tensor, Tensor]

_MIN_STEP = 1e-3  # in t: the last step crosses the surface, which brackets it this tightly before bisection
_MIN_STEP_TO_LIGHT = 4e-3  # shadows need no place; a chord this short lies within 1e-4 m of a shadow's edge
_BISECTIONS = 5
_SLACK_M = 1e-3  # boxes are this much larger than what they hold, so that rays start outside of it
_STEPS = 3  # between two removals of finished rays
_SWEEPS = 64


def first_hits(shape: Shape, dims: Dimensions, origin: Vector, direction: Vector, start: Tensor, end: Tensor) -> Tensor:
    """Where k rays enter a shape between `start` and `end`: t `[k]`, infinite where they miss it."""
    low, high = _brackets(shape, dims, origin, direction, start, end, _MIN_STEP)
    hit = torch.nonzero(high < torch.inf)[:, 0]
    low, high = low[hit], high[hit]
    origin, direction = gather(origin, hit), gather(direction, hit)
    dims = [column[hit] for column in dims]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        inside = shape.distance(*along(origin, direction, middle), dims) <= 0.0
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return torch.full_like(start, torch.inf).index_copy(0, hit, 0.5 * (low + high))


def is_blocked(shape: Shape, dims: Dimensions, origin: Vector, direction: Vector, start: Tensor, end: Tensor) -> Tensor:
    """Whether k rays meet a shape between `start` and `end`, bool `[k]`."""
    _, high = _brackets(shape, dims, origin, direction, start, end, _MIN_STEP_TO_LIGHT)
    return high < torch.inf


def _brackets(
    shape: Shape, dims: Dimensions, origin: Vector, direction: Vector, start: Tensor, end: Tensor, least_step: float
) -> tuple[Tensor, Tensor]:
    """Sphere tracing: the last t outside and the first inside `[k]`; both infinite where a ray meets nothing.

    A step is never longer than the distance. Along a ray a convex distance is a convex function, so the secant
    through the last two places stays below it: its root is no later than the surface, which allows longer steps, and
    a distance that has stopped falling will not fall again. That ends grazing rays after a few steps.
    """
    low_of, high_of = torch.full_like(start, torch.inf), torch.full_like(start, torch.inf)
    number = torch.arange(start.shape[0], device=start.device)
    inverse_length = 1.0 / norm(direction)
    t = low = start
    before: list[Tensor] | None = None
    for sweep in range(_SWEEPS):
        # Grazing rays may follow a surface that is not convex for long: their steps grow, up to fourfold.
        min_step = least_step * min(4.0, 1.0 + sweep / 8.0)
        for _ in range(_STEPS):
            pieces = shape.pieces(*along(origin, direction, t), dims)
            distance = union(pieces)
            outside = distance > 0.0
            step = distance * inverse_length
            if shape.convex_pieces:
                if before is not None:
                    step = torch.maximum(step, _secant_step(pieces, before, t - low))
                before = pieces
            low = torch.where(outside, t, low)
            # Stopping short leaves the crossing to a step of min_step; rounding would else make long brackets.
            t = torch.where(outside, t + (step - 0.5 * min_step).clamp(min=min_step), t)
        within = t <= end
        arrived = torch.nonzero(~outside & within)[:, 0]
        low_of[number[arrived]], high_of[number[arrived]] = low[arrived], t[arrived]
        keep = torch.nonzero(outside & within)[:, 0]
        if not len(keep):
            break
        number, t, low, end = number[keep], t[keep], low[keep], end[keep]
        origin, direction, inverse_length = gather(origin, keep), gather(direction, keep), inverse_length[keep]
        dims = [column[keep] for column in dims]
        before = None if before is None else [piece[keep] for piece in before]
    return low_of, high_of


def _secant_step(pieces: list[Tensor], before: list[Tensor], moved: Tensor) -> Tensor:
    """The step to the nearest root of the pieces' secants; a piece that recedes has none."""
    # The floor of the fall makes the step of a receding piece longer than any scene, and no division by zero.
    return union([now * moved / (then - now).clamp(min=1e-12) for now, then in zip(pieces, before, strict=True)])


def box_hits(extent: Vector, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a shape's box in its own frame; they miss it where enter >= leave."""
    half_x, height, half_z = extent
    faces = (
        (-half_x - _SLACK_M, half_x + _SLACK_M),
        (torch.full_like(height, -_SLACK_M), height + _SLACK_M),
        (-half_z - _SLACK_M, half_z + _SLACK_M),
    )
    entries, exits = [], []
    for axis, (low, high) in enumerate(faces):
        # A ray parallel to a face gets a tiny slope: the quotients stay finite and far outside any scene.
        slope = direction[axis]
        inverse = 1.0 / torch.where(slope.abs() < 1e-12, 1e-12, slope)
        first, second = (low - origin[axis]) * inverse, (high - origin[axis]) * inverse
        entries.append(torch.minimum(first, second))
        exits.append(torch.maximum(first, second))
    enter = torch.maximum(torch.maximum(entries[0], entries[1]), entries[2])
    return enter, union(exits)


def normals(shape: Shape, dims: Dimensions, point: Vector) -> Vector:
    """Unit normals by central differences; at 5e-4 m rounding and curvature both stay below 1e-3."""
    x, y, z = point
    h = 5e-4
    gradient = (
        shape.distance(x + h, y, z, dims) - shape.distance(x - h, y, z, dims),
        shape.distance(x, y + h, z, dims) - shape.distance(x, y - h, z, dims),
        shape.distance(x, y, z + h, dims) - shape.distance(x, y, z - h, dims),
    )
    # On a crease the differences may cancel; the floor makes that a dark normal instead of a division by zero.
    scale = 1.0 / norm(gradient).clamp(min=1e-9)
    return gradient[0] * scale, gradient[1] * scale, gradient[2] * scale


def dot(a: Vector, b: Vector) -> Tensor:
    """Scalar product; components are added in order, so its bits do not depend on the layout."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def norm(v: Vector) -> Tensor:
    """Euclidean length."""
    return dot(v, v).sqrt()


def along(origin: Vector, direction: Vector, t: Tensor) -> Vector:
    """The points at t on rays."""
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


def gather(vector: Vector, index: Tensor) -> Vector:
    """The vectors at flat positions `index` `[k]`."""
    return vector[0].flatten()[index], vector[1].flatten()[index], vector[2].flatten()[index]
