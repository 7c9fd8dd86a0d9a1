"""Procedural scenes with exact disparity from any camera: one object on a textured ground, before a wall or the sky.

Scene i of a seed is a pure function of (seed, purpose, i). On CPU its parameters and pictures have the same bytes
whatever else is in the batch and however many threads run: per-ray work is elementwise and uses only operations that
IEEE 754 rounds exactly (sums, products, quotients, roots), since vectorised sines and exponentials may round
differently at the end of an array. Other devices agree up to rounding.

Disparity comes from the same analytic planes and traced surfaces as the colours; surfaces are bracketed and bisected
to well under 1e-4 m of z_depth. Everything lies beyond NEAR for cameras on the pivot sphere within +-20 degrees of
yaw and +-10 of pitch.

Legend: n scenes, m rays a scene, k rays of one object. World axes as in `rendering/cameras.py` (y down).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vq3dcli.data.toyshapes import NUM_DIMENSIONS, SHAPES, Shape
from vq3dcli.rendering.cameras import CAMERA_RADIUS, Camera, pixel_centres, rays_at_pixels, s_from_z_depth
from vq3dcli.seeding import uniform

CLASS_NAMES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)

Vector = tuple[Tensor, Tensor, Tensor]

# Texture kinds: weights of U, V and U * V of two waves in [-1, 1], bias, sharpness of the edges, warp of the waves.
_TEXTURES = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],  # plain
        [0.0, 0.0, 1.0, 0.0, 2.5, 0.0],  # checker
        [1.0, 0.0, 0.0, 0.0, 2.0, 0.0],  # stripes
        [1.0, 1.0, 0.0, -0.9, 2.0, 0.0],  # dots
        [0.45, 0.35, 0.4, 0.0, 0.6, 0.6],  # smooth noise
    ]
)
_MAX_RAYS = 1 << 17  # traced together; bounds the memory at about 100 MB
_MIN_STEP_M = 1e-3  # of the tracer: surfaces are bracketed this tightly before bisection
_BISECTIONS = 5
_SLACK_M = 1e-3  # the box that holds an object is enlarged, so that rays start outside the surface


@dataclass(frozen=True)
class Texture:
    """A blend of two colours by two waves; see `_TEXTURES` for the coefficients.

    Attributes:
        colour_a: `[n, 3]` in [0, 1].
        colour_b: `[n, 3]` in [0, 1].
        coefficients: `[n, 6]`.
        frequency: Waves a metre `[n]`.
        phase: In periods `[n, 2]`.
        turn: Cosine and sine of the pattern's angle `[n, 2]`.
    """

    colour_a: Tensor
    colour_b: Tensor
    coefficients: Tensor
    frequency: Tensor
    phase: Tensor
    turn: Tensor


@dataclass(frozen=True)
class ToyScenes:
    """Parameters of n scenes. Lengths in metres, colours in [0, 1].

    Attributes:
        class_index: Index into CLASS_NAMES, int64 `[n]`.
        dimensions: Of the object, see its `Shape` `[n, NUM_DIMENSIONS]`.
        extent: Half width x, height, half width z of the object's box in its own frame `[n, 3]`.
        object_xz: Where the object stands `[n, 2]`.
        object_turn: Cosine and sine of its yaw `[n, 2]`.
        object_texture: Of its first part.
        accent: Colour of its second part `[n, 3]`.
        ground_y: Height of the ground, y down `[n]`.
        ground: Texture of the ground.
        has_wall: Bool `[n]`; scenes without a wall show the sky.
        wall_z_depth: From the canonical camera, at the middle of its view `[n]`.
        wall_turn: Cosine and sine of its yaw `[n, 2]`.
        wall: Texture of the wall.
        zenith: Colour of the sky above `[n, 3]`.
        horizon: Colour of the sky at the horizon, and of the distant ground `[n, 3]`.
        light: Unit vector towards the light `[n, 3]`.
        ambient: Share of the light that comes from everywhere `[n]`.
    """

    class_index: Tensor
    dimensions: Tensor
    extent: Tensor
    object_xz: Tensor
    object_turn: Tensor
    object_texture: Texture
    accent: Tensor
    ground_y: Tensor
    ground: Texture
    has_wall: Tensor
    wall_z_depth: Tensor
    wall_turn: Tensor
    wall: Texture
    zenith: Tensor
    horizon: Tensor
    light: Tensor
    ambient: Tensor

    def __len__(self) -> int:
        return self.class_index.shape[0]

    def select(self, index: Tensor) -> ToyScenes:
        """The scenes at the positions `index`, int64 `[any]`."""
        return _select(self, index)


class ToyViews(NamedTuple):
    """Pictures of scenes.

    Attributes:
        rgb: uint8 `[n, 3, height, width]`.
        s: Normalised disparity at the pixel centres, float32 `[n, height, width]`, in [0, 1]; 0 is the sky.
    """

    rgb: Tensor
    s: Tensor


def sample_scenes(index: Tensor, *, seed: int, purpose: str = "train") -> ToyScenes:
    """Scenes number `index` of (seed, purpose).

    Args:
        index: int64 `[n]`.
        purpose: Equal seeds under different purposes share no scenes; by convention "train" or "eval".
    """

    def draw(name: str, count: int) -> list[Tensor]:
        return list(uniform(seed, f"toyscenes/{purpose}/{name}", index, count).unbind(-1))

    kind, *size = draw("object", 1 + NUM_DIMENSIONS)
    class_index = (kind * len(SHAPES)).to(torch.int64)
    dimensions = torch.zeros(*index.shape, NUM_DIMENSIONS, device=index.device)
    extent = torch.zeros(*index.shape, 3, device=index.device)
    max_yaw_rad = torch.zeros(index.shape, device=index.device)
    for number, shape in enumerate(SHAPES):
        chosen = class_index == number
        metres = [_between(u[chosen], *limits) for u, limits in zip(size, shape.ranges_m, strict=True)]
        dimensions[chosen] = torch.stack(metres, -1)
        extent[chosen] = torch.stack(shape.extent(metres), -1)
        max_yaw_rad[chosen] = shape.max_yaw_rad

    place_x, place_z, yaw, ground_y = draw("place", 4)
    hue, contrast_hue, object_saturation, ground_saturation, wall_saturation = draw("colour", 5)
    object_value, ground_value, wall_value, accent_hue, wall_hue = draw("value", 5)
    has_wall, wall_z, wall_yaw = draw("wall", 3)
    azimuth, elevation, ambient = draw("light", 3)
    sky_hue, sky_saturation, sky_value = draw("sky", 3)

    ground_hue = hue
    object_hue = hue + _between(contrast_hue, 0.25, 0.75)  # never the hue of the ground
    azimuth_rad = _between(azimuth, -1.2, 1.2)
    sin_elevation = _between(elevation, 0.55, 0.85)
    cos_elevation = (1.0 - sin_elevation * sin_elevation).sqrt()
    light_turn = _cos_sin(azimuth_rad)
    light = torch.stack([cos_elevation * light_turn[..., 1], -sin_elevation, -cos_elevation * light_turn[..., 0]], -1)
    sky = torch.where(sky_hue < 0.75, _between(sky_hue, 0.53, 0.65), _between(sky_hue, -0.32, 0.09))
    return ToyScenes(
        class_index=class_index,
        dimensions=dimensions,
        extent=extent,
        object_xz=torch.stack([_between(place_x, -0.38, 0.38), _between(place_z, -0.45, 0.4)], -1),
        object_turn=_cos_sin((2.0 * yaw - 1.0) * max_yaw_rad),
        object_texture=_texture(
            draw("object texture", 6),
            (object_hue, _between(object_saturation, 0.5, 0.85), _between(object_value, 0.75, 1.0)),
            hue_shift=0.12,
            plain=0.45,
            frequency=(1.6, 2.8),
        ),
        accent=_rgb(object_hue + _between(accent_hue, 0.3, 0.7), 0.35 * object_saturation + 0.1, 0.95 - 0.5 * kind),
        ground_y=_between(ground_y, 0.78, 1.0),
        ground=_texture(
            draw("ground texture", 6),
            (ground_hue, _between(ground_saturation, 0.12, 0.45), _between(ground_value, 0.5, 0.85)),
            hue_shift=0.05,
            plain=0.2,
            frequency=(0.45, 1.1),
        ),
        has_wall=has_wall < 0.6,
        wall_z_depth=_between(wall_z, 4.5, 9.0),
        wall_turn=_cos_sin(_between(wall_yaw, -0.3, 0.3)),
        wall=_texture(
            draw("wall texture", 6),
            (wall_hue, _between(wall_saturation, 0.08, 0.4), _between(wall_value, 0.6, 0.95)),
            hue_shift=0.05,
            plain=0.3,
            frequency=(0.35, 0.8),
        ),
        zenith=_rgb(sky, _between(sky_saturation, 0.35, 0.65), _between(sky_value, 0.7, 0.95)),
        horizon=_rgb(sky, _between(sky_saturation, 0.05, 0.2), _between(sky_value, 0.85, 1.0)),
        light=light,
        ambient=_between(ambient, 0.35, 0.5),
    )


def render_scenes(scenes: ToyScenes, camera: Camera, *, supersample: int = 2) -> ToyViews:
    """Pictures and exact disparity.

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
    for group, shape in _groups_of_one_class(scenes, max(1, _MAX_RAYS // (rays_a_pixel * block_px))):
        some = scenes.select(group)
        cameras = Camera(
            camera.cam_to_world[group], camera.intrinsics[group], camera.height_px, camera.width_px
        )
        for start in range(0, num_pixels, block_px):
            block = slice(start, start + block_px)
            rgb[group, :, block], s[group, block] = _render_pixels(some, shape, cameras, pixels[block], supersample)
    size = (camera.height_px, camera.width_px)
    return ToyViews(rgb.reshape(-1, 3, *size), s.reshape(-1, *size))


def _groups_of_one_class(scenes: ToyScenes, largest: int) -> Iterator[tuple[Tensor, Shape]]:
    for number, shape in enumerate(SHAPES):
        members = torch.nonzero(scenes.class_index == number)[:, 0]
        for group in members.split(largest):
            if len(group):
                yield group, shape


def _render_pixels(
    scenes: ToyScenes, shape: Shape, camera: Camera, pixels: Tensor, supersample: int
) -> tuple[Tensor, Tensor]:
    """Colours uint8 `[n, 3, pixels]` and s `[n, pixels]` of scenes of one class."""
    count = pixels.shape[0]
    offsets = [(i + 0.5) / supersample - 0.5 for i in range(supersample)]
    shifts = torch.tensor([[dx, dy] for dy in offsets for dx in offsets] + [[0.0, 0.0]], device=pixels.device)
    rays = rays_at_pixels(camera, (pixels + shifts[:, None]).reshape(-1, 2))
    origin = _columns(rays.origin[:, :1])
    direction = _columns(rays.direction)

    to_ground, to_wall = _plane_hits(scenes, origin, direction)
    to_object = _object_hits(scenes, shape, origin, direction, torch.minimum(to_ground, to_wall))
    nearest = torch.minimum(torch.minimum(to_ground, to_wall), to_object)
    s = s_from_z_depth(nearest[:, -count:])

    coloured = slice(0, -count)
    direction = (direction[0][:, coloured], direction[1][:, coloured], direction[2][:, coloured])
    colour = _shade(scenes, shape, origin, direction, (to_ground[:, coloured], to_wall[:, coloured], to_object[:, coloured]))
    total = colour[..., :count].clone()
    for i in range(1, supersample * supersample):  # in a fixed order, so that the sum has the same bits everywhere
        total += colour[..., i * count : (i + 1) * count]
    mean = total * (255.0 / (supersample * supersample))
    return mean.round().clamp(0.0, 255.0).to(torch.uint8), s


def _plane_hits(scenes: ToyScenes, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """z_depth of the ground and of the wall `[n, m]`, infinite where a ray meets none."""
    infinity = torch.full((), torch.inf, device=direction[0].device)
    to_ground = (scenes.ground_y[:, None] - origin[1]) / direction[1]
    to_ground = torch.where(direction[1] > 0.0, to_ground, infinity)
    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    # Points of the wall: x sin + (z - wall_z) cos = 0.
    gap = (scenes.wall_z_depth[:, None] - CAMERA_RADIUS - origin[2]) * cos - origin[0] * sin
    speed = direction[0] * sin + direction[2] * cos
    to_wall = torch.where((speed > 0.0) & scenes.has_wall[:, None], gap / speed, infinity)
    return to_ground, to_wall


def _object_hits(scenes: ToyScenes, shape: Shape, origin: Vector, direction: Vector, limit: Tensor) -> Tensor:
    """z_depth of the object `[n, m]` where it lies before `limit`, else infinite."""
    num_scenes, num_rays = limit.shape
    local_origin = _to_local(scenes, origin)
    local_direction = _turn_to_local(scenes, direction)
    start, end = _box_hits(_rows(scenes.extent), local_origin, local_direction)
    candidates = torch.nonzero(((start < end) & (start < limit)).flatten())[:, 0]
    scene = candidates // num_rays
    ray_origin = _gather(local_origin, scene)
    ray_direction = _gather(local_direction, candidates)
    dims = [column[scene] for column in scenes.dimensions.unbind(-1)]
    limit = limit.flatten()
    low, high = _march(
        shape.distance,
        dims,
        ray_origin,
        ray_direction,
        start.flatten()[candidates],
        torch.minimum(end.flatten()[candidates], limit[candidates]),
    )
    hit = torch.nonzero(high < torch.inf)[:, 0]
    low, high = low[hit], high[hit]
    ray_origin, ray_direction = _gather(ray_origin, hit), _gather(ray_direction, hit)
    dims = [column[hit] for column in dims]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        inside = shape.distance(*_along(ray_origin, ray_direction, middle), dims) <= 0.0
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    result = torch.full_like(limit, torch.inf)
    result[candidates[hit]] = 0.5 * (low + high)
    return torch.where(result < limit, result, torch.inf).reshape(num_scenes, num_rays)


def _march(
    distance: Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], Tensor],
    dims: list[Tensor],
    origin: Vector, direction: Vector, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Sphere tracing of k rays: brackets of the first sign change of `distance` between `start` and `end`.

    Rays that have arrived, or left, are dropped every few steps. Close to a surface the step is at least
    _MIN_STEP_M, so a bracket is that wide; the minimum grows for rays that graze a surface for long.

    Returns:
        The last place outside and the first inside `[k]`; both infinite where the ray meets nothing.
    """
    low_of = torch.full_like(start, torch.inf)
    high_of = torch.full_like(start, torch.inf)
    number = torch.arange(start.shape[0], device=start.device)
    inverse_length = 1.0 / (direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]).sqrt()
    t, low = start, start
    for sweep in range(48):
        min_step = _MIN_STEP_M * min(4.0, 1.0 + sweep / 8.0)
        for _ in range(4):
            d = distance(*_along(origin, direction, t), dims)
            outside = d > 0.0
            low = torch.where(outside, t, low)
            t = torch.where(outside, t + (d * inverse_length).clamp(min=min_step), t)
        arrived = torch.nonzero(~outside & (t <= end))[:, 0]
        low_of[number[arrived]], high_of[number[arrived]] = low[arrived], t[arrived]
        keep = torch.nonzero(outside & (t <= end))[:, 0]
        if not len(keep):
            break
        number, t, low, end, inverse_length = number[keep], t[keep], low[keep], end[keep], inverse_length[keep]
        origin, direction = _gather(origin, keep), _gather(direction, keep)
        dims = [column[keep] for column in dims]
    return low_of, high_of


def _shade(
    scenes: ToyScenes, shape: Shape, origin: Vector, direction: Vector, hits: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Colours `[n, 3, m]` in [0, 1] of what the rays meet first."""
    to_ground, to_wall, to_object = hits
    nearest = torch.minimum(torch.minimum(to_ground, to_wall), to_object)
    solid = nearest < torch.inf
    point = _along(origin, direction, nearest.clamp(max=1e4))
    light = _rows(scenes.light)
    on_object = torch.nonzero((solid & (to_object == nearest)).flatten())[:, 0]
    on_wall = to_wall == nearest
    behind_object = solid & (to_object > nearest)

    local_point = _to_local(scenes, point)
    local_light = _turn_to_local(scenes, light)
    lit = 1.0 - _plane_shadow(scenes, shape, local_point, local_light, behind_object)
    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    facing_ground = -light[1]
    facing_wall = (-light[0] * sin - light[2] * cos).clamp(min=0.0)
    ambient = scenes.ambient[:, None]
    occlusion = _contact(scenes, local_point)
    ground_light = ambient * occlusion + (1.0 - ambient) * facing_ground * lit * 1.2
    wall_light = ambient * 1.1 + (1.0 - ambient) * facing_wall * lit

    ground = _paint(_rows_of(scenes.ground), point[0], point[2])
    wall = _paint(_rows_of(scenes.wall), point[0] * cos - point[2] * sin, point[1])
    # Far ground takes the colour of the horizon: 0.5 at 9 m from the pivot.
    squared = point[0] * point[0] + point[2] * point[2]
    haze = squared / (squared + 81.0)
    up = (-direction[1] / (direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]).sqrt())
    height = (up * 2.0).clamp(0.0, 1.0)
    object_colour = _object_colour(scenes, shape, on_object, local_point, local_light)
    channels = []
    for i in range(3):
        horizon, zenith = scenes.horizon[:, i : i + 1], scenes.zenith[:, i : i + 1]
        hazed = torch.where(scenes.has_wall[:, None], 0.0, haze)
        floor = ground[i] * ground_light
        colour = torch.where(on_wall, wall[i] * wall_light, floor + (horizon - floor) * hazed)
        colour = torch.where(solid, colour, horizon + (zenith - horizon) * height)
        colour = colour.flatten().index_copy(0, on_object, object_colour[i]).reshape(colour.shape)
        channels.append(colour.clamp(0.0, 1.0))
    return torch.stack(channels, 1)


def _plane_shadow(
    scenes: ToyScenes, shape: Shape, local_point: Vector, local_light: Vector, wanted: Tensor
) -> Tensor:
    """1.0 where the object hides the light from a point of the ground or wall, else 0.0, `[n, m]`."""
    num_rays = wanted.shape[1]
    start, end = _box_hits(_rows(scenes.extent), local_point, local_light)
    candidates = torch.nonzero((wanted & (start < end) & (end > 0.0)).flatten())[:, 0]
    scene = candidates // num_rays
    _, high = _march(
        shape.distance,
        [column[scene] for column in scenes.dimensions.unbind(-1)],
        _gather(local_point, candidates),
        _gather(local_light, scene),
        start.flatten()[candidates].clamp(min=0.0),
        end.flatten()[candidates],
    )
    shadow = torch.zeros_like(start).flatten()
    shadow[candidates] = (high < torch.inf).to(shadow.dtype)
    return shadow.reshape(wanted.shape)


def _object_colour(
    scenes: ToyScenes, shape: Shape, on_object: Tensor, local_point: Vector, local_light: Vector
) -> Vector:
    """Colours of k points of the object."""
    num_rays = local_point[0].shape[1]
    scene = on_object // num_rays
    x, y, z = _gather(local_point, on_object)
    light = _gather(local_light, scene)
    dims = [column[scene] for column in scenes.dimensions.unbind(-1)]
    normal = _normal(shape, (x, y, z), dims)
    facing = (normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]).clamp(min=0.0)
    if not shape.convex:
        lifted = (x + 0.01 * normal[0], y + 0.01 * normal[1], z + 0.01 * normal[2])
        _, end = _box_hits(_gather(_rows(scenes.extent), scene), lifted, light)
        towards = torch.nonzero((facing > 0.0) & (end > 0.0))[:, 0]
        _, high = _march(
            shape.distance,
            [column[towards] for column in dims],
            _gather(lifted, towards),
            _gather(light, towards),
            torch.zeros_like(x[towards]),
            end[towards],
        )
        facing = facing.index_copy(0, towards, torch.where(high < torch.inf, 0.0, facing[towards]))
    ambient = scenes.ambient[scene]
    light_level = ambient * (1.0 + 0.25 * normal[1]) + (1.15 - ambient) * facing
    texture = _select(scenes.object_texture, scene)
    painted = _paint(texture, x + z, y)
    parts = shape.parts(x, y, z, dims)
    if len(parts) == 2:
        second = parts[1] < parts[0]
        accent = scenes.accent[scene].unbind(-1)
        painted = tuple(torch.where(second, a, b) for a, b in zip(accent, painted, strict=True))
    red, green, blue = (channel * light_level for channel in painted)
    return red, green, blue


def _normal(shape: Shape, point: Vector, dims: list[Tensor]) -> Vector:
    """Unit normals by central differences; at 5e-4 m rounding and curvature both stay below 1e-3."""
    x, y, z = point
    h = 5e-4
    gradient = (
        shape.distance(x + h, y, z, dims) - shape.distance(x - h, y, z, dims),
        shape.distance(x, y + h, z, dims) - shape.distance(x, y - h, z, dims),
        shape.distance(x, y, z + h, dims) - shape.distance(x, y, z - h, dims),
    )
    # On a crease the differences may cancel; the floor turns that into a dark normal instead of a division by zero.
    scale = 1.0 / _norm(gradient).clamp(min=1e-9)
    return gradient[0] * scale, gradient[1] * scale, gradient[2] * scale


def _contact(scenes: ToyScenes, local_point: Vector) -> Tensor:
    """Soft darkening `[n, m]` of the ambient light around the foot of the object."""
    half_x, _, half_z = _rows(scenes.extent)
    x, z = local_point[0] / (half_x + 0.1), local_point[2] / (half_z + 0.1)
    near = (1.0 - 0.3 * (x * x + z * z)).clamp(min=0.0)
    return 1.0 - 0.45 * near * near


def _paint(texture: Texture, u: Tensor, v: Tensor) -> Vector:
    """Colours of a texture at (u, v) metres."""
    cos, sin = texture.turn[..., 0], texture.turn[..., 1]
    of_u, of_v, of_uv, bias, sharpness, warp = texture.coefficients.unbind(-1)
    across = texture.frequency * (u * cos + v * sin) + texture.phase[..., 0]
    along = texture.frequency * (v * cos - u * sin) + texture.phase[..., 1]
    wave_u = _wave(across + warp * _wave(along * 0.6))
    wave_v = _wave(along + warp * wave_u)
    level = of_u * wave_u + of_v * wave_v + of_uv * (wave_u * wave_v) + bias
    share = (0.5 + 0.5 * sharpness * level).clamp(0.0, 1.0)
    red, green, blue = (
        a + (b - a) * share
        for a, b in zip(texture.colour_a.unbind(-1), texture.colour_b.unbind(-1), strict=True)
    )
    return red, green, blue


def _wave(t: Tensor) -> Tensor:
    """A smooth wave of period 1 in [-1, 1]: a cubic instead of a cosine, for its bits."""
    ramp = (2.0 * (t - t.floor()) - 1.0).abs()
    return 2.0 * ramp * ramp * (3.0 - 2.0 * ramp) - 1.0


def _texture(
    draws: list[Tensor],
    hue_saturation_value: Vector,
    *,
    hue_shift: float,
    plain: float,
    frequency: tuple[float, float],
) -> Texture:
    """A texture from six uniform draws; `plain` is the share of plain ones, `frequency` in waves a metre."""
    kind, rate, phase_u, phase_v, turn, contrast = draws
    hue, saturation, value = hue_saturation_value
    patterned = ((kind - plain) * ((len(_TEXTURES) - 1) / (1.0 - plain))).floor().to(torch.int64) + 1
    row = patterned.clamp(0, len(_TEXTURES) - 1)
    return Texture(
        colour_a=_rgb(hue, saturation, value),
        colour_b=_rgb(hue + hue_shift, saturation, value * _between(contrast, 0.78, 0.52)),
        coefficients=_TEXTURES.to(kind.device)[row],
        frequency=_between(rate, *frequency),
        phase=torch.stack([phase_u, phase_v], -1),
        turn=_cos_sin(_between(turn, -0.8, 0.8)),
    )


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV in [0, 1], hue in turns of any size, to RGB `[..., 3]`."""
    channels = []
    for offset in (0.0, 2.0 / 3.0, 1.0 / 3.0):
        turn = hue + offset
        purity = (((turn - turn.floor()) * 6.0 - 3.0).abs() - 1.0).clamp(0.0, 1.0)
        channels.append(value * (1.0 - saturation * (1.0 - purity)))
    return torch.stack(channels, -1)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _cos_sin(angle_rad: Tensor) -> Tensor:
    """`[..., 2]`; in double precision, so that the last bits of a vectorised cosine are rounded away."""
    angle = angle_rad.double()
    return torch.stack([angle.cos(), angle.sin()], -1).to(angle_rad.dtype)


def _norm(v: Vector) -> Tensor:
    return (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt()


def _along(origin: Vector, direction: Vector, t: Tensor) -> Vector:
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


def _box_hits(extent: Vector, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the object's box in its own frame; they miss it where enter >= leave."""
    half_x, height, half_z = extent
    faces = (
        (-half_x - _SLACK_M, half_x + _SLACK_M),
        (torch.full_like(height, -_SLACK_M), height + _SLACK_M),
        (-half_z - _SLACK_M, half_z + _SLACK_M),
    )
    enter, leave = None, None
    for axis, (low, high) in enumerate(faces):
        # A ray parallel to a face gets a tiny slope: the quotients stay finite and far outside any scene.
        slope = direction[axis]
        inverse = 1.0 / torch.where(slope.abs() < 1e-12, 1e-12, slope)
        first, second = (low - origin[axis]) * inverse, (high - origin[axis]) * inverse
        near, far = torch.minimum(first, second), torch.maximum(first, second)
        enter = near if enter is None else torch.maximum(enter, near)
        leave = far if leave is None else torch.minimum(leave, far)
    assert enter is not None and leave is not None
    return enter, leave


def _to_local(scenes: ToyScenes, point: Vector) -> Vector:
    """World points `[n, m]` in the frame of each scene's object: y up from the ground."""
    x, y, z = _turn_to_local(
        scenes,
        (point[0] - scenes.object_xz[:, :1], point[1] - scenes.ground_y[:, None], point[2] - scenes.object_xz[:, 1:]),
    )
    return x, y, z


def _turn_to_local(scenes: ToyScenes, vector: Vector) -> Vector:
    cos, sin = scenes.object_turn[:, :1], scenes.object_turn[:, 1:]
    return cos * vector[0] + sin * vector[2], -vector[1], cos * vector[2] - sin * vector[0]


def _columns(points: Tensor) -> Vector:
    """`[n, m, 3]` to three contiguous `[n, m]`."""
    x, y, z = (column.contiguous() for column in points.unbind(-1))
    return x, y, z


def _rows(vectors: Tensor) -> Vector:
    """`[n, 3]` to three `[n, 1]`, which broadcast over rays."""
    return vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]


def _gather(vector: Vector, index: Tensor) -> Vector:
    return vector[0].flatten()[index], vector[1].flatten()[index], vector[2].flatten()[index]


def _rows_of(texture: Texture) -> Texture:
    """The same textures with an axis for rays: `[n, 1, ...]`."""
    return Texture(**{field.name: getattr(texture, field.name).unsqueeze(1) for field in fields(texture)})


_Record = TypeVar("_Record", ToyScenes, Texture)


def _select(record: _Record, index: Tensor) -> _Record:
    chosen = {}
    for field in fields(record):
        value = getattr(record, field.name)
        chosen[field.name] = _select(value, index) if isinstance(value, Texture) else value[index]
    return type(record)(**chosen)
