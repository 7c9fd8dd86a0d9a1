"""Objects of toy scenes as rays meet them: their frames, hits, shadows.

Objects of one class in a batch of scenes are traced together. What each of them finds is put in the place of its
scene and its number there, and then taken together in the order of the numbers, so that no bit depends on the batch.

Legend: n scenes with up to k objects each, m rays a scene, p objects of a class among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.toyscenes.layout import ToyObjects, ToyScenes, reshape, select
from vq3dcli.toyscenes.shapes import SHAPES, Dimensions, Shape
from vq3dcli.toyscenes.tracing import Vector, box_hits, first_hits, gather, is_blocked


class Group(NamedTuple):
    """Objects of one class among n scenes.

    Attributes:
        shape: What the class looks like.
        objects: p of them, without an axis of scenes.
        scene: The scene of each, int64 `[p]`.
        number: Which object of its scene each is, int64 `[p]`.
        alone: These are all objects, one a scene: values of the scenes are values of the objects.
    """

    shape: Shape
    objects: ToyObjects
    scene: Tensor
    number: Tensor
    alone: bool

    def of_scenes(self, values: Tensor) -> Tensor:
        """Values of the scenes `[n, ...]` for each object `[p, ...]`."""
        return values if self.alone else values.index_select(0, self.scene)

    def dimensions(self, which: Tensor) -> Dimensions:
        """The shape's dimensions for points of the objects numbered by `which`."""
        return [self.objects.dimensions[:, i][which] for i in range(len(self.shape.ranges_m))]


def groups_by_class(scenes: ToyScenes) -> list[Group]:
    """The objects of n scenes."""
    count, most = scenes.objects.class_index.shape
    objects = reshape(scenes.objects, (count * most,), 2)
    groups = []
    for number, shape in enumerate(SHAPES):
        members = torch.nonzero(objects.class_index == number)[:, 0]
        if len(members):
            alone = most == 1 and len(members) == count
            groups.append(Group(shape, select(objects, members), members // most, members % most, alone))
    return groups


def nearest_objects(groups: list[Group], origin: Vector, direction: Vector, limit: Tensor) -> tuple[Tensor, Tensor]:
    """z_depth of the first object on each ray, infinite where there is none before `limit`, and which one: `[n, m]`."""
    found = [_hits(group, origin, direction, limit) for group in groups]
    which = torch.zeros_like(limit, dtype=torch.int8)
    if groups[0].alone:
        return found[0], which
    nearest = torch.full_like(limit, torch.inf)
    for number, scene, hits in _in_order(groups, found):
        before = nearest.index_select(0, scene)
        closer = hits < before
        nearest.index_copy_(0, scene, torch.where(closer, hits, before))
        which.index_copy_(0, scene, which.index_select(0, scene).masked_fill(closer, number))
    return nearest, which


def product(groups: list[Group], factors: list[Tensor], like: Tensor) -> Tensor:
    """The factors `[p, m]` of the objects of each group, multiplied scene by scene: `[n, m]`, as `like` is."""
    if groups[0].alone:
        return factors[0]
    total = torch.ones_like(like)
    for _, scene, factor in _in_order(groups, factors):
        total.index_copy_(0, scene, total.index_select(0, scene) * factor)
    return total


def mark(group: Group, hidden: Tensor, blocked: Tensor) -> Tensor:
    """`hidden` `[n, m]`, or blocked for any of the objects `[p, m]`."""
    points = torch.nonzero(blocked.flatten())[:, 0]
    num_rays = hidden.shape[1]
    target = group.scene[points // num_rays] * num_rays + points % num_rays
    return hidden.flatten().index_fill(0, target, True).reshape(hidden.shape)


def _in_order(groups: list[Group], values: list[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Values `[p, m]` of the objects of each group, by their number in their scene: number, scenes, values.

    No scene is there twice, and each of them sees its objects in the same order in any batch.
    """
    for number in range(1 + max(int(group.number.max()) for group in groups)):
        for group, value in zip(groups, values, strict=True):
            chosen = torch.nonzero(group.number == number)[:, 0]
            if len(chosen):
                yield number, group.scene[chosen], value.index_select(0, chosen)


def _hits(group: Group, origin: Vector, direction: Vector, limit: Tensor) -> Tensor:
    """z_depth at which rays enter the objects `[p, m]`, infinite where they do not before `limit`."""
    limit = group.of_scenes(limit)
    local_origin = to_local(group, of_objects(group, origin))
    local_direction = turn_to_local(group, of_objects(group, direction))
    enter, leave = box_hits(rows(group.objects.extent), local_origin, local_direction)
    leave = torch.minimum(leave, limit)
    rays = torch.nonzero((enter < leave).flatten())[:, 0]
    which = rays // limit.shape[1]
    start, end = enter.flatten()[rays], leave.flatten()[rays]
    dims = group.dimensions(which)
    t = first_hits(group.shape, dims, gather(local_origin, which), gather(local_direction, rays), start, end)
    hits = put(torch.full_like(limit, torch.inf), rays, t)
    return torch.where(hits < limit, hits, torch.inf)


def shadow(group: Group, light: Vector, local_point: Vector, wanted: Tensor) -> Tensor:
    """Where objects hide the light from a wanted point, bool `[p, m]`.

    Args:
        group: The objects.
        light: Towards the light in each object's frame, `[p, 1]`.
        local_point: In each object's frame `[p, m]`.
        wanted: Bool `[p, m]`.
    """
    enter, leave = box_hits(rows(group.objects.extent), local_point, light)
    points = torch.nonzero((wanted & (enter < leave) & (leave > 0.0)).flatten())[:, 0]
    which = points // wanted.shape[1]
    start, end = enter.flatten()[points].clamp(min=0.0), leave.flatten()[points]
    dims = group.dimensions(which)
    blocked = is_blocked(group.shape, dims, gather(local_point, points), gather(light, which), start, end)
    return put(torch.zeros_like(wanted), points, blocked)


def contact(group: Group, yawed_point: Vector) -> Tensor:
    """How much of the ambient light reaches the ground near the objects `[p, m]`, as if they stood on it.

    Args:
        group: The objects.
        yawed_point: Seen from their feet, turned by their yaw alone, `[p, m]`.
    """
    half_x, height, half_z = rows(group.objects.extent)
    cos, sin = group.objects.tilt[:, :1], group.objects.tilt[:, 1:]
    half_x, aside = cos.abs() * half_x + sin.abs() * (0.5 * height), sin * (0.5 * height)
    x, z = (yawed_point[0] + aside) / (half_x + 0.1), yawed_point[2] / (half_z + 0.1)
    near = (1.0 - 0.3 * (x * x + z * z)).clamp(min=0.0)
    return 1.0 - 0.45 * near * near


def of_objects(group: Group, vector: Vector) -> Vector:
    """Vectors of the scenes `[n, any]` for each object `[p, any]`."""
    return group.of_scenes(vector[0]), group.of_scenes(vector[1]), group.of_scenes(vector[2])


def to_local(group: Group, point: Vector) -> Vector:
    """Points of the scenes' frames `[p, m]` in the frames of the objects."""
    return lean(group, yaw(group, from_foot(group, point)))


def turn_to_local(group: Group, vector: Vector) -> Vector:
    """Vectors of the scenes' frames `[p, m]` in the frames of the objects."""
    return lean(group, yaw(group, vector))


def from_foot(group: Group, point: Vector) -> Vector:
    """Points `[p, m]` as seen from the objects' feet."""
    foot = rows(group.objects.foot)
    return point[0] - foot[0], point[1] - foot[1], point[2] - foot[2]


def yaw(group: Group, vector: Vector) -> Vector:
    """Vectors of the scenes' frames `[p, m]`, turned by the objects' yaw; y points up."""
    cos, sin = group.objects.turn[:, :1], group.objects.turn[:, 1:]
    return cos * vector[0] + sin * vector[2], -vector[1], cos * vector[2] - sin * vector[0]


def lean(group: Group, vector: Vector) -> Vector:
    """Yawed vectors `[p, m]` in the objects' own frames."""
    cos, sin = group.objects.tilt[:, :1], group.objects.tilt[:, 1:]
    if not sin.any():  # upright: the products would change no value
        return vector
    return cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]


def to_scene(group: Group, vector: Vector, which: Tensor) -> Vector:
    """Vectors of the frames of the objects `which` in those of their scenes: the inverse of `turn_to_local`."""
    cos, sin = group.objects.tilt[which].unbind(-1)
    x, y = cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]
    cos, sin = group.objects.turn[which].unbind(-1)
    return cos * x - sin * vector[2], -y, sin * x + cos * vector[2]


def put(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`values` with `new` at the flat positions `index`."""
    return values.flatten().index_copy(0, index, new).reshape(values.shape)


def put_each(vector: Vector, index: Tensor, new: Vector) -> Vector:
    """`put` for each component."""
    return put(vector[0], index, new[0]), put(vector[1], index, new[1]), put(vector[2], index, new[2])


def rows(vectors: Tensor) -> Vector:
    """`[n, 3]` to three `[n, 1]`, which broadcast over rays."""
    return vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
