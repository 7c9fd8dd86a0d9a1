"""Colours of toy scenes: what light, shadow and textures make of the surfaces that rays meet first.

Legend: n scenes, m rays a scene, p objects of a class among them, k rays that meet one of those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.toyscenes.layout import ToyScenes
from vq3dcli.toyscenes.objects import Group, product, put, put_each, rows
from vq3dcli.toyscenes.photos import PhotoBank, paint_photo
from vq3dcli.toyscenes.shapes import union
from vq3dcli.toyscenes.textures import Colour, paint
from vq3dcli.toyscenes.tracing import Vector, along, dot, gather, norm, normals

_LIFT_M = torch.tensor(0.01)  # points of the object look for their own shadow from this far above the surface
_FADE_M = 9.0  # from the pivot, where the textures of the ground have half of their contrast


class Hits(NamedTuple):
    """What rays meet: z_depth `[n, m]`, infinite where they do not meet it or too late."""

    ground: Tensor  # of the ground
    wall: Tensor  # of the wall
    objects: Tensor  # of the first object
    which: Tensor  # its number in its scene, int8

    @property
    def nearest(self) -> Tensor:
        """z_depth of the first surface, infinite in the sky."""
        return union((self.ground, self.wall, self.objects))


class _Seen(NamedTuple):
    """What rays see of the objects of a group."""

    local_point: Vector  # all points that rays meet, in the frames of the objects `[p, m]`
    local_light: Vector  # towards the light, in their frames `[p, 1]`
    rays: Tensor  # flat positions in `[p, m]` of the points on the objects themselves, int64 `[k]`
    which: Tensor  # the object of each of those
    target: Tensor  # their flat positions in `[n, m]`
    point: Vector  # they, in the frames of the objects
    normal: Vector  # unit vectors in the frames of the objects
    facing: Tensor  # cosine between the normal and the light, 0 for what is turned away


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

    Origins `[n, 1]` and directions `[n, m]` are in the scenes' frames, `view` the directions in the world; `ray_width`
    is what a ray covers across at z_depth 1 `[n, 1]`.
    """
    nearest, photos = hits.nearest, scenes.photos
    solid = nearest < torch.inf
    on_wall, on_some = hits.wall == nearest, solid & (hits.objects == nearest)
    point = along(origin, direction, nearest.clamp(max=1e4))  # the sky's points are finite, and not used
    light = rows(scenes.light)
    seen, reached = [], []
    for group in groups:
        yawed = group.yawed(point, is_point=True)
        on_object = on_some
        if not group.alone:
            on_object = group.of_scenes(on_some) & (group.of_scenes(hits.which) == group.number[:, None])
        seen.append(_points_seen(group, light, group.leaned(yawed), on_object))
        reached.append(group.contact(yawed))
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
    ground = paint(scenes.ground[:, None], point[0], point[2], contrast=1.0 - fade)
    wall = paint(scenes.wall[:, None], wall_u, point[1])
    zenith, horizon = rows(scenes.zenith), rows(scenes.horizon)
    up = (direction[1] * (-2.0) / norm(direction)).clamp(0.0, 1.0)
    sky = [low + (high - low) * up for low, high in zip(horizon, zenith, strict=True)]
    width = ray_width * nearest
    if photos is not None:
        # The geometric mean of what a ray covers along the ground and across.
        ground_width = width * (norm(direction) / direction[1].abs().clamp(min=0.02)).sqrt()
        on_ground, ahead = solid & (hits.ground == nearest) & ~on_wall, view[2].clamp(min=0.05)
        on_planes = (
            (ground, point[0], -point[2], ground_width, on_ground),
            (wall, wall_u, point[1], width, solid & on_wall),
            ((sky[0], sky[1], sky[2]), view[0] / ahead, view[1] / ahead, ray_width / ahead, ~solid),
        )
        ground, wall, sky = (  # type: ignore[assignment]
            _with_photos(photos.bank, patch[:, None].expand(*solid.shape, -1), *place)
            for patch, place in zip(photos.planes.unbind(1), on_planes, strict=True)
        )
    channels = []
    for i in range(3):
        floor = ground[i] * ground_light
        colour = torch.where(on_wall, wall[i] * wall_light, floor + (horizon[i] - floor) * haze)
        channels.append(torch.where(solid, colour, sky[i]))
    for group, some in zip(groups, seen, strict=True):
        painted = _object_colour(scenes, group, some, lit.flatten()[some.target], width.flatten()[some.target])
        channels = [put(colour, some.target, new) for colour, new in zip(channels, painted, strict=True)]
    return torch.stack(channels, 1).clamp(0.0, 1.0)


def _points_seen(group: Group, light: Vector, local_point: Vector, on_object: Tensor) -> _Seen:
    """What rays see of objects; the light is in the scenes' frames, `on_object` bool `[p, m]`."""
    num_rays = on_object.shape[1]
    rays = torch.nonzero(on_object.flatten())[:, 0]
    which = rays // num_rays
    point = gather(local_point, rays)
    normal = normals(group.shape, group.dimensions(which), point)
    local_light = group.local(light)
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
            lift = group.to_scene(some.normal, some.which)
            raised = put_each(raised, some.target, along(gather(point, some.target), lift, _LIFT_M))
    hidden, num_rays = torch.zeros_like(solid), solid.shape[1]
    for group, some in zip(groups, seen, strict=True):
        local_point = group.local(raised, is_point=True) if several else some.local_point
        seen_from = put_each(local_point, some.rays, along(some.point, some.normal, _LIFT_M))
        casts = (some.facing > 0.0) & group.shape.casts_on_itself
        asked = put(group.of_scenes(wanted & ~hidden), some.rays, casts)
        blocked = torch.nonzero(group.shadow(some.local_light, seen_from, asked).flatten())[:, 0]
        target = group.scene[blocked // num_rays] * num_rays + blocked % num_rays
        hidden = hidden.flatten().index_fill(0, target, True).reshape(hidden.shape)
    return 1.0 - hidden.to(point[0].dtype)


def _with_photos(
    bank: PhotoBank, patches: Tensor, colours: Colour, u: Tensor, v: Tensor, width: Tensor, seen: Tensor | None = None
) -> Colour:
    """Colours, those of photos where a point's patch `[..., 9]` has one and the point is seen (bool)."""
    shown = patches[..., 0] >= 0
    chosen = torch.nonzero((shown if seen is None else shown & seen).flatten())[:, 0]
    painted = paint_photo(bank, patches.reshape(-1, 9)[chosen], *gather((u, v, width), chosen))
    red, green, blue = (put(old, chosen, new) for old, new in zip(colours, painted, strict=True))
    return red, green, blue


def _object_colour(scenes: ToyScenes, group: Group, some: _Seen, lit: Tensor, width: Tensor) -> Colour:
    """Colours of the points of objects `[k]`.

    `lit` is 1.0 where the light arrives, else 0.0; `width` is what rays cover of a surface that faces them.
    """
    objects, which, point = group.objects, some.which, some.point
    ambient = scenes.ambient[group.scene][which]
    light_level = ambient * (1.0 + 0.25 * some.normal[1]) + (1.15 - ambient) * (some.facing * lit)
    # Photos are laid on from the nearest axis.
    across, up, ahead = (component.abs() for component in some.normal)
    on_top = up >= torch.maximum(across, ahead)
    u = torch.where(~on_top & (across > ahead), point[2], point[0])
    v = torch.where(on_top, point[2], -point[1])

    def with_photos(colour: Colour, part: int) -> Colour:
        if scenes.photos is None:
            return colour
        patches = scenes.photos.objects[group.scene, group.number, part]
        return _with_photos(scenes.photos.bank, patches[which], colour, u, v, width)

    colour = with_photos(paint(objects.texture[which], point[0] + point[2], point[1]), 0)
    if group.shape.num_accents:
        pieces = group.shape.pieces(*point, group.dimensions(which))
        accented = union(pieces[-group.shape.num_accents :]) < union(pieces[: -group.shape.num_accents])
        red, green, blue = objects.accent[which].unbind(-1)
        accent = with_photos((red, green, blue), 1)
        red, green, blue = (torch.where(accented, new, old) for new, old in zip(accent, colour, strict=True))
        colour = red, green, blue
    return colour[0] * light_level, colour[1] * light_level, colour[2] * light_level
