"""Rays of scenes that are trained, on a CPU: one loop a ray forward, and one backward that computes its samples anew.

What `rendering.render_rays` computes by tensor operations over all samples, which autograd keeps. Here only the weights
of the samples are kept. A scene's gradients are summed in the order of its rays by one thread, so that their bits do
not depend on the number of threads.

Legend: B scenes, N rays, S samples, P plane side, C plane channels, L hidden layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vq3dcli.compiled import compiled_fast, inlined_fast
from vq3dcli.rendering.cameras import Rays
from vq3dcli.rendering.fused import (
    Packed,
    corners,
    grouped,
    locate,
    normalised_disparity,
    share,
    softplus_argument,
)
from vq3dcli.rendering.ray_samples import RaySamples
from vq3dcli.rendering.render import Field, TrainedField
from vq3dcli.rendering.simd import (
    GROUP,
    LANES,
    UNITS,
    add_outer,
    back_outputs,
    blend,
    exponentials,
    layer_of_group,
    mix,
    outputs,
    spread,
)

# A ray ends when less than this passes through: no sum of weights in float32 knows of it.
_OPAQUE = 1e-8
# Gradients of the MLP are summed over so many rays first: sums of a million numbers would round.
_RAYS_TOGETHER = 16
_f: Any = np.float32


@inlined_fast
def _step(scene: Any) -> Any:
    """Numbers of a point, see `fused.evaluate`."""
    return scene.channels + len(scene.inputs) * scene.blocks * UNITS + 4


@inlined_fast
def _evaluate_group(scene: Any, ray: Any, z: Any, group: int, places: Any, numbers: Any) -> Any:
    """`fused.evaluate` for the samples of a ray that begin with sample `group`, the last one in place of missing ones.

    Plane coordinates and clamped inverse z_depths go to `places` `[GROUP, 4]`; in `numbers` there stands
    `softplus_argument` for raw density.
    """
    step, units = _step(scene), scene.blocks * UNITS
    for k in range(GROUP):
        at, depth = k * step, z[min(group + k, len(z) - 1)]
        u, v, w, inverse_z = locate(scene, ray[0] + depth * ray[3], ray[1] + depth * ray[4], ray[2] + depth * ray[5])
        places[k, 0], places[k, 1], places[k, 2], places[k, 3] = u, v, w, inverse_z
        for channel in range(scene.channels):
            numbers[at + channel] = _f(0.0)
        for plane in range(3):
            first, below, w00, w01, w10, w11 = corners(scene, plane, u, v, w)
            for c in range(0, scene.channels, LANES):
                blend(scene.table, first + c, first + 3 * scene.channels + c, below + c, below + 3 * scene.channels + c,
                      w00, w01, w10, w11, numbers, at + c)  # fmt: skip
    source, target, start = 0, scene.channels, 0
    for count in scene.inputs:
        for block in range(scene.blocks):
            layer_of_group(numbers, source, count, scene.weights, start, target + block * UNITS, step)
            start += (count + 1) * UNITS
        source, target = target, target + units
    for k in range(GROUP):
        at = k * step + target
        outputs(numbers, k * step + source, units, scene.out, at)
        numbers[at] = softplus_argument(scene, numbers[at], normalised_disparity(scene, places[k, 3]))
    return target


@inlined_fast
def _softplus(t: Any, e: Any) -> Any:
    """log(1 + exp(t)) where e is exp(-t), by the series of the inverse hyperbolic tangent."""
    small = _f(1.0) / e if t < _f(0.0) else e
    ratio = small / (_f(2.0) + small)
    square = ratio * ratio
    series = _f(1.0 / 9.0) + square * (_f(1.0 / 11.0) + square * _f(1.0 / 13.0))
    series = _f(1.0 / 3.0) + square * (_f(1.0 / 5.0) + square * (_f(1.0 / 7.0) + square * series))
    return max(t, _f(0.0)) + _f(2.0) * ratio * (_f(1.0) + square * series)


@inlined_fast
def _see_ray(
    scene: Any, n: int, origin: Any, direction: Any, s: Any, edges_s: Any, ray: Any, z: Any, edges: Any
) -> Any:
    """Write out a ray, the z_depths of its samples and of their fenceposts; its metres a unit of z_depth."""
    least = _f(1.0) / scene.far
    range_s = _f(1.0) / scene.near - least
    for k in range(3):
        ray[k], ray[3 + k] = origin[n, k], direction[n, k]
    for i in range(len(z)):
        z[i] = _f(1.0) / (s[n, i] * range_s + least)
    for i in range(len(edges)):
        edges[i] = _f(1.0) / (edges_s[n, i] * range_s + least)
    return math.sqrt(ray[3] * ray[3] + ray[4] * ray[4] + ray[5] * ray[5]) / range_s


@compiled_fast
def _look(scene: Any, origin: Any, direction: Any, s: Any, edges_s: Any, rgb: Any, weights: Any) -> None:
    """Colours `[N, 3]` and weights `[N, S]` of rays `[N, 3]` with samples `[N, S]` between fenceposts `[N, S + 1]`."""
    step = _step(scene)
    numbers, places = np.empty(GROUP * step, np.float32), np.empty((GROUP, 4), np.float32)
    count = s.shape[1]
    ray, z, edges = np.empty(6, np.float32), np.empty(count, np.float32), np.empty(count + 1, np.float32)
    for n in range(len(origin)):
        metres = _see_ray(scene, n, origin, direction, s, edges_s, ray, z, edges)
        passing, red, green, blue = _f(1.0), _f(0.0), _f(0.0), _f(0.0)
        weights[n] = _f(0.0)
        group, going = 0, True
        while going and group < count:
            target = _evaluate_group(scene, ray, z, group, places, numbers)
            for i in range(group, min(group + GROUP, count)):
                at, inverse_z = (i - group) * step + target, places[i - group, 3]
                t = numbers[at]
                exponentials(numbers, at)
                opacity = _f(1.0)
                if i < count - 1:
                    thick = scene.density[0] * _softplus(t, numbers[at])
                    tau = thick * inverse_z * inverse_z * (edges[i + 1] - edges[i]) * metres
                    # The series where 1 - exp(-tau) would round.
                    opacity = tau * (_f(1.0) - _f(0.5) * tau) if tau < _f(1e-3) else _f(1.0) - math.exp(-tau)
                weight = passing * opacity
                weights[n, i] = weight
                red += weight / (_f(1.0) + numbers[at + 1])
                green += weight / (_f(1.0) + numbers[at + 2])
                blue += weight / (_f(1.0) + numbers[at + 3])
                passing *= _f(1.0) - opacity
                if passing < _f(_OPAQUE):
                    going = False
                    break
            group += GROUP
        rgb[n, 0], rgb[n, 1], rgb[n, 2] = red, green, blue


@compiled_fast
def _look_back(
    scene: Any, transposed: Any, origin: Any, direction: Any, s: Any, edges_s: Any, weights: Any, of_rgb: Any,
    of_weights: Any, of_table: Any, of_layers: Any, of_out: Any,
) -> None:  # fmt: skip
    """Add gradients with respect to planes and layers, given those with respect to what `_look` gives.

    With T_i what passes before sample i and g_i the gradient of its weight, colour included, that of its optical
    thickness is g_i T_{i+1} - sum_{j>i} g_j w_j.
    """
    step, units, count = _step(scene), scene.blocks * UNITS, s.shape[1]
    numbers, back = np.empty(GROUP * step, np.float32), np.empty(GROUP * step, np.float32)
    places, passing = np.empty((GROUP, 4), np.float32), np.empty(count + 1, np.float32)
    ray, z, edges = np.empty(6, np.float32), np.empty(count, np.float32), np.empty(count + 1, np.float32)
    layers, out = np.zeros_like(of_layers), np.zeros_like(of_out)
    for n in range(len(origin)):
        per_thickness = _see_ray(scene, n, origin, direction, s, edges_s, ray, z, edges)
        per_thickness *= scene.density[0] * scene.density[1]
        passing[0], end = _f(1.0), -1
        for i in range(count):
            passing[i + 1] = max(passing[i] - weights[n, i], _f(0.0))
            if weights[n, i] != _f(0.0):
                end = i
        behind = _f(0.0)
        for group in range(end - end % GROUP, -1, -GROUP):
            target = _evaluate_group(scene, ray, z, group, places, numbers)
            for k in range(GROUP - 1, -1, -1):
                i, at, inverse_z = group + k, k * step + target, places[k, 3]
                if i > end:
                    for channel in range(4):
                        back[at + channel] = _f(0.0)
                else:
                    weight, g = weights[n, i], of_weights[n, i]
                    exponentials(numbers, at)
                    for channel in range(3):
                        colour = _f(1.0) / (_f(1.0) + numbers[at + 1 + channel])
                        g += of_rgb[n, channel] * colour
                        back[at + 1 + channel] = of_rgb[n, channel] * weight * colour * (_f(1.0) - colour)
                    back[at] = _f(0.0)
                    if i < count - 1:
                        steep = inverse_z * inverse_z * (edges[i + 1] - edges[i]) / (_f(1.0) + numbers[at])
                        back[at] = (g * passing[i + 1] - behind) * steep * per_thickness
                    behind += g * weight
                for channel in range(4):
                    out[4 * units + channel] += back[at + channel]
            back_outputs(numbers, target - units, units, scene.out, back, target, out, step)
            target -= units
            start, start_transposed = len(layers), len(transposed)
            for layer in range(len(scene.inputs) - 1, -1, -1):
                width = scene.inputs[layer]
                source = target - units if layer > 0 else 0
                start -= (width + 1) * units
                start_transposed -= width * units
                for block in range(scene.blocks):
                    add_outer(numbers, source, width, back, target + block * UNITS, layers,
                              start + block * (width + 1) * UNITS, step)  # fmt: skip
                for channel in range(0, width, LANES):
                    mix(back, target, units, transposed, start_transposed + channel, width, source + channel, step)
                if layer > 0:
                    for k in range(GROUP):
                        for channel in range(k * step + source, k * step + target):
                            if numbers[channel] <= _f(0.0):
                                back[channel] = _f(0.0)
                target = source
            for k in range(min(GROUP, end - group + 1)):
                for plane in range(3):
                    first, below, w00, w01, w10, w11 = corners(scene, plane, places[k, 0], places[k, 1], places[k, 2])
                    for c in range(0, scene.channels, LANES):
                        spread(of_table, first + c, first + 3 * scene.channels + c, below + c,
                               below + 3 * scene.channels + c, w00, w01, w10, w11, back, k * step + c)  # fmt: skip
        if n % _RAYS_TOGETHER == _RAYS_TOGETHER - 1 or n == len(origin) - 1:
            for k in range(len(layers)):
                of_layers[k] += layers[k]
                layers[k] = _f(0.0)
            for k in range(len(out)):
                of_out[k] += out[k]
                out[k] = _f(0.0)


def _scene(table: Tensor, layers: Tensor, out: Tensor, inputs: Sequence[int], numbers: Sequence[float]) -> Packed:
    """A table `[P, P, 3, C]` and what else `fused.Packed` holds."""
    return Packed(
        table.numpy().reshape(-1),
        table.shape[0],
        table.shape[3],
        layers.numpy(),
        np.array(inputs, np.int64),
        (len(out) // 4 - 1) // UNITS,
        out.numpy(),
        bool(numbers[0]),
        *grouped(numbers[1:]),
    )


def _rows(tensor: Tensor, rays: Tensor) -> NDArray[np.float32]:
    """Numbers of rays `[B, N, ...]`, written out for each."""
    return tensor.expand(*rays.shape[:2], tensor.shape[-1]).contiguous().numpy()


def _look_op(
    planes: Tensor, layers: Tensor, out: Tensor, origin: Tensor, direction: Tensor, s: Tensor, edges_s: Tensor,
    inputs: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scenes = [_scene(table, layers, out, inputs, numbers) for table in planes.contiguous()]
    rays = [_rows(each, origin) for each in (origin, direction, s, edges_s)]
    rgb, weights = torch.empty_like(origin, memory_format=torch.contiguous_format), origin.new_empty(rays[2].shape)
    results = rgb.numpy(), weights.numpy()

    def look(part: slice) -> None:
        for b in range(part.start, part.stop):
            _look(scenes[b], *(each[b] for each in (*rays, *results)))

    share(len(scenes), look, size=1, kernel=_look)
    return rgb, weights


def _back_op(
    of_rgb: Tensor, of_weights: Tensor, weights: Tensor, planes: Tensor, layers: Tensor, out: Tensor, origin: Tensor,
    direction: Tensor, s: Tensor, edges_s: Tensor, inputs: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    scenes = [_scene(table, layers, out, inputs, numbers) for table in planes.contiguous()]
    rays = [_rows(each, origin) for each in (origin, direction, s, edges_s, weights, of_rgb, of_weights)]
    blocks, start, turned = scenes[0].blocks, 0, []
    for count in inputs:  # of a layer a row of all inputs for each unit
        size = (count + 1) * blocks * UNITS
        rows = layers[start : start + size].reshape(blocks, count + 1, UNITS)[:, 1:]
        turned.append(rows.transpose(1, 2).reshape(-1))
        start += size
    transposed = torch.cat(turned).numpy()
    of_planes = torch.zeros_like(planes, memory_format=torch.contiguous_format)
    of_layers, of_out = (each.new_zeros(len(scenes), len(each)) for each in (layers, out))
    results = of_planes.reshape(len(scenes), -1).numpy(), of_layers.numpy(), of_out.numpy()

    def look_back(part: slice) -> None:
        for b in range(part.start, part.stop):
            _look_back(scenes[b], transposed, *(each[b] for each in (*rays, *results)))

    share(len(scenes), look_back, size=1, kernel=_look_back)
    return of_planes, of_layers.sum(0), of_out.sum(0)


_RAYS = "Tensor planes, Tensor layers, Tensor out, Tensor origin, Tensor direction, Tensor s, Tensor edges_s"
_SCENE = "int[] inputs, float[] numbers"
look_along = torch.library.custom_op(
    "vq3d::look", _look_op, mutates_args=(), schema=f"({_RAYS}, {_SCENE}) -> (Tensor, Tensor)"
)
"""Colours `[B, N, 3]` and weights `[B, N, S]` that rays `[B, N]` see; an operation, so that traces know it as one."""
look_back = torch.library.custom_op(
    "vq3d::look_back",
    _back_op,
    mutates_args=(),
    schema=f"(Tensor of_rgb, Tensor of_weights, Tensor weights, {_RAYS}, {_SCENE}) -> (Tensor, Tensor, Tensor)",
)
"""Gradients with respect to planes, layers and out."""


@look_along.register_fake
def _(planes: Tensor, layers: Tensor, out: Tensor, origin: Tensor, direction: Tensor, s: Tensor, *_: Any) -> Any:
    return origin.new_empty(origin.shape), origin.new_empty(*origin.shape[:2], s.shape[-1])


@look_back.register_fake
def _(of_rgb: Tensor, of_weights: Tensor, weights: Tensor, planes: Tensor, layers: Tensor, out: Tensor, *_: Any) -> Any:
    return planes.new_empty(planes.shape), layers.new_empty(layers.shape), out.new_empty(out.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:7])
    ctx.rest = inputs[7:]


def _gradients(ctx: Any, of_rgb: Tensor, of_weights: Tensor) -> tuple[Tensor | None, ...]:
    return (*look_back(of_rgb, of_weights, *ctx.saved_tensors, *ctx.rest), *[None] * 6)


look_along.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.vq3d.look)
def _look_flops(planes: Any, layers: Any, out: Any, origin: Any, direction: Any, s: Any, *_: Any, **__: Any) -> int:
    """Of the MLP, as if no ray ended early; of shapes."""
    samples: int = math.prod(origin[:2]) * s[-1]
    return 2 * samples * (layers[0] + out[0])


@register_flop_formula(torch.ops.vq3d.look_back)
def _look_back_flops(of_rgb: Any, of_weights: Any, weights: Any, *rays: Any, **__: Any) -> int:
    return 3 * _look_flops(*rays)


@dataclass(frozen=True)
class FusedTrainedField(TrainedField):
    """Scenes on a CPU, with gradients.

    Attributes:
        planes: `[B, P, P, 3, C]`, C padded to whole lanes.
        layers, out: See `fused.flat_layers`.
        inputs: Of each hidden layer.
        numbers: Of space, camera and density, see `_scene`.
        exact: The same by tensor operations.
    """

    planes: Tensor
    layers: Tensor
    out: Tensor
    inputs: list[int]
    numbers: list[float]
    exact: Field

    def composited(self, rays: Rays, samples: RaySamples) -> tuple[Tensor, Tensor]:
        """See `TrainedField`."""
        seen: tuple[Tensor, Tensor] = look_along(
            self.planes, self.layers, self.out, rays.origin, rays.direction, samples.s, samples.edges_s, self.inputs,
            self.numbers,
        )  # fmt: skip
        return seen
