"""Procedural scenes with exact disparity from any camera: one object on a textured ground, before a wall or the sky.

Scene i of a seed is a pure function of (seed, purpose, i). On CPU its parameters and pictures have the same bytes
whatever else is in the batch and however many threads run: per-ray work is elementwise and uses only operations that
IEEE 754 rounds exactly (sums, products, quotients, roots), since vectorised sines and exponentials may round
differently at the end of an array. Other devices agree up to rounding.

Disparity comes from the same planes and traced surfaces as the colours; surfaces are bracketed and bisected to well
under 1e-4 m of z_depth. Everything lies beyond NEAR for cameras on the pivot sphere within +-20 degrees of yaw and
+-10 of pitch.

Data flow of a picture: rays -> planes (in closed form) and object (traced inside its box) -> nearest -> s
                                                                                          -> colours -> mean -> uint8

Legend: n scenes, m rays a scene, k rays that meet the object. World axes as in `rendering/cameras.py` (y down); the
object's own frame has y up from the ground.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.data.toylayout import CLASS_NAMES, ToyScenes, sample_scenes, select
from vq3dcli.data.toyshapes import SHAPES, Shape, union
from vq3dcli.data.toytextures import paint, with_ray_axis
from vq3dcli.data.toytracing import (
    Vector,
    along,
    box_hits,
    dot,
    first_hits,
    gather,
    is_blocked,
    norm,
    normals,
)
from vq3dcli.rendering.cameras import CAMERA_RADIUS, Camera, pixel_centres, s_from_z_depth

__all__ = ["CLASS_NAMES", "ToyScenes", "ToyViews", "render_scenes", "sample_scenes"]

_MAX_RAYS = 1 << 17  # traced together; bounds the memory at about 100 MB
_LIFT_M = 0.01  # points of the object look for their own shadow from this far above the surface
_HAZE_M = 9.0  # from the pivot, where distant ground has half of the horizon's colour


class ToyViews(NamedTuple):
    """Pictures of scenes.

    Attributes:
        rgb: uint8 `[n, 3, height, width]`.
        s: Normalised disparity at the pixel centres, float32 `[n, height, width]`, in [0, 1]; 0 is the sky.
    """

    rgb: Tensor
    s: Tensor


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small operations are slower on several threads, and twenty times so when the machine is busy.

    The setting leaks from one thread into others, where undoing it does not reach, so only the main thread changes it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@_one_thread()
def render_scenes(scenes: ToyScenes, camera: Camera, *, supersample: int = 2) -> ToyViews:
    """Pictures and exact disparity, on one core; large batches are faster, since scenes of a class go together.

    Args:
        scenes: n scenes.
        camera: n cameras, one a scene.
        supersample: A pixel's colour is the mean of supersample^2 rays. Its disparity is that of its centre, unmixed.

    Raises:
        ValueError: There are not as many cameras as scenes, or supersample is not positive.
    """
    if camera.cam_to_world.shape[0] != len(scenes):
        raise ValueError(f"{camera.cam_to_world.shape[0]} cameras for {len(scenes)} scenes")
    if supersample < 1:
        raise ValueError(f"supersample is {supersample}, not at least 1")
    device = camera.cam_to_world.device
    num_pixels = camera.height_px * camera.width_px
    rgb = torch.empty(len(scenes), 3, num_pixels, dtype=torch.uint8, device=device)
    s = torch.empty(len(scenes), num_pixels, device=device)
    pixels = pixel_centres(camera.height_px, camera.width_px, device)
    rays_a_pixel = supersample * supersample + 1
    block_px = max(1, min(num_pixels, _MAX_RAYS // rays_a_pixel))
    for shape, group in _groups_of_one_class(scenes, max(1, _MAX_RAYS // (rays_a_pixel * block_px))):
        some = select(scenes, group)
        cameras = Camera(camera.cam_to_world[group], camera.intrinsics[group], camera.height_px, camera.width_px)
        for start in range(0, num_pixels, block_px):
            block = slice(start, start + block_px)
            rgb[group, :, block], s[group, block] = _render_pixels(some, shape, cameras, pixels[block], supersample)
    size = (camera.height_px, camera.width_px)
    return ToyViews(rgb.reshape(-1, 3, *size), s.reshape(-1, *size))


def _groups_of_one_class(scenes: ToyScenes, largest: int) -> Iterator[tuple[Shape, Tensor]]:
    for number, shape in enumerate(SHAPES):
        members = torch.nonzero(scenes.class_index == number)[:, 0]
        for group in members.split(largest):
            if len(group):
                yield shape, group


def _render_pixels(
    scenes: ToyScenes, shape: Shape, camera: Camera, pixels: Tensor, supersample: int
) -> tuple[Tensor, Tensor]:
    """Colours uint8 `[n, 3, pixels]` and s `[n, pixels]` of scenes of one class."""
    count = pixels.shape[0]
    offsets = [(i + 0.5) / supersample - 0.5 for i in range(supersample)]
    shifts = torch.tensor([[dx, dy] for dy in offsets for dx in offsets] + [[0.0, 0.0]], device=pixels.device)
    origin = _to_level(scenes, _rows(camera.cam_to_world[:, :3, 3]))
    direction = _to_level(scenes, _directions(camera, (pixels + shifts[:, None]).reshape(-1, 2)))
    hits = _first_hits(scenes, shape, origin, direction)
    s = s_from_z_depth(union(hits)[:, -count:])

    # The last `count` rays are the pixel centres, which only disparity uses.
    red, green, blue = (component[:, :-count] for component in direction)
    to_ground, to_wall, to_object = (hit[:, :-count] for hit in hits)
    colour = _shade(scenes, shape, origin, (red, green, blue), (to_ground, to_wall, to_object))
    total = colour[..., :count].clone()
    for i in range(1, supersample * supersample):  # in a fixed order, so that the sum has the same bits everywhere
        total += colour[..., i * count : (i + 1) * count]
    mean = total * (255.0 / (supersample * supersample))
    return mean.round().clamp(0.0, 255.0).to(torch.uint8), s


def _first_hits(scenes: ToyScenes, shape: Shape, origin: Vector, direction: Vector) -> Vector:
    """z_depth of the ground, the wall and the object `[n, m]`, infinite where a ray does not meet them or too late."""
    to_ground = (scenes.ground_y[:, None] - origin[1]) / direction[1]
    to_ground = torch.where(direction[1] > 0.0, to_ground, torch.inf)
    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    # Points of the wall: x sin + (z - wall_z) cos = 0.
    gap = (scenes.wall_z_depth[:, None] - CAMERA_RADIUS - origin[2]) * cos - origin[0] * sin
    speed = direction[0] * sin + direction[2] * cos
    to_wall = torch.where((speed > 0.0) & scenes.has_wall[:, None], gap / speed, torch.inf)
    limit = torch.minimum(to_ground, to_wall)

    num_rays = limit.shape[1]
    local_origin, local_direction = _to_local(scenes, origin), _turn_to_local(scenes, direction)
    enter, leave = box_hits(_rows(scenes.extent), local_origin, local_direction)
    leave = torch.minimum(leave, limit)
    rays = torch.nonzero((enter < leave).flatten())[:, 0]
    scene = rays // num_rays
    dims = _dimensions(scenes, shape, scene)
    start, end = enter.flatten()[rays], leave.flatten()[rays]
    t = first_hits(shape, dims, gather(local_origin, scene), gather(local_direction, rays), start, end)
    to_object = _put(torch.full_like(limit, torch.inf), rays, t)
    return to_ground, to_wall, torch.where(to_object < limit, to_object, torch.inf)


def _shade(scenes: ToyScenes, shape: Shape, origin: Vector, direction: Vector, hits: Vector) -> Tensor:
    """Colours `[n, 3, m]` in [0, 1] of what the rays meet first."""
    nearest = union(hits)
    solid = nearest < torch.inf
    on_wall = hits[1] == nearest
    on_object = solid & (hits[2] == nearest)
    point = along(origin, direction, nearest.clamp(max=1e4))  # the sky's points are finite, and not used
    local_point = _to_local(scenes, point)

    rays = torch.nonzero(on_object.flatten())[:, 0]
    scene = rays // nearest.shape[1]
    object_point = gather(local_point, rays)
    dims = _dimensions(scenes, shape, scene)
    normal = normals(shape, dims, object_point)
    light = _rows(scenes.light)
    facing = dot(normal, gather(_turn_to_local(scenes, light), scene)).clamp(min=0.0)

    casts = (facing > 0.0) & shape.casts_on_itself
    lifted = along(object_point, normal, torch.full_like(facing, _LIFT_M))
    seen_from = (
        _put(local_point[0], rays, lifted[0]),
        _put(local_point[1], rays, lifted[1]),
        _put(local_point[2], rays, lifted[2]),
    )
    lit = 1.0 - _shadow(scenes, shape, seen_from, _put(solid, rays, casts))

    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    facing_wall = (-light[0] * sin - light[2] * cos).clamp(min=0.0)
    ambient = scenes.ambient[:, None]
    ground_light = ambient * _contact(scenes, local_point) - (1.0 - ambient) * 1.2 * light[1] * lit
    wall_light = ambient * 1.1 + (1.0 - ambient) * facing_wall * lit

    squared = point[0] * point[0] + point[2] * point[2]
    haze = squared / (squared + _HAZE_M * _HAZE_M)
    ground = paint(with_ray_axis(scenes.ground), point[0], point[2], contrast=1.0 - haze)
    wall = paint(with_ray_axis(scenes.wall), point[0] * cos - point[2] * sin, point[1])
    haze = torch.where(scenes.has_wall[:, None], 0.0, haze)
    up = (direction[1] * (-2.0) / norm(direction)).clamp(0.0, 1.0)
    painted = _object_colour(scenes, shape, scene, object_point, normal, facing * lit.flatten()[rays])
    channels = []
    for i in range(3):
        horizon, zenith = scenes.horizon[:, i : i + 1], scenes.zenith[:, i : i + 1]
        floor = ground[i] * ground_light
        colour = torch.where(on_wall, wall[i] * wall_light, floor + (horizon - floor) * haze)
        colour = torch.where(solid, colour, horizon + (zenith - horizon) * up)
        channels.append(_put(colour, rays, painted[i]))
    return torch.stack(channels, 1).clamp(0.0, 1.0)


def _shadow(scenes: ToyScenes, shape: Shape, local_point: Vector, wanted: Tensor) -> Tensor:
    """1.0 where the object hides the light from a wanted point, else 0.0: `[n, m]`."""
    light = _turn_to_local(scenes, _rows(scenes.light))
    enter, leave = box_hits(_rows(scenes.extent), local_point, light)
    points = torch.nonzero((wanted & (enter < leave) & (leave > 0.0)).flatten())[:, 0]
    scene = points // wanted.shape[1]
    dims = _dimensions(scenes, shape, scene)
    start, end = enter.flatten()[points].clamp(min=0.0), leave.flatten()[points]
    blocked = is_blocked(shape, dims, gather(local_point, points), gather(light, scene), start, end)
    return _put(torch.zeros_like(enter), points, blocked.to(enter.dtype))


def _object_colour(
    scenes: ToyScenes, shape: Shape, scene: Tensor, point: Vector, normal: Vector, diffuse: Tensor
) -> Vector:
    """Colours of k points of the objects.

    Args:
        scene: Of each point, int64 `[k]`.
        point: In the object's frame.
        normal: Unit vectors in the object's frame.
        diffuse: Light that arrives from the light's direction, in [0, 1], `[k]`.
    """
    ambient = scenes.ambient[scene]
    light_level = ambient * (1.0 + 0.25 * normal[1]) + (1.15 - ambient) * diffuse
    red, green, blue = paint(select(scenes.object_texture, scene), point[0] + point[2], point[1])
    if shape.num_accents:
        pieces = shape.pieces(*point, _dimensions(scenes, shape, scene))
        accented = union(pieces[-shape.num_accents :]) < union(pieces[: -shape.num_accents])
        accent = scenes.accent[scene].unbind(-1)
        red, green, blue = (torch.where(accented, a, b) for a, b in zip(accent, (red, green, blue), strict=True))
    return red * light_level, green * light_level, blue * light_level


def _contact(scenes: ToyScenes, local_point: Vector) -> Tensor:
    """How much of the ambient light reaches the ground near the foot of the object `[n, m]`."""
    half_x, _, half_z = _rows(scenes.extent)
    x, z = local_point[0] / (half_x + 0.1), local_point[2] / (half_z + 0.1)
    near = (1.0 - 0.3 * (x * x + z * z)).clamp(min=0.0)
    return 1.0 - 0.45 * near * near


def _to_level(scenes: ToyScenes, vector: Vector) -> Vector:
    """World vectors `[n, m]` in the frames of the scenes: a turn around the x axis, which leaves z_depth as it is."""
    cos, sin = scenes.elevation[:, :1], scenes.elevation[:, 1:]
    return vector[0], cos * vector[1] + sin * vector[2], cos * vector[2] - sin * vector[1]


def _to_local(scenes: ToyScenes, point: Vector) -> Vector:
    """Points of the scenes' frames `[n, m]` in the frames of the objects."""
    x = point[0] - scenes.object_xz[:, :1]
    z = point[2] - scenes.object_xz[:, 1:]
    return _turn_to_local(scenes, (x, point[1] - scenes.ground_y[:, None], z))


def _turn_to_local(scenes: ToyScenes, vector: Vector) -> Vector:
    cos, sin = scenes.object_turn[:, :1], scenes.object_turn[:, 1:]
    return cos * vector[0] + sin * vector[2], -vector[1], cos * vector[2] - sin * vector[0]


def _directions(camera: Camera, pixels: Tensor) -> Vector:
    """The directions of `rays_at_pixels`, one tensor a component, which is what elementwise work is fastest on."""
    x = (pixels[:, 0] - camera.intrinsics[:, :1, 2]) / camera.intrinsics[:, :1, 0]
    y = (pixels[:, 1] - camera.intrinsics[:, 1:2, 2]) / camera.intrinsics[:, 1:2, 1]
    across, down, forward = (_rows(camera.cam_to_world[:, :3, column]) for column in range(3))
    return (
        x * across[0] + y * down[0] + forward[0],
        x * across[1] + y * down[1] + forward[1],
        x * across[2] + y * down[2] + forward[2],
    )


def _dimensions(scenes: ToyScenes, shape: Shape, scene: Tensor) -> list[Tensor]:
    """The shape's dimensions for k rays of the scenes numbered by `scene`."""
    return [scenes.dimensions[:, i][scene] for i in range(len(shape.ranges_m))]


def _put(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`values` with `new` `[k]` at the flat positions `index`."""
    return values.flatten().index_copy(0, index, new).reshape(values.shape)


def _rows(vectors: Tensor) -> Vector:
    """`[n, 3]` to three `[n, 1]`, which broadcast over rays."""
    return vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
