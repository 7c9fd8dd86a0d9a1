"""Scenes on a GPU, one Triton kernel: what `rendering.fused` does a ray at a time, for a block of rays at a time.

The rays of a block take their steps together. A step that all of them find empty is skipped, and the block ends with
its last ray. No ray knows of the others: its bits depend on nothing but the ray and the scene.

Legend: N rays, R rays of a block, S samples, C plane channels, U hidden units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language import tensor as T

from vq3dcli.rendering import fused
from vq3dcli.rendering.cameras import DepthRange, Rays, z_depth_from_s
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import Field, RayField, note_slower
from vq3dcli.rendering.simd import UNITS

_RAYS = 64
# Wider layers do not fit the shared memory of a block.
_MOST_UNITS = 128
_CELLS = tl.constexpr(fused.CELLS)
_OPAQUE = tl.constexpr(fused.OPAQUE)
_UNSEEN = tl.constexpr(fused.UNSEEN)
_UNITS = tl.constexpr(UNITS)


def _jit(function: Callable[..., Any]) -> Any:
    return triton.jit(function, do_not_specialize=["count", "steps"])  # else some sizes are compiled anew


@_jit
def _whole(x: T, most: T) -> T:
    """Clamped to [0, most] and cut to an integer; NaN becomes one too."""
    return tl.minimum(tl.maximum(x, 0.0), most).to(tl.int32)


@_jit
def _sigmoid(x: T) -> T:
    return 1.0 / (1.0 + tl.exp(-x))


@_jit
def _corner(table: T, texel: T, share: T, need: T, channels: T, C: tl.constexpr) -> T:
    """The share of a texel `[R]` in features `[R, C]`."""
    c = tl.arange(0, C)
    at = table + texel[:, None] * channels + c[None, :]
    return share[:, None] * tl.load(at, mask=need[:, None] & (c < channels)[None, :], other=0.0)


@_jit
def _plane(
    table: T,
    x: T,
    y: T,
    plane: T,
    need: T,
    side: T,
    channels: T,
    C: tl.constexpr,
) -> T:
    """Features `[R, C]` of a plane."""
    half, most = 0.5 * side, side - 1.0
    column = tl.minimum(tl.maximum((x + 1.0) * half - 0.5, 0.0), most)
    row = tl.minimum(tl.maximum((y + 1.0) * half - 0.5, 0.0), most)
    i, j = _whole(column, side - 2.0), _whole(row, side - 2.0)
    right, low = column - i, row - j
    left, up = 1.0 - right, 1.0 - low
    texel = (j * side + i) * 3 + plane
    return (
        _corner(table, texel, left * up, need, channels, C)
        + _corner(table, texel + 3, right * up, need, channels, C)
        + _corner(table, texel + 3 * side, left * low, need, channels, C)
        + _corner(table, texel + 3 * side + 3, right * low, need, channels, C)
    )


@_jit
def _layer(numbers: T, weights: T, count: T, blocks: T, K: tl.constexpr, U: tl.constexpr) -> T:
    """A hidden layer from `[R, K]` to `[R, U]`, of `count` inputs, see `simd.layer`."""
    k, unit = tl.arange(0, K), tl.arange(0, U)
    own = unit < blocks * _UNITS
    column = weights + (unit // _UNITS) * (count + 1) * _UNITS + unit % _UNITS
    bias = tl.load(column, mask=own, other=0.0)
    matrix = tl.load(column[None, :] + (k[:, None] + 1) * _UNITS, mask=(k < count)[:, None] & own[None, :], other=0.0)
    total = tl.dot(numbers, matrix, input_precision="tf32x3") + bias[None, :]
    return tl.where(total <= 0.0, 0.0, total)  # NaN stays


@_jit
def _output(numbers: T, out: T, blocks: T, index: tl.constexpr, U: tl.constexpr) -> T:
    """Number `index` of the last layer's four, `[R]`."""
    unit = tl.arange(0, U)
    row = tl.load(out + index * blocks * _UNITS + unit, mask=unit < blocks * _UNITS, other=0.0)
    return tl.sum(numbers * row[None, :], 1) + tl.load(out + 4 * blocks * _UNITS + index)


@_jit
def _look(
    table: T, weights: T, out: T, occupied: T, origin: T, direction: T, samples: T, result: T,
    count: T, steps: T, side: T, channels: T, blocks: T,
    scale_x: T, scale_y: T, scale_z: T, offset_x: T, offset_y: T, offset_z: T,
    near: T, far: T, radius: T, thick_scale: T, gain: T, slope: T, middle: T, shift: T,
    CONTRACTED: tl.constexpr, LAYERS: tl.constexpr, C: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
) -> None:  # fmt: skip
    """rgb, s and the variance of s, `[N, 5]`; `samples` holds s, z_depth and length, `[3, S]`."""
    ray = tl.program_id(0) * R + tl.arange(0, R)
    alive = ray < count
    x0 = tl.load(origin + 3 * ray, mask=alive, other=0.0)
    y0 = tl.load(origin + 3 * ray + 1, mask=alive, other=0.0)
    z0 = tl.load(origin + 3 * ray + 2, mask=alive, other=0.0)
    a = tl.load(direction + 3 * ray, mask=alive, other=0.0)
    b = tl.load(direction + 3 * ray + 1, mask=alive, other=0.0)
    c = tl.load(direction + 3 * ray + 2, mask=alive, other=0.0)
    metres = tl.sqrt(a * a + b * b + c * c)
    least = 1.0 / far
    range_s = 1.0 / near - least
    passing = tl.full([R], 1.0, tl.float32)
    red, green, blue = tl.zeros([R], tl.float32), tl.zeros([R], tl.float32), tl.zeros([R], tl.float32)
    mean, square = tl.zeros([R], tl.float32), tl.zeros([R], tl.float32)
    i = 0
    while (i < steps) & (tl.max(alive.to(tl.int32), 0) > 0):
        sample_s, z_depth = tl.load(samples + i), tl.load(samples + steps + i)
        x, y, z = x0 + z_depth * a, y0 + z_depth * b, z0 + z_depth * c
        inverse_z = 1.0 / tl.minimum(tl.maximum(z + radius, near), far)
        s = (inverse_z - least) / range_s
        last = i == steps - 1
        if CONTRACTED:
            norm = tl.sqrt(tl.maximum(x * x + y * y + z * z, 1.0))
            factor = (2.0 - 1.0 / norm) / norm
            u, v, w = x * factor * scale_x + offset_x, y * factor * scale_y + offset_y, z * factor * scale_z + offset_z
            inside = tl.maximum(tl.maximum(tl.abs(u), tl.abs(v)), tl.abs(w)) < 1.0
        else:
            u, v, w = x * inverse_z * scale_x, y * inverse_z * scale_y, 1.0 - 2.0 * s
            inside = alive
        half, most = 0.5 * _CELLS, _CELLS - 1.0
        cell = (_whole((w + 1.0) * half, most) * _CELLS + _whole((v + 1.0) * half, most)) * _CELLS
        there = tl.load(occupied + cell + _whole((u + 1.0) * half, most), mask=alive, other=0) != 0
        # Comparisons say that masks are booleans: Triton 3.9 takes no other.
        need = (alive & (there | last | (inside == 0))) != 0
        if tl.max(need.to(tl.int32), 0) > 0:
            numbers = _plane(table, u, v, 0, need, side, channels, C)
            numbers += _plane(table, u, w, 1, need, side, channels, C)
            numbers += _plane(table, v, w, 2, need, side, channels, C)
            hidden = _layer(numbers, weights, channels, blocks, C, U)
            units = blocks * _UNITS
            for layer in tl.static_range(LAYERS - 1):
                start = ((channels + 1) + layer * (units + 1)) * units
                hidden = _layer(hidden, weights + start, units, blocks, U, U)
            t = gain * _output(hidden, out, blocks, 0, U) + slope * (middle - s) - shift
            e = tl.exp(tl.where(t > 15.0, 0.0, t))
            series = e * (1.0 - e * (0.5 - e * (1.0 / 3.0)))  # of log(1 + e), whose sum would round
            soft = tl.where(t > 15.0, t, tl.where(t < -4.0, series, tl.log(1.0 + e)))
            tau = thick_scale * soft * inverse_z * inverse_z / range_s * tl.load(samples + 2 * steps + i) * metres
            opacity = tl.where(need, tl.where(last, 1.0, 1.0 - tl.exp(-tau)), 0.0)
            weight = passing * opacity
            weight = tl.where(weight <= _UNSEEN, 0.0, weight)
            red += tl.where(need, weight * _sigmoid(_output(hidden, out, blocks, 1, U)), 0.0)
            green += tl.where(need, weight * _sigmoid(_output(hidden, out, blocks, 2, U)), 0.0)
            blue += tl.where(need, weight * _sigmoid(_output(hidden, out, blocks, 3, U)), 0.0)
            mean += weight * sample_s
            square += weight * sample_s * sample_s
            passing *= 1.0 - opacity
            alive = (alive & ((passing < _OPAQUE) == 0)) != 0
        i += 1
    total = 1.0 - passing
    mean /= total
    store = ray < count
    tl.store(result + 5 * ray, red / total, mask=store)
    tl.store(result + 5 * ray + 1, green / total, mask=store)
    tl.store(result + 5 * ray + 2, blue / total, mask=store)
    tl.store(result + 5 * ray + 3, mean, mask=store)
    tl.store(result + 5 * ray + 4, tl.maximum(square / total - mean * mean, 0.0), mask=store)


@dataclass(frozen=True)
class CudaField(RayField):
    """A scene on a GPU; points are looked up by tensor operations."""

    scene: fused.Packed  # from `fused.pack`
    exact: Field  # the same by tensor operations
    device: torch.device  # where planes and rays are

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        return self.exact(points)

    def along(self, rays: Rays, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `render`; the last sample is opaque."""
        return self.look(rays, samples, self.occupied)

    @functools.cached_property
    def occupied(self) -> Tensor:
        """Where there may be something, uint8 `[CELLS, CELLS, CELLS]`, see `fused.FusedField.occupied`."""
        scene = self.scene
        middle = (torch.arange(fused.CELLS, device=self.device) + 0.5) * (2.0 / fused.CELLS) - 1.0
        at = torch.stack(torch.meshgrid(middle, middle, middle, indexing="ij")[::-1], -1)
        depth_range = DepthRange(float(scene.near), float(scene.far))
        if scene.contracted:
            at = (at - at.new_tensor(scene.offset)) / at.new_tensor(scene.scale)
            norm = at.square().sum(-1, keepdim=True).sqrt()  # all beyond the ball is as far as its edge
            at = torch.where(norm > 1.0, at / (norm * (2.0 - norm).clamp(min=1e-3)), at)
        else:
            z_depth = z_depth_from_s(0.5 * (1.0 - at[..., 2:]), depth_range)
            at = torch.cat([at[..., :2] * z_depth / float(scene.scale[0]), z_depth - float(scene.radius)], -1)
        density = torch.cat([self.exact(part.reshape(1, -1, 3))[0][0] for part in at])
        z_depth = (at[..., 2] + float(scene.radius)).clamp(depth_range.near, depth_range.far)
        thickness = density.reshape(z_depth.shape) * z_depth.square() * depth_range.extent
        around = functional.max_pool3d(thickness[None], 3, 1, 1)[0]
        return (~(around <= fused.EMPTY)).to(torch.uint8)  # NaN is to be seen

    @functools.cached_property
    def _arrays(self) -> list[Tensor]:
        """Of the scene, on the device."""
        scene = self.scene
        return [torch.from_numpy(part).to(self.device) for part in (scene.table, scene.weights, scene.out)]

    def look(self, rays: Rays, samples: int, occupied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`along`, where `occupied` says that there may be something."""
        scene, bins = self.scene, uniform_samples(samples, self.device)
        depth_range = DepthRange(float(scene.near), float(scene.far))
        steps = torch.stack([bins.s, z_depth_from_s(bins.s, depth_range), bins.lengths(depth_range)])
        origin, direction = (each[0].detach().float().contiguous() for each in (rays.origin, rays.direction))
        result = origin.new_empty(len(origin), 5)
        numbers = *scene.scale, *scene.offset, scene.near, scene.far, scene.radius, *scene.density
        with torch.cuda.device_of(result):
            _look[(-(-len(origin) // _RAYS),)](
                *self._arrays, occupied, origin, direction, steps, result,
                len(origin), samples, scene.side, scene.channels, scene.blocks, *map(float, numbers),
                CONTRACTED=scene.contracted, LAYERS=len(scene.inputs), C=triton.next_power_of_2(scene.channels),
                U=triton.next_power_of_2(scene.blocks * UNITS), R=_RAYS,
            )  # fmt: skip
        rgb, mean, variance = result[None].split((3, 1, 1), -1)
        return rgb, mean[..., 0], variance[..., 0]


def fused_or_exact(scene: fused.Packed, exact: Field, device: torch.device) -> Field:
    """The scene as a `CudaField` if its kernel can be compiled and run there, else `exact`."""
    if max(scene.channels, scene.blocks * UNITS) > _MOST_UNITS:
        note_slower(f"layers are wider than {_MOST_UNITS}")
        return exact
    field = CudaField(scene, exact, device)
    try:
        one = torch.ones(1, 1, 3, device=device)
        field.look(Rays(one, one), 1, torch.ones(fused.CELLS**3, dtype=torch.uint8, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, a C compiler and the driver fail in many ways
        note_slower(f"{type(error).__name__}: {error}".splitlines()[0])
        return exact
    return field
