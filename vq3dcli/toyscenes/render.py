"""Procedural scenes with exact disparity from any camera: objects on a textured ground, before a wall or the sky.

Plain scenes (`layout.py`) have one object each; varied ones (`varied.py`) differ in all that photos differ in, and may
show photos on their surfaces.

Scene i of a seed is a pure function of (seed, purpose, i), and of the photos. On CPU its parameters and pictures have
the same bytes whatever else is in the batch and however many threads run: per-ray work is elementwise and uses only
operations that IEEE 754 rounds exactly (sums, products, quotients, roots), since vectorised sines and exponentials may
round differently at the end of an array. Other devices agree up to rounding.

Disparity comes from the same planes and traced surfaces as the colours; surfaces are bracketed and bisected to well
under 1e-4 m of z_depth. Everything lies beyond NEAR for cameras on the pivot sphere within +-20 degrees of yaw and
+-10 of pitch.

Data flow of a picture: rays -> planes (in closed form) and objects (traced inside their boxes) -> nearest -> s
                                                                                            -> colours -> mean -> uint8

Legend: n scenes, m rays a scene. World axes as in `rendering/cameras.py` (y down); an object's own frame has y up from
its base.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS, Camera, pixel_centres, s_from_z_depth
from vq3dcli.toyscenes.layout import ToyScenes
from vq3dcli.toyscenes.objects import Group, groups_by_class, nearest_objects, rows
from vq3dcli.toyscenes.places import View
from vq3dcli.toyscenes.shading import Hits, shade
from vq3dcli.toyscenes.shapes import SHAPES
from vq3dcli.toyscenes.tracing import Vector

_MAX_RAYS = 1 << 17  # traced together; bounds the memory at about 100 MB, and at 200 MB for several objects a scene


class ToyViews(NamedTuple):
    """Pictures of scenes."""

    rgb: Tensor  # uint8 `[n, 3, height, width]`
    s: Tensor  # normalised disparity at the pixel centres, float32 `[n, height, width]`, in [0, 1]; 0 is the sky


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

    A pixel's colour is the mean of supersample^2 rays. Its disparity is that of its centre, unmixed. Raises
    `ValueError`: there are not as many cameras as scenes, or supersample is not positive.
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
    for group in _batches(scenes, _MAX_RAYS // (rays_a_pixel * block_px)):
        some = scenes.select(group)
        cameras = Camera(camera.cam_to_world[group], camera.intrinsics[group], camera.height_px, camera.width_px)
        for start in range(0, num_pixels, block_px):
            block = slice(start, start + block_px)
            rgb[group, :, block], s[group, block] = _render_pixels(some, cameras, pixels[block], supersample)
    size = (camera.height_px, camera.width_px)
    return ToyViews(rgb.reshape(-1, 3, *size), s.reshape(-1, *size))


def _batches(scenes: ToyScenes, at_once: int) -> Iterator[Tensor]:
    """Numbers of scenes that go together: those of a class, where a scene has one object."""
    if scenes.objects.class_index.shape[1] > 1:  # of any class: more at once have more in common
        yield from torch.arange(len(scenes)).split(max(1, 2 * at_once))
        return
    for number in range(len(SHAPES)):
        members = torch.nonzero(scenes.class_index == number)[:, 0]
        yield from (group for group in members.split(max(1, at_once)) if len(group))


def _render_pixels(scenes: ToyScenes, camera: Camera, pixels: Tensor, supersample: int) -> tuple[Tensor, Tensor]:
    """Colours uint8 `[n, 3, pixels]` and s `[n, pixels]`."""
    count = pixels.shape[0]
    offsets = [(i + 0.5) / supersample - 0.5 for i in range(supersample)]
    shifts = torch.tensor([[dx, dy] for dy in offsets for dx in offsets] + [[0.0, 0.0]], device=pixels.device)
    view = _directions(camera, (pixels + shifts[:, None]).reshape(-1, 2))
    # Turns that leave the z_depth of a ray's points as it is.
    level = View(scenes.elevation, scenes.roll).level
    origin, direction = level(*rows(camera.cam_to_world[:, :3, 3])), level(*view)
    groups = groups_by_class(scenes)
    hits = _first_hits(scenes, groups, origin, direction)
    s = s_from_z_depth(hits.nearest[:, -count:])

    # The last `count` rays are the pixel centres, which only disparity uses.
    coloured = slice(None, -count)
    hits = Hits(*(hit[:, coloured] for hit in hits))
    ray_width = 1.0 / (camera.intrinsics[:, :1, 0] * supersample)
    colour = shade(scenes, groups, origin, _cut(direction, coloured), _cut(view, coloured), hits, ray_width)
    total = colour[..., :count].clone()
    for i in range(1, supersample * supersample):  # in a fixed order, so that the sum has the same bits everywhere
        total += colour[..., i * count : (i + 1) * count]
    mean = total * (255.0 / (supersample * supersample))
    return mean.round().clamp(0.0, 255.0).to(torch.uint8), s


def _first_hits(scenes: ToyScenes, groups: list[Group], origin: Vector, direction: Vector) -> Hits:
    to_ground = (scenes.ground_y[:, None] - origin[1]) / direction[1]
    to_ground = torch.where((direction[1] > 0.0) & scenes.has_ground[:, None], to_ground, torch.inf)
    cos, sin = scenes.wall_turn[:, :1], scenes.wall_turn[:, 1:]
    # Points of the wall: x sin + (z - wall_z) cos = 0.
    gap = (scenes.wall_z_depth[:, None] - CAMERA_RADIUS - origin[2]) * cos - origin[0] * sin
    speed = direction[0] * sin + direction[2] * cos
    to_wall = torch.where((speed > 0.0) & scenes.has_wall[:, None], gap / speed, torch.inf)
    to_object, which = nearest_objects(groups, origin, direction, torch.minimum(to_ground, to_wall))
    return Hits(to_ground, to_wall, to_object, which)


def _directions(camera: Camera, pixels: Tensor) -> Vector:
    """The directions of `rays_at_pixels`, one tensor a component, which is what elementwise work is fastest on."""
    x = (pixels[:, 0] - camera.intrinsics[:, :1, 2]) / camera.intrinsics[:, :1, 0]
    y = (pixels[:, 1] - camera.intrinsics[:, 1:2, 2]) / camera.intrinsics[:, 1:2, 1]
    across, down, forward = (rows(camera.cam_to_world[:, :3, column]) for column in range(3))
    return (
        x * across[0] + y * down[0] + forward[0],
        x * across[1] + y * down[1] + forward[1],
        x * across[2] + y * down[2] + forward[2],
    )


def _cut(vector: Vector, rays: slice) -> Vector:
    return vector[0][:, rays], vector[1][:, rays], vector[2][:, rays]
