"""Triangles to pixels: a z-buffer in homogeneous coordinates, which is exact at any distance and needs no clipping.

A ray through a pixel has the direction d = (x, y, 1) in the camera. With the corners p0, p1, p2 of a triangle as the
columns of M, the point z d has the barycentric coordinates b = z M^-1 d (Olano and Greer, 1997). So e = M^-1 d is
linear in the pixel, its sum is 1 / z, the ray meets the triangle where all of e are at least 0, and anything linear
on the triangle is the mean of its corners' values weighted by e.

Legend: T triangles, H x W rays, C texels, K textures, L levels of a texture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vq3dcli.compiled import compiled

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]

NOTHING = -1
MAX_LEVELS = 12
_EPSILON_M = 1e-4  # corners this near the camera's plane have no place in the picture
_THINNEST = 1e-12  # triangles whose plane goes through the camera cover nothing


class Textures(NamedTuple):
    """K pictures at all their sizes."""

    texels: Bytes  # uint8 `[C, 4]`, RGB and alpha
    sizes: Ints  # row of a level's first texel, its width and height, int32 `[K, L, 3]`
    levels: Ints  # number of levels, int32 `[K]`
    cutoff: Ints  # alpha from which on a texel is there; 0 where all are, int32 `[K]`
    mirrored: Bytes  # whether a picture is mirrored where it ends, not repeated, uint8 `[K]`


class Triangles(NamedTuple):
    """Triangles in the world."""

    corners: Singles  # float32 `[T, 3, 3]`
    normals: Singles  # unit normals at the corners, float32 `[T, 3, 3]`
    uv: Singles  # of the corners, in pictures, v downwards, float32 `[T, 3, 2]`
    colour: Bytes  # times the texture's colour, uint8 `[T, 3, 3]`
    texture: Ints  # int32 `[T]`, NOTHING for none
    part: Ints  # what it belongs to, int32 `[T]`


class Visible(NamedTuple):
    """What rays meet first."""

    inverse_z: Floats  # 1 / z_depth, 0 where there is nothing, float64 `[H, W]`
    triangle: Ints  # int32 `[H, W]`, or NOTHING
    edges: Floats  # M^-1 of each triangle, float64 `[T, 3, 3]`: e = M^-1 (x, y, 1)


@compiled
def in_camera(corners: Singles, cam_to_world: Floats) -> Floats:
    """Corners `[T, 3, 3]` in the camera's axes."""
    out = np.empty(corners.shape, np.float64)
    for t in range(corners.shape[0]):
        for k in range(3):
            x = corners[t, k, 0] - cam_to_world[0, 3]
            y = corners[t, k, 1] - cam_to_world[1, 3]
            z = corners[t, k, 2] - cam_to_world[2, 3]
            for axis in range(3):
                out[t, k, axis] = x * cam_to_world[0, axis] + y * cam_to_world[1, axis] + z * cam_to_world[2, axis]
    return out


@compiled
def visible(
    triangles: Triangles, textures: Textures, cam_to_world: Floats, focal: float, rows: int, columns: int
) -> Visible:
    """What rays through pixels' centres meet first; texels that are cut out let them pass; `focal` is in pixels."""
    corners = in_camera(triangles.corners, cam_to_world)
    inverse_z = np.zeros((rows, columns))
    which = np.full((rows, columns), NOTHING, np.int32)
    edges = np.zeros_like(corners)
    uv, texture, texels = triangles.uv, triangles.texture, textures.texels
    sizes, levels, cutoff = textures.sizes, textures.levels, textures.cutoff
    for t in range(corners.shape[0]):
        p, q, r = corners[t, 0], corners[t, 1], corners[t, 2]
        lowest = min(p[2], q[2], r[2])
        if max(p[2], q[2], r[2]) <= _EPSILON_M:
            continue
        left, right, top, bottom = 0, columns - 1, 0, rows - 1
        if lowest > _EPSILON_M:
            x0, x1, x2 = p[0] / p[2], q[0] / q[2], r[0] / r[2]
            y0, y1, y2 = p[1] / p[2], q[1] / q[2], r[1] / r[2]
            left = math.ceil(max(0.0, min(x0, x1, x2) * focal + 0.5 * columns - 0.5))
            right = math.floor(min(columns - 1.0, max(x0, x1, x2) * focal + 0.5 * columns - 0.5))
            top = math.ceil(max(0.0, min(y0, y1, y2) * focal + 0.5 * rows - 0.5))
            bottom = math.floor(min(rows - 1.0, max(y0, y1, y2) * focal + 0.5 * rows - 0.5))
            if left > right or top > bottom:
                continue
        m = edges[t]
        for row in range(3):
            a, b = (q, r) if row == 0 else ((r, p) if row == 1 else (p, q))
            m[row, 0] = a[1] * b[2] - a[2] * b[1]
            m[row, 1] = a[2] * b[0] - a[0] * b[2]
            m[row, 2] = a[0] * b[1] - a[1] * b[0]
        volume = p[0] * m[0, 0] + p[1] * m[0, 1] + p[2] * m[0, 2]
        if abs(volume) < _THINNEST:
            continue
        for row in range(3):
            for column in range(3):
                m[row, column] /= volume
        kind = texture[t]
        holes = kind >= 0 and cutoff[kind] > 0
        for i in range(top, bottom + 1):
            y = (i + 0.5 - 0.5 * rows) / focal
            for j in range(left, right + 1):
                x = (j + 0.5 - 0.5 * columns) / focal
                e0, e1, e2 = corner_weights(m, x, y)
                if e0 < 0.0 or e1 < 0.0 or e2 < 0.0:
                    continue
                nearness = e0 + e1 + e2
                if nearness <= inverse_z[i, j]:
                    continue
                if holes:
                    u, v, spread = texture_place(m, uv[t], x, y, focal, sizes[kind, 0, 1], sizes[kind, 0, 2])
                    level = texture_level(spread, levels[kind])
                    if texel(texels, sizes[kind, level], u, v, False)[3] < cutoff[kind]:
                        continue
                inverse_z[i, j] = nearness
                which[i, j] = t
    return Visible(inverse_z, which, edges)


# Compiled code takes arrays from tuples slowly, so the functions that are called for every ray get arrays alone.


@compiled
def corner_weights(m: Floats, x: float, y: float) -> tuple[float, float, float]:
    """E of a ray in a triangle's `edges` `[3, 3]`."""
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2],
        m[1, 0] * x + m[1, 1] * y + m[1, 2],
        m[2, 0] * x + m[2, 1] * y + m[2, 2],
    )


@compiled
def texture_place(
    m: Floats, uv: Singles, x: float, y: float, focal: float, width: int, height: int
) -> tuple[float, float, float]:
    """Where on its texture a ray meets a triangle: u, v and how many texels a pixel covers there.

    Of the triangle's `edges` `[3, 3]` and the uv of its corners `[3, 2]`; x and y are the ray's direction, focal is in
    pixels, the texture's size in texels.
    """
    e0, e1, e2 = corner_weights(m, x, y)
    total = e0 + e1 + e2
    u = (e0 * uv[0, 0] + e1 * uv[1, 0] + e2 * uv[2, 0]) / total
    v = (e0 * uv[0, 1] + e1 * uv[1, 1] + e2 * uv[2, 1]) / total
    spread = 1.0
    for axis in range(2):
        across = m[0, axis] + m[1, axis] + m[2, axis]
        du = (m[0, axis] * uv[0, 0] + m[1, axis] * uv[1, 0] + m[2, axis] * uv[2, 0] - u * across) / total * width
        dv = (m[0, axis] * uv[0, 1] + m[1, axis] * uv[1, 1] + m[2, axis] * uv[2, 1] - v * across) / total * height
        spread *= (du * du + dv * dv) / (focal * focal)
    return u, v, math.sqrt(spread)


@compiled
def texture_level(spread: float, levels: int) -> int:
    """The size of a picture of which a pixel covers about one texel, from the texels of the largest that it covers."""
    level = 0
    while level < levels - 1 and spread > 2.0:
        spread *= 0.25
        level += 1
    return level


@compiled
def texel(texels: Bytes, size: Ints, u: float, v: float, mirrored: bool) -> tuple[float, float, float, float]:
    """RGB and alpha, from 0 to 255, at (u, v) of the picture of one size (first texel, width, height), bilinear.

    Colours count by their alpha, so that what is cut out does not shine through.
    """
    first, width, height = size[0], size[1], size[2]
    if mirrored:
        u = 1.0 - abs(u - 2.0 * math.floor(0.5 * u) - 1.0)
        v = 1.0 - abs(v - 2.0 * math.floor(0.5 * v) - 1.0)
    else:
        u -= math.floor(u)
        v -= math.floor(v)
    x, y = u * width - 0.5, v * height - 0.5
    left, top = math.floor(x), math.floor(y)
    to_right, down = x - left, y - top
    red = green = blue = alpha = weight = 0.0
    for i in range(2):
        row = top + i
        row = min(max(row, 0), height - 1) if mirrored else row % height
        for j in range(2):
            column = left + j
            column = min(max(column, 0), width - 1) if mirrored else column % width
            share = (down if i else 1.0 - down) * (to_right if j else 1.0 - to_right)
            k = first + row * width + column
            seen = share * (texels[k, 3] + 1e-3)  # what is wholly cut out has a colour too
            red += seen * texels[k, 0]
            green += seen * texels[k, 1]
            blue += seen * texels[k, 2]
            weight += seen
            alpha += share * texels[k, 3]
    return red / weight, green / weight, blue / weight, alpha
