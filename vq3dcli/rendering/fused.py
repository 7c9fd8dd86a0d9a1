"""Scenes on a CPU, one loop a ray: skip what is empty, gather, MLP, composite, stop where nothing more is seen.

What `rendering.render` computes with a dozen tensor operations over all samples, at a fraction of the work: a grid of
64^3 cells says where the scene is empty, and a ray ends when it is opaque (occupancy grids: Mueller et al., SIGGRAPH
2022; early termination: Levoy, 1990). The bits of a ray depend on nothing but the ray and the scene.

Legend: N points or rays, S samples, P plane side, C plane channels, L hidden layers.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vq3dcli.compiled import compiled_fast, inlined_fast, is_kept
from vq3dcli.rendering.cameras import DepthRange, Rays, z_depth_from_s
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import Density, Field, RayField
from vq3dcli.rendering.simd import LANES, UNITS, blend, layer, outputs
from vq3dcli.rendering.space import ContractedSpace, Frustum, Space

CELLS = 64
# A cell is empty where the optical thickness a unit of s is less, in it and in all cells around it.
EMPTY = 0.04
# A ray ends when less than this passes through.
OPAQUE = 1e-3
# Weights that no grey level of 8 bits shows.
UNSEEN = 1e-5

_SLOW_S = 1.0

_log = logging.getLogger(__name__)
_f: Any = np.float32


class Packed(NamedTuple):
    """A scene as flat arrays of float32.

    Attributes:
        table: Texels row by row, each of three planes with C channels, padded to whole lanes.
        side: P.
        channels: C, padded.
        weights: Of hidden layers, in blocks of 64 units, see `simd.layer`.
        inputs: Inputs of each hidden layer, `[L]`.
        blocks: Blocks of 64 units of a hidden layer.
        out: `[4 * 64 * blocks]`, then four biases.
        contracted: Whether space is contracted; else it is the canonical frustum.
        scale, offset: Contracted coordinates to plane coordinates; of the frustum, scale[0] is 1 / tan(fov / 2).
        near, far, radius: Of the canonical camera.
        density: See `Density`.
    """

    table: NDArray[np.float32]
    side: int
    channels: int
    weights: NDArray[np.float32]
    inputs: NDArray[np.int64]
    blocks: int
    out: NDArray[np.float32]
    contracted: bool
    scale: tuple[np.float32, np.float32, np.float32]
    offset: tuple[np.float32, np.float32, np.float32]
    near: np.float32
    far: np.float32
    radius: np.float32
    density: tuple[np.float32, np.float32, np.float32, np.float32, np.float32]


def pack(
    planes: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    space: Space,
    density: Density,
    frustum: Frustum,
) -> Packed:
    """A scene for `FusedField`.

    Args:
        planes: `[3, P, P, C]`.
        layers: Weight `[out, in]` and bias `[out]` of each linear layer, ReLU between them; the last gives raw density
            and three logits of colour.
        space: World points to plane coordinates.
        density: How raw density becomes thickness.
        frustum: What the canonical camera sees.
    """
    side = planes.shape[1]
    assert planes.shape[:3] == (3, side, side) and side > 1
    planes = whole_lanes(planes.detach().float())
    flat, out, inputs = flat_layers([(w.detach().cpu(), b.detach().cpu()) for w, b in layers], planes.shape[-1])
    contracted, *numbers = scene_numbers(space, density, frustum)
    return Packed(
        planes.permute(1, 2, 0, 3).cpu().contiguous().numpy().reshape(-1),
        side,
        planes.shape[-1],
        flat.numpy(),
        np.array(inputs, np.int64),
        (len(out) // 4 - 1) // UNITS,
        out.numpy(),
        bool(contracted),
        *grouped(numbers),
    )


def whole_lanes(planes: Tensor) -> Tensor:
    """Planes `[..., C]`, C padded with channels that are 0."""
    excess = -planes.shape[-1] % LANES
    return functional.pad(planes, (0, excess)) if excess else planes


def flat_layers(layers: Sequence[tuple[Tensor, Tensor]], channels: int) -> tuple[Tensor, Tensor, list[int]]:
    """`Packed.weights`, `Packed.out` and `Packed.inputs` of layers, see `pack`, on `channels` features."""
    *hidden, (last_weight, last_bias) = [(weight.float(), bias.float()) for weight, bias in layers]
    units = max(len(bias) for _, bias in hidden)
    blocks = -(-units // UNITS)
    parts: list[Tensor] = []
    inputs: list[int] = []
    for weight, bias in hidden:
        count = channels if not inputs else blocks * UNITS
        square = functional.pad(weight, (0, count - weight.shape[1], 0, blocks * UNITS - weight.shape[0]))
        rows = torch.cat([functional.pad(bias, (0, blocks * UNITS - len(bias)))[None], square.T])
        parts.append(rows.reshape(count + 1, blocks, UNITS).transpose(0, 1).reshape(-1))
        inputs.append(count)
    out = functional.pad(last_weight, (0, blocks * UNITS - last_weight.shape[1])).reshape(-1)
    return torch.cat(parts), torch.cat([out, last_bias]), inputs


def scene_numbers(space: Space, density: Density, frustum: Frustum) -> list[float]:
    """What `grouped` sorts, behind a 1 where space is contracted, else 0."""
    if isinstance(space, ContractedSpace):
        extent = [b - a for a, b in zip(space.lower, space.upper, strict=True)]
        scale = [2.0 / e for e in extent]
        offset = [-2.0 * a / e - 1.0 for a, e in zip(space.lower, extent, strict=True)]
    else:
        assert isinstance(space, Frustum)
        scale, offset = [1.0 / math.tan(0.5 * space.fov_rad)] * 3, [0.0] * 3
    contracted = float(isinstance(space, ContractedSpace))
    depth_range = frustum.depth_range
    return [contracted, *scale, *offset, depth_range.near, depth_range.far, frustum.radius, *density]


def grouped(numbers: Sequence[float]) -> tuple[Any, ...]:
    """The last six of `Packed`, from `scene_numbers`."""
    each = [_f(number) for number in numbers]
    return tuple(each[:3]), tuple(each[3:6]), *each[6:9], tuple(each[9:])


@inlined_fast
def locate(scene: Any, x: Any, y: Any, z: Any) -> Any:
    """Plane coordinates of a world point, and its clamped inverse z_depth in the canonical camera."""
    inverse_z = _f(1.0) / min(max(z + scene.radius, scene.near), scene.far)
    if scene.contracted:
        norm = math.sqrt(max(x * x + y * y + z * z, _f(1.0)))
        factor = (_f(2.0) - _f(1.0) / norm) / norm
        u = x * factor * scene.scale[0] + scene.offset[0]
        v = y * factor * scene.scale[1] + scene.offset[1]
        w = z * factor * scene.scale[2] + scene.offset[2]
    else:
        u, v = x * inverse_z * scene.scale[0], y * inverse_z * scene.scale[1]
        w = _f(1.0) - _f(2.0) * normalised_disparity(scene, inverse_z)
    return u, v, w, inverse_z


@inlined_fast
def normalised_disparity(scene: Any, inverse_z: Any) -> Any:
    """Normalised disparity."""
    least = _f(1.0) / scene.far
    return (inverse_z - least) / (_f(1.0) / scene.near - least)


@inlined_fast
def corners(scene: Any, plane: int, u: Any, v: Any, w: Any) -> Any:
    """Where the upper left and lower left of four texels of a plane begin in the table, and the four weights."""
    side, half, most = scene.side, _f(0.5 * scene.side), _f(scene.side - 1)
    column = min(max(((u if plane < 2 else v) + _f(1.0)) * half - _f(0.5), _f(0.0)), most)
    row = min(max(((v if plane == 0 else w) + _f(1.0)) * half - _f(0.5), _f(0.0)), most)
    i, j = max(min(int(column), side - 2), 0), max(min(int(row), side - 2), 0)  # NaN becomes 0
    right, low = column - _f(i), row - _f(j)
    left, up = _f(1.0) - right, _f(1.0) - low
    first = ((j * side + i) * 3 + plane) * scene.channels
    return first, first + 3 * side * scene.channels, left * up, right * up, left * low, right * low


@inlined_fast
def evaluate(scene: Any, u: Any, v: Any, w: Any, numbers: Any) -> int:
    """The raw density and the three logits of colour at plane coordinates: where they stand in `numbers`.

    Before them stand the features, then the units of each hidden layer.
    """
    channels = scene.channels
    for c in range(channels):
        numbers[c] = _f(0.0)
    for plane in range(3):
        first, below, w00, w01, w10, w11 = corners(scene, plane, u, v, w)
        for c in range(0, channels, LANES):
            blend(
                scene.table, first + c, first + 3 * channels + c, below + c, below + 3 * channels + c,
                w00, w01, w10, w11, numbers, c,
            )  # fmt: skip
    source, target, start = 0, channels, 0
    for count in scene.inputs:
        for block in range(scene.blocks):
            layer(numbers, source, count, scene.weights, start, target + block * UNITS)
            start += (count + 1) * UNITS
        source, target = target, target + scene.blocks * UNITS
    outputs(numbers, source, scene.blocks * UNITS, scene.out, target)
    return target


@inlined_fast
def softplus_argument(scene: Any, raw: Any, s: Any) -> Any:
    """What softplus is taken of."""
    _, gain, slope, middle, shift = scene.density
    return gain * raw + slope * (middle - s) - shift


@inlined_fast
def optical_thickness(scene: Any, raw: Any, s: Any) -> Any:
    """Optical thickness a unit of s, with softplus in steps that are cheap."""
    scale, t = scene.density[0], softplus_argument(scene, raw, s)
    if t > _f(15.0):
        return scale * t
    e = math.exp(t)
    if t < _f(-4.0):  # the series of log(1 + e), whose sum would round
        return scale * e * (_f(1.0) - e * (_f(0.5) - e * _f(1.0 / 3.0)))
    return scale * math.log(_f(1.0) + e)


@inlined_fast
def sigmoid(x: Any) -> Any:
    """A logit as a number between 0 and 1."""
    return _f(1.0) / (_f(1.0) + math.exp(-x))


@inlined_fast
def scratch(scene: Any) -> Any:
    """Room for what `evaluate` computes."""
    return np.empty(scene.channels + len(scene.inputs) * scene.blocks * UNITS + 4, np.float32)


@compiled_fast
def _query(scene: Any, points: Any, density: Any, rgb: Any) -> None:
    """Density a metre `[N]` and colour `[N, 3]` at points `[N, 3]`."""
    numbers = scratch(scene)
    range_s = _f(1.0) / scene.near - _f(1.0) / scene.far
    for n in range(len(points)):
        u, v, w, inverse_z = locate(scene, points[n, 0], points[n, 1], points[n, 2])
        at = evaluate(scene, u, v, w, numbers)
        thick = optical_thickness(scene, numbers[at], normalised_disparity(scene, inverse_z))
        density[n] = thick * inverse_z * inverse_z / range_s
        for channel in range(3):
            rgb[n, channel] = sigmoid(numbers[at + 1 + channel])


@compiled_fast
def _cells(scene: Any, first: int, thickness: Any) -> None:
    """Thickness a unit of s at the middles of cells, `[layers, CELLS, CELLS]` from layer `first` of the third axis."""
    numbers = scratch(scene)
    step = _f(2.0 / CELLS)
    for k in range(len(thickness)):
        w = (_f(first + k) + _f(0.5)) * step - _f(1.0)
        for j in range(CELLS):
            v = (_f(j) + _f(0.5)) * step - _f(1.0)
            for i in range(CELLS):
                u = (_f(i) + _f(0.5)) * step - _f(1.0)
                s = _f(0.5) * (_f(1.0) - w)
                if scene.contracted:
                    x, y, z = ((u - scene.offset[0]) / scene.scale[0], (v - scene.offset[1]) / scene.scale[1],
                               (w - scene.offset[2]) / scene.scale[2])  # fmt: skip
                    norm = math.sqrt(x * x + y * y + z * z)
                    if norm > _f(1.0):  # the contraction's inverse; all beyond its ball is as far as the ball's edge
                        z /= norm * max(_f(2.0) - norm, _f(1e-3))
                    s = normalised_disparity(scene, _f(1.0) / min(max(z + scene.radius, scene.near), scene.far))
                at = evaluate(scene, u, v, w, numbers)
                thickness[k, j, i] = optical_thickness(scene, numbers[at], s)


@compiled_fast
def _rays(
    scene: Any, occupied: Any, origin: Any, direction: Any, samples_s: Any, z_depth: Any, length: Any, result: Any
) -> None:
    """rgb, s and the variance of s, `[N, 5]`, of rays `[N, 3]` with samples `[S]`."""
    numbers = scratch(scene)
    range_s, half = _f(1.0) / scene.near - _f(1.0) / scene.far, _f(0.5 * CELLS)
    last = len(samples_s) - 1
    for n in range(len(origin)):
        a, b, c = direction[n, 0], direction[n, 1], direction[n, 2]
        metres = math.sqrt(a * a + b * b + c * c)
        passing, red, green, blue, mean, square = _f(1.0), _f(0.0), _f(0.0), _f(0.0), 0.0, 0.0
        for i in range(last + 1):
            z = z_depth[i]
            u, v, w, inverse_z = locate(scene, origin[n, 0] + z * a, origin[n, 1] + z * b, origin[n, 2] + z * c)
            if i < last and (not scene.contracted or max(abs(u), abs(v), abs(w)) < _f(1.0)):
                column, row = (
                    min(max(int((u + _f(1.0)) * half), 0), CELLS - 1),
                    min(max(int((v + _f(1.0)) * half), 0), CELLS - 1),
                )
                if not occupied[min(max(int((w + _f(1.0)) * half), 0), CELLS - 1), row, column]:
                    continue
            at = evaluate(scene, u, v, w, numbers)
            opacity = _f(1.0)
            if i < last:
                thick = optical_thickness(scene, numbers[at], normalised_disparity(scene, inverse_z))
                opacity = _f(1.0) - math.exp(-thick * inverse_z * inverse_z / range_s * length[i] * metres)
            weight = passing * opacity
            if not weight <= _f(UNSEEN):
                red += weight * sigmoid(numbers[at + 1])
                green += weight * sigmoid(numbers[at + 2])
                blue += weight * sigmoid(numbers[at + 3])
                mean += weight * samples_s[i]
                square += weight * samples_s[i] * samples_s[i]
            passing *= _f(1.0) - opacity
            if passing < _f(OPAQUE):
                break
        total = _f(1.0) - passing
        result[n, 0], result[n, 1], result[n, 2] = red / total, green / total, blue / total
        result[n, 3] = mean / total
        result[n, 4] = max(square / total - (mean / total) ** 2, 0.0)


@dataclass(frozen=True)
class FusedField(RayField):
    """A scene on a CPU.

    Attributes:
        scene: From `pack`.
        exact: The same by tensor operations.
    """

    scene: Packed
    exact: Field

    @functools.cached_property
    def occupied(self) -> NDArray[np.bool_]:
        """Where there may be something, `[CELLS, CELLS, CELLS]` by the third, second and first plane coordinate."""
        thickness = np.empty((CELLS, CELLS, CELLS), np.float32)
        share(CELLS, lambda part: _cells(self.scene, part.start, thickness[part]), size=8, kernel=_cells)
        around = functional.max_pool3d(torch.from_numpy(thickness)[None], 3, 1, 1)[0]
        return ~(around <= EMPTY).numpy()  # NaN is to be seen

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density a metre `[1, N]` and rgb `[1, N, 3]` in [0, 1] at world points `[1, N, 3]`."""
        at = np.ascontiguousarray(points[0].detach().numpy(), np.float32)
        density, rgb = np.empty(len(at), np.float32), np.empty((len(at), 3), np.float32)
        share(len(at), lambda part: _query(self.scene, at[part], density[part], rgb[part]), kernel=_query)
        return torch.from_numpy(density)[None], torch.from_numpy(rgb)[None]

    def along(self, rays: Rays, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Colours `[1, N, 3]`, s `[1, N]` and variance of s `[1, N]` of rays; the last sample is opaque."""
        scene, bins = self.scene, uniform_samples(samples)
        depth_range = DepthRange(float(scene.near), float(scene.far))
        s, z_depth, length = bins.s.numpy(), z_depth_from_s(bins.s, depth_range), bins.lengths(depth_range)
        origin, direction = (
            np.ascontiguousarray(each[0].detach().numpy(), np.float32) for each in (rays.origin, rays.direction)
        )
        result, occupied = np.empty((len(origin), 5), np.float32), self.occupied

        def look(part: slice) -> None:
            _rays(scene, occupied, origin[part], direction[part], s, z_depth.numpy(), length.numpy(), result[part])

        share(len(origin), look, kernel=_rays)
        rgb, mean, variance = torch.from_numpy(result)[None].split((3, 1, 1), -1)
        return rgb, mean[..., 0], variance[..., 0]


def share(count: int, work: Callable[[slice], None], *, kernel: Any, size: int = 2048) -> None:
    """Do the parts of some work, by as many threads as PyTorch has; the first time numba compiles its `kernel`."""
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    note = threading.Timer(_SLOW_S, lambda: _log.info("a part of the renderer is compiled, once for this machine"))
    if parts and not kernel.signatures:
        if not is_kept(kernel):
            note.start()
        try:
            work(parts.pop(0))
        finally:
            note.cancel()
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))
