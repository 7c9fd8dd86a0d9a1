"""Colours of toy scenes: what light, shadow and textures make of the surfaces that rays meet first.

Legend: n scenes, m rays a scene, p objects of a class among them, k rays that meet one of those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.toyscenes.layout import ToyScenes, reshape, select
from vq3dcli.toyscenes.objects import (
    Group,
    contact,
    from_foot,
    lean,
    mark,
    of_objects,
    product,
    put,
    put_each,
    rows,
    shadow,
    to_local,
    to_scene,
    turn_to_local,
    yaw,
)
from vq3dcli.toyscenes.photos import PhotoBank, PhotoPatch, paint_photo
from vq3dcli.toyscenes.shapes import union
from vq3dcli.toyscenes.textures import Colour, paint, with_ray_axis
from vq3dcli.toyscenes.tracing import Vector, along, dot, gather, norm, normals

_LIFT_M = 0.01  # points of the object look for their own shadow from this far above the surface
_FADE_M = 9.0  # from the pivot, where the textures of the ground have half of their contrast


class Hits(NamedTuple):
    """What rays meet: z_depth `[n, m]`, infinite where they do not meet it or too late.

    Attributes:
        ground: Of the ground.
        wall: Of the wall.
        objects: Of the first object.
        which: Its number in its scene, int8.
    """

    ground: Tensor
    wall: Tensor
    objects: Tensor
    which: Tensor

    @property
    def nearest(self) -> Tensor:
        """z_depth of the first surface, infinite in the sky."""
        return union((self.ground, self.wall, self.objects))


class _Seen(NamedTuple):
    """What rays see of the objects of a class.

    Attributes:
        local_point: All points that rays meet, in the frames of the objects `[p, m]`.
        local_light: Towards the light, in their frames `[p, 1]`.
        rays: Flat positions in `[p, m]` of the points on the objects themselves, int64 `[k]`.
        which: The object of each of those.
        target: Their flat positions in `[n, m]`.
        point: They, in the frames of the objects.
        normal: Unit vectors in the frames of the objects.
        facing: Cosine between the normal and the light, 0 for what is turned away.
    """

    local_point: Vector
    local_light: Vector
    rays: Tensor
    which: Tensor
    target: Tensor
    point: Vector
    normal: Vector
    facing: Tensor


def shade(
    scenes: ToyScenes,
    groups: list[Group],
    origin: Vector,
    direction: Vector,
    view: Vector,
    hits: Hits,
    ray_width: Tensor,
) -> Tensor:
    """Colours `[n, 3, m]` in [0, 1] of what the rays meet first.

    Args:
        scenes: n of them.
        groups: Their objects.
        origin: In the scenes' frames `[n, 1]`.
        direction: In the scenes' frames `[n, m]`.
        view: The directions in the world `[n, m]`.
        hits: What they meet.
        ray_width: What a ray covers across at z_depth 1 `[n, 1]`.
    """
    nearest = hits.nearest
    solid = nearest < torch.inf
    on_wall, on_some = hits.wall == nearest, solid & (hits.objects == nearest)
    point = along(origin, direction, nearest.clamp(max=1e4))  # the sky's points are finite, and not used
    light = rows(scenes.light)
    seen, reached = [], []
    for group in groups:
        yawed = yaw(group, from_foot(group, of_objects(group, point)))
        on_object = on_some
        if not group.alone:
            on_object = group.of_scenes(on_some) & (group.of_scenes(hits.which) == group.number[:, None])
        seen.append(_points_seen(group, light, lean(group, yawed), on_object))
        reached.append(contact(group, yawed))
    ambient_reach = product(groups, reached, nearest)
    lit = _lit(scenes, groups, seen, point, solid)

    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    facing_wall = (-light[0] * sin - light[2] * cos).clamp(min=0.0)
    ambient = scenes.ambient[:, None]
    ground_light = ambient * ambient_reach - (1.0 - ambient) * 1.2 * light[1] * lit
    wall_light = ambient * 1.1 + (1.0 - ambient) * facing_wall * lit

    squared = point[0] * point[0] + point[2] * point[2]
    fade = squared / (squared + _FADE_M * _FADE_M)
    haze_m = scenes.haze_m[:, None]
    haze = torch.where(scenes.has_wall[:, None], 0.0, squared / (squared + haze_m * haze_m))
    wall_u = point[0] * cos - point[2] * sin
    ground = paint(with_ray_axis(scenes.ground), point[0], point[2], contrast=1.0 - fade)
    wall = paint(with_ray_axis(scenes.wall), wall_u, point[1])
    up = (direction[1] * (-2.0) / norm(direction)).clamp(0.0, 1.0)
    sky = _sky(scenes, up)
    if scenes.photos is not None:
        bank, width = scenes.photos.bank, ray_width * nearest
        # The geometric mean of what a ray covers along the ground and across.
        ground_width = width * (norm(direction) / direction[1].abs().clamp(min=0.02)).sqrt()
        on_ground, ahead = solid & (hits.ground == nearest), view[2].clamp(min=0.05)
        ground = _photo_on_plane(
            bank, scenes.photos.ground, ground, point[0], -point[2], ground_width, on_ground & ~on_wall
        )
        wall = _photo_on_plane(bank, scenes.photos.wall, wall, wall_u, point[1], width, solid & on_wall)
        backdrop = scenes.photos.backdrop
        sky = _photo_on_plane(bank, backdrop, sky, view[0] / ahead, view[1] / ahead, ray_width / ahead, ~solid)
    channels = []
    for i in range(3):
        floor = ground[i] * ground_light
        colour = torch.where(on_wall, wall[i] * wall_light, floor + (scenes.horizon[:, i : i + 1] - floor) * haze)
        channels.append(torch.where(solid, colour, sky[i]))
    for group, some in zip(groups, seen, strict=True):
        width = (ray_width * nearest).flatten()[some.target]
        painted = _object_colour(scenes, group, some, some.facing * lit.flatten()[some.target], width)
        channels = [put(colour, some.target, new) for colour, new in zip(channels, painted, strict=True)]
    return torch.stack(channels, 1).clamp(0.0, 1.0)


def _points_seen(group: Group, light: Vector, local_point: Vector, on_object: Tensor) -> _Seen:
    """What rays see of objects; the light is in the scenes' frames, `on_object` bool `[p, m]`."""
    num_rays = on_object.shape[1]
    rays = torch.nonzero(on_object.flatten())[:, 0]
    which = rays // num_rays
    point = gather(local_point, rays)
    normal = normals(group.shape, group.dimensions(which), point)
    local_light = turn_to_local(group, of_objects(group, light))
    facing = dot(normal, gather(local_light, which)).clamp(min=0.0)
    target = group.scene[which] * num_rays + rays % num_rays
    return _Seen(local_point, local_light, rays, which, target, point, normal, facing)


def _lit(scenes: ToyScenes, groups: list[Group], seen: list[_Seen], point: Vector, solid: Tensor) -> Tensor:
    """1.0 where the light arrives at points `[n, m]`, else 0.0; `solid` are those that lie on a surface."""
    several = scenes.objects.class_index.shape[1] > 1
    wanted, raised = solid, point
    if several:
        for group, some in zip(groups, seen, strict=True):
            wanted = put(wanted, some.target, some.facing > 0.0)
            lift = to_scene(group, some.normal, some.which)
            raised = put_each(raised, some.target, along(gather(point, some.target), lift, _lift(some)))
    hidden = torch.zeros_like(solid)
    for group, some in zip(groups, seen, strict=True):
        local_point = to_local(group, of_objects(group, raised)) if several else some.local_point
        seen_from = put_each(local_point, some.rays, along(some.point, some.normal, _lift(some)))
        casts = (some.facing > 0.0) & group.shape.casts_on_itself
        asked = put(group.of_scenes(wanted & ~hidden), some.rays, casts)
        hidden = mark(group, hidden, shadow(group, some.local_light, seen_from, asked))
    return 1.0 - hidden.to(point[0].dtype)


def _lift(some: _Seen) -> Tensor:
    return torch.full_like(some.facing, _LIFT_M)


def _sky(scenes: ToyScenes, up: Tensor) -> Colour:
    red, green, blue = (
        scenes.horizon[:, i : i + 1] + (scenes.zenith[:, i : i + 1] - scenes.horizon[:, i : i + 1]) * up
        for i in range(3)
    )
    return red, green, blue


def _photo_on_plane(
    bank: PhotoBank, patch: PhotoPatch, colours: Colour, u: Tensor, v: Tensor, width: Tensor, seen: Tensor
) -> Colour:
    """Colours of a surface of each scene `[n, m]`, those of photos where it has one and a ray meets it (`seen`)."""
    rays = torch.nonzero((seen & (patch.photo >= 0)[:, None]).flatten())[:, 0]
    u, v, width = gather((u, v, width), rays)
    painted = paint_photo(bank, select(patch, rays // seen.shape[1]), u, v, width)
    red, green, blue = (put(colour, rays, new) for colour, new in zip(colours, painted, strict=True))
    return red, green, blue


def _object_colour(scenes: ToyScenes, group: Group, some: _Seen, diffuse: Tensor, width: Tensor) -> Colour:
    """Colours of the points of objects `[k]`.

    Args:
        scenes: All scenes.
        group: The objects.
        some: Their points.
        diffuse: Light that arrives from the light's direction, in [0, 1], `[k]`.
        width: What rays cover of a surface that faces them `[k]`.
    """
    objects, which, point = group.objects, some.which, some.point
    ambient = scenes.ambient[group.scene][which]
    light_level = ambient * (1.0 + 0.25 * some.normal[1]) + (1.15 - ambient) * diffuse
    colour = paint(select(objects.texture, which), point[0] + point[2], point[1])
    if scenes.photos is not None:
        colour = _photo_on_objects(scenes.photos.bank, group, scenes.photos.objects, some, colour, width)
    if group.shape.num_accents:
        pieces = group.shape.pieces(*point, group.dimensions(which))
        accented = union(pieces[-group.shape.num_accents :]) < union(pieces[: -group.shape.num_accents])
        red, green, blue = objects.accent[which].unbind(-1)
        accent = (red, green, blue)
        if scenes.photos is not None:
            accent = _photo_on_objects(scenes.photos.bank, group, scenes.photos.accents, some, accent, width)
        colour = (
            torch.where(accented, accent[0], colour[0]),
            torch.where(accented, accent[1], colour[1]),
            torch.where(accented, accent[2], colour[2]),
        )
    return colour[0] * light_level, colour[1] * light_level, colour[2] * light_level


def _photo_on_objects(
    bank: PhotoBank, group: Group, patches: PhotoPatch, some: _Seen, colour: Colour, width: Tensor
) -> Colour:
    """Colours of points of objects `[k]`; photos, where the objects have one, are laid on from the nearest axis."""
    most = patches.photo.shape[1]
    patch = select(reshape(patches, (-1,), 2), group.scene * most + group.number)
    across, up, ahead = (component.abs() for component in some.normal)
    on_top = up >= torch.maximum(across, ahead)
    u = torch.where(~on_top & (across > ahead), some.point[2], some.point[0])
    v = torch.where(on_top, some.point[2], -some.point[1])
    return _photographed(bank, patch, some.which, colour, u, v, width)


def _photographed(
    bank: PhotoBank, patch: PhotoPatch, which: Tensor, colour: Colour, u: Tensor, v: Tensor, width: Tensor
) -> Colour:
    """Colours of k points, those of photos where the patch `which` of a point has one."""
    chosen = torch.nonzero(patch.photo[which] >= 0)[:, 0]
    u, v, width = u[chosen], v[chosen], width[chosen]
    painted = paint_photo(bank, select(patch, which[chosen]), u, v, width)
    red, green, blue = (old.index_copy(0, chosen, new) for old, new in zip(colour, painted, strict=True))
    return red, green, blue
