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

from vq3dcli.toyscenes.layout import ToyObjects, ToyScenes
from vq3dcli.toyscenes.shapes import SHAPES, Dimensions, Shape
from vq3dcli.toyscenes.tracing import Vector, box_hits, first_hits, gather, is_blocked


class Group(NamedTuple):
    """Objects of one class among n scenes."""

    shape: Shape  # what the class looks like
    objects: ToyObjects  # p of them, without an axis of scenes
    scene: Tensor  # the scene of each, int64 `[p]`
    number: Tensor  # which object of its scene each is, int64 `[p]`
    alone: bool  # these are all objects, one a scene: values of the scenes are values of the objects

    def of_scenes(self, values: Tensor) -> Tensor:
        """Values of the scenes `[n, ...]` for each object `[p, ...]`."""
        return values if self.alone else values.index_select(0, self.scene)

    def dimensions(self, which: Tensor) -> Dimensions:
        """The shape's dimensions for points of the objects numbered by `which`."""
        return [self.objects.dimensions[:, i][which] for i in range(len(self.shape.ranges_m))]

    def yawed(self, vector: Vector, *, is_point: bool) -> Vector:
        """Vectors, or points, of the scenes' frames `[n, m]`, seen from the objects' feet and turned by their yaw."""
        x, y, z = (self.of_scenes(component) for component in vector)
        if is_point:
            foot = rows(self.objects.foot)
            x, y, z = x - foot[0], y - foot[1], z - foot[2]
        cos, sin = self.objects.turn[:, :1], self.objects.turn[:, 1:]
        return cos * x + sin * z, -y, cos * z - sin * x

    def leaned(self, vector: Vector) -> Vector:
        """Yawed vectors `[p, m]` in the objects' own frames."""
        cos, sin = self.objects.tilt[:, :1], self.objects.tilt[:, 1:]
        if not sin.any():  # upright: the products would change no value
            return vector
        return cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]

    def local(self, vector: Vector, *, is_point: bool = False) -> Vector:
        """Vectors, or points, of the scenes' frames `[n, m]` in the frames of the objects `[p, m]`."""
        return self.leaned(self.yawed(vector, is_point=is_point))

    def to_scene(self, vector: Vector, which: Tensor) -> Vector:
        """Vectors of the frames of the objects `which` in those of their scenes: the inverse of `local`."""
        cos, sin = self.objects.tilt[which].unbind(-1)
        x, y = cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]
        cos, sin = self.objects.turn[which].unbind(-1)
        return cos * x - sin * vector[2], -y, sin * x + cos * vector[2]

    def hits(self, origin: Vector, direction: Vector, limit: Tensor) -> Tensor:
        """z_depth at which rays enter the objects `[p, m]`, infinite where they do not before `limit` `[n, m]`."""
        limit = self.of_scenes(limit)
        origin, direction = self.local(origin, is_point=True), self.local(direction)
        enter, leave = box_hits(rows(self.objects.extent), origin, direction)
        leave = torch.minimum(leave, limit)
        rays = torch.nonzero((enter < leave).flatten())[:, 0]
        which = rays // limit.shape[1]
        start, end = enter.flatten()[rays], leave.flatten()[rays]
        t = first_hits(self.shape, self.dimensions(which), gather(origin, which), gather(direction, rays), start, end)
        hits = put(torch.full_like(limit, torch.inf), rays, t)
        return torch.where(hits < limit, hits, torch.inf)

    def shadow(self, light: Vector, point: Vector, asked: Tensor) -> Tensor:
        """Where objects hide the light from points in question (bool), all `[p, m]` and in the objects' frames."""
        enter, leave = box_hits(rows(self.objects.extent), point, light)
        points = torch.nonzero((asked & (enter < leave) & (leave > 0.0)).flatten())[:, 0]
        which = points // asked.shape[1]
        start, end = enter.flatten()[points].clamp(min=0.0), leave.flatten()[points]
        blocked = is_blocked(
            self.shape, self.dimensions(which), gather(point, points), gather(light, which), start, end
        )
        return put(torch.zeros_like(asked), points, blocked)

    def contact(self, yawed_point: Vector) -> Tensor:
        """How much of the ambient light reaches the ground near the objects `[p, m]`, as if they stood on it."""
        half_x, height, half_z = rows(self.objects.extent)
        cos, sin = self.objects.tilt[:, :1], self.objects.tilt[:, 1:]
        half_x, aside = cos.abs() * half_x + sin.abs() * (0.5 * height), sin * (0.5 * height)
        x, z = (yawed_point[0] + aside) / (half_x + 0.1), yawed_point[2] / (half_z + 0.1)
        near = (1.0 - 0.3 * (x * x + z * z)).clamp(min=0.0)
        return 1.0 - 0.45 * near * near


def groups_by_class(scenes: ToyScenes) -> list[Group]:
    """The objects of n scenes."""
    count, most = scenes.objects.class_index.shape
    flat = scenes.objects.class_index.flatten()
    groups = []
    for number, shape in enumerate(SHAPES):
        members = torch.nonzero(flat == number)[:, 0]
        if len(members):
            alone = most == 1 and len(members) == count
            scene, number_there = members // most, members % most
            groups.append(Group(shape, scenes.objects.select((scene, number_there)), scene, number_there, alone))
    return groups


def nearest_objects(groups: list[Group], origin: Vector, direction: Vector, limit: Tensor) -> tuple[Tensor, Tensor]:
    """z_depth of the first object on each ray, infinite where there is none before `limit`, and which one: `[n, m]`."""
    hits = [group.hits(origin, direction, limit) for group in groups]
    which = torch.zeros_like(limit, dtype=torch.int8)
    if groups[0].alone:
        return hits[0], which
    nearest = torch.full_like(limit, torch.inf)
    for number, scene, own in _in_order(groups, hits):
        before = nearest.index_select(0, scene)
        closer = own < before
        nearest.index_copy_(0, scene, torch.where(closer, own, before))
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


def _in_order(groups: list[Group], values: list[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Values `[p, m]` of the objects of each group, by their number in their scene: number, scenes, values.

    No scene is there twice, and each of them sees its objects in the same order in any batch.
    """
    for number in range(1 + max(int(group.number.max()) for group in groups)):
        for group, value in zip(groups, values, strict=True):
            chosen = torch.nonzero(group.number == number)[:, 0]
            if len(chosen):
                yield number, group.scene[chosen], value.index_select(0, chosen)


def put(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`values` with `new` at the flat positions `index`."""
    return values.flatten().index_copy(0, index, new).reshape(values.shape)


def put_each(vector: Vector, index: Tensor, new: Vector) -> Vector:
    """`put` for each component."""
    return put(vector[0], index, new[0]), put(vector[1], index, new[1]), put(vector[2], index, new[2])


def rows(vectors: Tensor) -> Vector:
    """`[n, 3]` to three `[n, 1]`, which broadcast over rays."""
    return vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
