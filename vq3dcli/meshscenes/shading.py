"""Colours of what rays meet: textures in the light of a sun with a shadow map, haze, and the sky behind.

Only sums, products, quotients and roots, so that the bits do not depend on the processor's library.

Legend: T triangles, H x W rays, K textures.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vq3dcli.compiled import compiled
from vq3dcli.meshscenes.raster import (
    NOTHING,
    Floats,
    Singles,
    Textures,
    Triangles,
    Visible,
    corner_weights,
    texel,
    texture_level,
    texture_place,
    visible,
)

_SHADOW_PX = 224
_NOWHERE = np.zeros(3)
_TAPS = 3  # a side: points of the shadow map that are averaged


class Sky(NamedTuple):
    """What is at infinity."""

    zenith: Floats  # `[3]` in [0, 1]
    horizon: Floats  # `[3]`; the colour of haze too
    up: Floats  # world direction `[3]`
    photo: int  # number of the texture that is shown instead, NOTHING for none
    zoom: float  # pictures a unit of the canonical camera's x / z
    offset: Floats  # in pictures `[2]`
    gain: float  # times the photo's colours


class Light(NamedTuple):
    """Sun, ambient light and air; with a lamp, both are brighter near it."""

    direction: Floats  # unit vector towards the sun `[3]`, world
    sun: Floats  # colour `[3]` of what it adds where it shines straight on a surface
    ambient: Floats  # colour `[3]` of what comes from everywhere
    darkness: float  # share of the sun that a shadow takes
    softness: float  # width of a shadow's edge in texels of the map
    haze_m: float  # z_depth at which half is haze; infinite for none
    lamp: Floats = _NOWHERE  # where it is brightest `[3]`, world
    lamp_m: float = math.inf  # distance from there at which half of the light is left; infinite for the same everywhere


class ShadowMap(NamedTuple):
    """What the sun sees, from far away."""

    inverse_z: Floats  # float64 `[side, side]`
    cam_to_world: Floats  # of the sun's camera `[4, 4]`
    focal_px: float  # of it
    bias_m: float  # points this much behind what the sun sees are still lit


def shadow_map(triangles: Triangles, textures: Textures, light: Light, centre: Floats, reach_m: float) -> ShadowMap:
    """The map of all within `reach_m` of `centre` `[3]`."""
    away = 40.0 * reach_m
    forward = -light.direction
    side = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, side)
    right /= math.sqrt(float((right * right).sum()))
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(forward, right), forward
    pose[:3, 3] = centre - away * forward
    focal_px = 0.5 * _SHADOW_PX * away / reach_m
    seen = visible(triangles, textures, pose, focal_px, _SHADOW_PX, _SHADOW_PX)
    return ShadowMap(seen.inverse_z, pose, focal_px, 2.5 * reach_m / _SHADOW_PX)


@compiled
def shade(
    triangles: Triangles,
    textures: Textures,
    seen: Visible,
    pose: Floats,
    focal: float,
    light: Light,
    shadows: ShadowMap,
    sky: Sky,
) -> Singles:
    """Colours of the rays of a camera, in [0, 1] and above, float32 `[H, W, 3]`; `focal` is in pixels."""
    rows, columns = seen.triangle.shape
    rgb = np.empty((rows, columns, 3), np.float32)
    triangle, inverse_z, edges = seen.triangle, seen.inverse_z, seen.edges
    normals, uv, colour, texture = triangles.normals, triangles.uv, triangles.colour, triangles.texture
    texels, sizes, levels, cutoff, mirrored = textures
    sun_at, sun, ambient, softness = light.direction, light.sun, light.ambient, light.softness
    darkness, haze_m, up, horizon = light.darkness, light.haze_m, sky.up, sky.horizon
    lamp, lamp_m = light.lamp, light.lamp_m
    shadow_inverse_z, shadow_pose = shadows.inverse_z, shadows.cam_to_world
    shadow_focal, bias_m = shadows.focal_px, shadows.bias_m
    direction, point, normal, albedo = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for i in range(rows):
        for j in range(columns):
            x, y = (j + 0.5 - 0.5 * columns) / focal, (i + 0.5 - 0.5 * rows) / focal
            for axis in range(3):
                direction[axis] = x * pose[axis, 0] + y * pose[axis, 1] + pose[axis, 2]
            t = triangle[i, j]
            if t == NOTHING:
                _paint_sky(direction, sky, textures, focal, rgb[i, j])
                continue
            m = edges[t]
            e0, e1, e2 = corner_weights(m, x, y)
            z_depth = 1.0 / inverse_z[i, j]
            length = facing = 0.0
            for axis in range(3):
                point[axis] = pose[axis, 3] + z_depth * direction[axis]
                normal[axis] = e0 * normals[t, 0, axis] + e1 * normals[t, 1, axis] + e2 * normals[t, 2, axis]
                length += normal[axis] * normal[axis]
                facing += normal[axis] * direction[axis]
                tint = e0 * colour[t, 0, axis] + e1 * colour[t, 1, axis] + e2 * colour[t, 2, axis]
                albedo[axis] = tint * z_depth / 255.0
            # A side that looks away is lit as if it were turned round: many files have no inside.
            turn = (-1.0 if facing > 0.0 else 1.0) / math.sqrt(max(length, 1e-12))
            kind = texture[t]
            leaves = False
            if kind >= 0:
                u, v, spread = texture_place(m, uv[t], x, y, focal, sizes[kind, 0, 1], sizes[kind, 0, 2])
                level = texture_level(spread, levels[kind])
                red, green, blue, _ = texel(texels, sizes[kind, level], u, v, mirrored[kind] != 0)
                albedo[0] *= red / 255.0
                albedo[1] *= green / 255.0
                albedo[2] *= blue / 255.0
                leaves = cutoff[kind] > 0
            towards = upwards = 0.0
            for axis in range(3):
                towards += turn * normal[axis] * sun_at[axis]
                upwards += turn * normal[axis] * up[axis]
            lit = 0.35 + 0.65 * abs(towards) if leaves else max(0.0, towards)  # light passes through leaves
            if lit > 0.0:
                hidden = _hidden(point, shadow_inverse_z, shadow_pose, shadow_focal, bias_m, softness)
                lit *= 1.0 - darkness * hidden
            away = 0.0
            for axis in range(3):
                away += (point[axis] - lamp[axis]) * (point[axis] - lamp[axis])
            near_lamp = 1.0 / (1.0 + away / (lamp_m * lamp_m))
            haze = z_depth * z_depth / (z_depth * z_depth + haze_m * haze_m)
            for axis in range(3):
                arriving = (ambient[axis] * (0.8 + 0.2 * upwards) + sun[axis] * lit) * near_lamp
                rgb[i, j, axis] = (1.0 - haze) * albedo[axis] * arriving + haze * horizon[axis]
    return rgb


@compiled
def _hidden(point: Floats, inverse_z: Floats, pose: Floats, focal: float, bias_m: float, softness: float) -> float:
    """Share of the sun that is hidden from a point; of the shadow map as in `ShadowMap`."""
    side = inverse_z.shape[0]
    x = y = z = 0.0
    for axis in range(3):
        away = point[axis] - pose[axis, 3]
        x += away * pose[axis, 0]
        y += away * pose[axis, 1]
        z += away * pose[axis, 2]
    z_lit = z - bias_m
    if z_lit <= 0.0:
        return 0.0
    column, row = x / z * focal + 0.5 * side, y / z * focal + 0.5 * side
    hidden = 0
    for i in range(_TAPS):
        for j in range(_TAPS):
            at_x = math.floor(column + (j - 0.5 * (_TAPS - 1)) * softness)
            at_y = math.floor(row + (i - 0.5 * (_TAPS - 1)) * softness)
            inside = at_x >= 0 and at_y >= 0 and at_x < side and at_y < side
            if inside and inverse_z[at_y, at_x] * z_lit > 1.0:
                hidden += 1
    return hidden / (_TAPS * _TAPS)


@compiled
def _paint_sky(direction: Floats, sky: Sky, textures: Textures, focal: float, rgb: Singles) -> None:
    if sky.photo >= 0:
        ahead = max(direction[2], 0.05)
        u = direction[0] / ahead * sky.zoom + sky.offset[0]
        v = direction[1] / ahead * sky.zoom + sky.offset[1]
        reach = sky.zoom * textures.sizes[sky.photo, 0, 1] / focal
        level = texture_level(reach * reach, textures.levels[sky.photo])
        red, green, blue, _ = texel(textures.texels, textures.sizes[sky.photo, level], u, v, True)
        rgb[0], rgb[1], rgb[2] = red / 255.0 * sky.gain, green / 255.0 * sky.gain, blue / 255.0 * sky.gain
        return
    length = rise = 0.0
    for axis in range(3):
        length += direction[axis] * direction[axis]
        rise += direction[axis] * sky.up[axis]
    share = min(1.0, max(0.0, 2.0 * rise / math.sqrt(length)))
    for axis in range(3):
        rgb[axis] = sky.horizon[axis] + (sky.zenith[axis] - sky.horizon[axis]) * share


@compiled
def mean_of_blocks(rgb: Singles, side: int, gain: float) -> Singles:
    """Means of blocks of `side` x `side` rays, times `gain` and cut to [0, 1]."""
    out = np.empty((rgb.shape[0] // side, rgb.shape[1] // side, 3), np.float32)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for axis in range(3):
                total = 0.0
                for a in range(side):
                    for b in range(side):
                        total += rgb[side * i + a, side * j + b, axis]
                out[i, j, axis] = min(1.0, max(0.0, total * gain / (side * side)))
    return out


@compiled
def defocused(rgb: Singles, inverse_z: Floats, focus: float, strength_px: float) -> Singles:
    """Pictures `[H, W, 3]` whose points blur by how far their disparity is from the focus'.

    `strength_px` is the radius at half of that disparity.
    """
    rows, columns, _ = rgb.shape
    out = np.empty_like(rgb)
    for i in range(rows):
        for j in range(columns):
            own = min(strength_px * 2.0, abs(inverse_z[i, j] - focus) / focus * 2.0 * strength_px)
            reach = int(own) + 1
            total = red = green = blue = 0.0
            for a in range(max(0, i - reach), min(rows, i + reach + 1)):
                for b in range(max(0, j - reach), min(columns, j + reach + 1)):
                    far = math.sqrt(float((a - i) * (a - i) + (b - j) * (b - j)))
                    # What is sharp keeps to itself: it does not bleed into what is blurred.
                    theirs = min(strength_px * 2.0, abs(inverse_z[a, b] - focus) / focus * 2.0 * strength_px)
                    share = min(1.0, max(0.0, min(own, theirs) + 0.7 - far))
                    if a == i and b == j:
                        share = 1.0
                    total += share
                    red += share * rgb[a, b, 0]
                    green += share * rgb[a, b, 1]
                    blue += share * rgb[a, b, 2]
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = red / total, green / total, blue / total
    return out
