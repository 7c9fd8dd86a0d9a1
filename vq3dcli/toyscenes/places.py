"""Where the objects, the ground and the wall of varied toy scenes are.

The main object is placed in the picture, the ground is put under it and the wall behind it, and others stand where
there is room. Whatever would come nearer than a camera may see is moved away.

Legend: n scenes, k objects a scene, c cameras.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS, FOV_RAD, NEAR, pivot_pose
from vq3dcli.toyscenes.layout import MAX_OBJECTS, Draws
from vq3dcli.toyscenes.textures import between, cos_sin

_EDGE = math.tan(0.5 * FOV_RAD)  # of the picture, at z_depth 1
_YAWS_DEG, _PITCHES_DEG = (-20.0, -10.0, 0.0, 10.0, 20.0), (-10.0, 0.0, 10.0)
_NEAR_M = NEAR + 0.06  # between two of these cameras others come closer by a few centimetres


class View(NamedTuple):
    """How the scenes' frames lie in the world: cosines and sines as in `ToyScenes`, `[n, 2]` each."""

    elevation: Tensor
    roll: Tensor

    def level(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World vectors, `[c]` or `[n, c]`, in the scenes' frames `[n, c]`."""
        cos, sin = self.roll[:, :1], self.roll[:, 1:]
        x, y = cos * x + sin * y, cos * y - sin * x
        cos, sin = self.elevation[:, :1], self.elevation[:, 1:]
        return x, cos * y + sin * z, cos * z - sin * y


class Setting(NamedTuple):
    """What is around the objects `[n]`."""

    has_ground: Tensor
    has_wall: Tensor
    has_backdrop: Tensor


class Bodies(NamedTuple):
    """Sizes of the objects, and half of the boxes that hold them once they lean `[n, k]`."""

    class_index: Tensor
    dimensions: Tensor
    extent: Tensor
    turn: Tensor
    tilt: Tensor
    half_x: Tensor
    half_y: Tensor
    half_z: Tensor


def place_main(
    draws: Draws, view: View, setting: Setting, bodies: Bodies, close_up: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre of the main object in the scene's frame, and the height of the ground below it, each `[n]`."""
    column, row, distance, aside, far = draws.scenes("main", 5)
    off_centre = torch.where(column < 0.5, -1.0, 1.0) * between((2.0 * column).frac(), 0.45, 0.95)
    column = torch.where(aside < 0.25, off_centre, between(column, -0.4, 0.4)) * _EDGE
    row = between(row, -0.3, 0.4) * _EDGE
    z_depth = torch.where(far < 0.2, between(distance, 4.0, 6.5), between(distance, 2.3, 4.2))
    z_depth = torch.where(close_up, between(distance, 1.6, 2.6), z_depth)
    x, y, z = view.level((column * z_depth)[:, None], (row * z_depth)[:, None], (z_depth - CAMERA_RADIUS)[:, None])
    half_y = bodies.half_y[:, 0]
    lowest = view.level(*_near_corners())[1].amax(-1)  # below all that cameras see at NEAR
    ground_y = torch.where(setting.has_ground, torch.maximum(y[:, 0] + half_y, lowest), lowest)
    y = torch.where(setting.has_ground, ground_y - half_y, y[:, 0])
    z = z[:, 0] + _too_near(view, bodies, x, y[:, None], z)[:, 0]
    return x[:, 0], y, z, ground_y


def place_wall(
    draws: Draws, view: View, bodies: Bodies, main: tuple[Tensor, Tensor], setting: Setting
) -> tuple[Tensor, Tensor]:
    """Where the wall meets the z axis of the scene's frame `[n]`, and its turn `[n, 2]`: behind the main object."""
    distance, yaw = draws.scenes("wall", 2)
    z = 1.0 / between(distance, 1.0 / 15.0, 1.0 / 3.5) - CAMERA_RADIUS
    turn = cos_sin(between(yaw, -0.6, 0.6))
    x, z_main = main
    needed = z_main + (x * turn[:, 1] + _radius(bodies)[:, 0]) / turn[:, 0] + 0.02
    x, _, z_near = view.level(*_near_corners())
    clear = (z_near + x * (turn[:, 1:] / turn[:, :1])).amax(-1) + 0.1
    return torch.maximum(torch.maximum(z, needed), clear), turn


def place_others(
    draws: Draws,
    view: View,
    setting: Setting,
    bodies: Bodies,
    main: tuple[Tensor, Tensor, Tensor],
    ground_y: Tensor,
    wall_z: Tensor,
    wall_turn: Tensor,
) -> tuple[Tensor, Tensor]:
    """Centres `[n, k, 3]` of all objects, and whether they are there, bool `[n, k]`."""
    column, row, distance = draws.objects("place", 3)
    (count,) = draws.scenes("count", 1)
    column, row, on_ground = between(column, -_EDGE, _EDGE), between(row, -_EDGE, _EDGE), setting.has_ground[:, None]
    cos, sin = view.elevation[:, :1], view.elevation[:, 1:]
    # Rows of the picture meet level ground at z_depths whose inverse is linear in the row.
    level_y = ground_y[:, None]
    height = level_y + CAMERA_RADIUS * sin
    far, near = ((cos * edge + sin) / height for edge in (-_EDGE, _EDGE))
    far, near = far.clamp(min=1.0 / 12.0), near.clamp(max=1.0 / 1.8)
    standing = far + (near - far) * distance
    z_depth = 1.0 / torch.where(on_ground, standing, between(distance, 1.0 / 9.0, 1.0 / 2.2))
    x, y, z = view.level(column * z_depth, row * z_depth, z_depth - CAMERA_RADIUS)
    # A foot at that z_depth: z of the world is cos z + sin y here.
    z = torch.where(on_ground, (z_depth - CAMERA_RADIUS - sin * level_y) / cos, z)
    y = torch.where(on_ground, level_y - bodies.half_y, y)
    x, y, z = (torch.cat([first[:, None], rest[:, 1:]], 1) for first, rest in zip(main, (x, y, z), strict=True))
    # In front of the wall, and then no nearer than cameras see.
    behind = z + (x * wall_turn[:, 1:] + _radius(bodies)) / wall_turn[:, :1] - wall_z[:, None]
    z = z - torch.where(setting.has_wall[:, None], behind.clamp(min=0.0), 0.0)
    pushed = _too_near(view, bodies, x, y, z)
    z = z + pushed
    behind = z + (x * wall_turn[:, 1:] + 0.9 * _radius(bodies)) / wall_turn[:, :1] - wall_z[:, None]
    fits = ~setting.has_wall[:, None] | (behind <= 0.0)
    fits &= pushed < 0.5
    present = [torch.ones_like(count, dtype=torch.bool)]
    wanted = 1.0 + (count > 0.25).float() + (count > 0.5).float() + (count > 0.75).float()
    for number in range(1, MAX_OBJECTS):
        free = fits[:, number] & (wanted > number) & ~_hides_main(view, bodies, (x, y, z), number)
        for other in range(number):
            free &= ~(_overlaps(setting, bodies, (x, y, z), number, other) & present[other])
        present.append(free)
    return torch.stack([x, y, z], -1), torch.stack(present, -1)


def _overlaps(setting: Setting, bodies: Bodies, centre: tuple[Tensor, Tensor, Tensor], one: int, other: int) -> Tensor:
    """Whether two objects are inside each other by more than their corners `[n]`."""
    x, y, z = (component[:, one] - component[:, other] for component in centre)
    radius = _radius(bodies)
    room = 0.9 * (radius[:, one] + radius[:, other])
    apart = x * x + z * z + torch.where(setting.has_ground, 0.0, y * y)
    return apart < room * room


def _hides_main(view: View, bodies: Bodies, centre: tuple[Tensor, Tensor, Tensor], number: int) -> Tensor:
    """Whether an object stands in front of the middle of the main one `[n]`."""
    cos, sin = view.elevation[:, :1], view.elevation[:, 1:]
    x, y, z = centre
    z_depth = (cos * z + sin * y + CAMERA_RADIUS).clamp(min=0.1)
    column, row = x / z_depth, (cos * y - sin * z) / z_depth
    near = z_depth[:, number] < z_depth[:, 0]
    across = (column[:, number] - column[:, 0]).abs() < 1.2 * bodies.half_x[:, number] / z_depth[:, number]
    along = (row[:, number] - row[:, 0]).abs() < 1.2 * bodies.half_y[:, number] / z_depth[:, number]
    return near & across & along


def _radius(bodies: Bodies) -> Tensor:
    """Of a circle around an object, seen from above `[n, k]`."""
    return (bodies.half_x * bodies.half_x + bodies.half_z * bodies.half_z).sqrt() * 0.85


def _too_near(view: View, bodies: Bodies, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """By how much z of objects at `[n, any]` has to grow, so that all cameras see them beyond NEAR."""
    first = slice(0, z.shape[1])
    half_x, half_y, half_z = bodies.half_x[:, first], bodies.half_y[:, first], bodies.half_z[:, first]
    cos, sin = bodies.turn[:, first, 0], bodies.turn[:, first, 1]
    shift = torch.zeros_like(z)
    for ahead in torch.stack(view.level(*_forwards())).unbind(-1):
        ahead_x, ahead_y, ahead_z = ahead[..., None].unbind(0)
        reach = (cos * ahead_x + sin * ahead_z).abs() * half_x + (cos * ahead_z - sin * ahead_x).abs() * half_z
        reach = reach + ahead_y.abs() * half_y
        z_depth = CAMERA_RADIUS + x * ahead_x + y * ahead_y + z * ahead_z - reach
        shift = torch.maximum(shift, (_NEAR_M - z_depth) / ahead_z)
    return shift


@functools.cache
def _poses() -> Tensor:
    """The cameras that nothing may come near to, float64 `[c, 4, 4]`."""
    yaw, pitch = torch.cartesian_prod(torch.tensor(_YAWS_DEG), torch.tensor(_PITCHES_DEG)).double().unbind(-1)
    return pivot_pose(yaw.deg2rad(), pitch.deg2rad())


@functools.cache
def _forwards() -> tuple[Tensor, Tensor, Tensor]:
    """Where they look, float32 `[c]` each."""
    x, y, z = _poses()[:, :3, 2].float().unbind(-1)
    return x, y, z


@functools.cache
def _near_corners() -> tuple[Tensor, Tensor, Tensor]:
    """Corners of what they see at NEAR, float32 `[4 * c]` each."""
    across, down = (_NEAR_M * _EDGE * _poses()[:, :3, axis] for axis in (0, 1))
    middle = _poses()[:, :3, 3] + _NEAR_M * _poses()[:, :3, 2]
    corners = torch.cat([middle + i * across + j * down for i in (-1.0, 1.0) for j in (-1.0, 1.0)])
    x, y, z = corners.float().unbind(-1)
    return x, y, z
