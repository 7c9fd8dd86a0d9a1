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

from vq3dcli.compiled import compiled_fast
from vq3dcli.rendering.cameras import Rays
from vq3dcli.rendering.fused import (
    Packed,
    corners,
    evaluate,
    grouped,
    locate,
    normalised_disparity,
    optical_thickness,
    scratch,
    share,
    sigmoid,
    softplus_argument,
)
from vq3dcli.rendering.ray_samples import RaySamples
from vq3dcli.rendering.render import Field, TrainedField
from vq3dcli.rendering.simd import LANES, UNITS, add_outer, back_outputs, mix, spread

# A ray ends when less than this passes through: no sum of weights in float32 knows of it.
_OPAQUE = 1e-8
# Gradients of the MLP are summed over so many rays first: sums of a million numbers would round.
_RAYS_TOGETHER = 16
_f: Any = np.float32


@compiled_fast
def _look(scene: Any, origin: Any, direction: Any, s: Any, edges_s: Any, rgb: Any, weights: Any) -> None:
    """Colours `[N, 3]` and weights `[N, S]` of rays `[N, 3]` with samples `[N, S]` between fenceposts `[N, S + 1]`."""
    numbers = scratch(scene)
    least = _f(1.0) / scene.far
    range_s = _f(1.0) / scene.near - least
    last = s.shape[1] - 1
    for n in range(len(origin)):
        a, b, c = direction[n, 0], direction[n, 1], direction[n, 2]
        metres = math.sqrt(a * a + b * b + c * c)
        passing, red, green, blue = _f(1.0), _f(0.0), _f(0.0), _f(0.0)
        weights[n] = _f(0.0)
        begin = _f(1.0) / (edges_s[n, 0] * range_s + least)
        for i in range(last + 1):
            z = _f(1.0) / (s[n, i] * range_s + least)
            end = _f(1.0) / (edges_s[n, i + 1] * range_s + least)
            u, v, w, inverse_z = locate(scene, origin[n, 0] + z * a, origin[n, 1] + z * b, origin[n, 2] + z * c)
            at = evaluate(scene, u, v, w, numbers)
            opacity = _f(1.0)
            if i < last:
                thick = optical_thickness(scene, numbers[at], normalised_disparity(scene, inverse_z))
                tau = thick * inverse_z * inverse_z / range_s * (end - begin) * metres
                # The series where 1 - exp(-tau) would round.
                opacity = tau * (_f(1.0) - _f(0.5) * tau) if tau < _f(1e-3) else _f(1.0) - math.exp(-tau)
            begin = end
            weight = passing * opacity
            weights[n, i] = weight
            red += weight * sigmoid(numbers[at + 1])
            green += weight * sigmoid(numbers[at + 2])
            blue += weight * sigmoid(numbers[at + 3])
            passing *= _f(1.0) - opacity
            if passing < _f(_OPAQUE):
                break
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
    numbers, back = scratch(scene), scratch(scene)
    layers, out = np.zeros_like(of_layers), np.zeros_like(of_out)
    units = scene.blocks * UNITS
    least = _f(1.0) / scene.far
    range_s = _f(1.0) / scene.near - least
    last = s.shape[1] - 1
    passing = np.empty(last + 2, np.float32)
    for n in range(len(origin)):
        a, b, c = direction[n, 0], direction[n, 1], direction[n, 2]
        per_thickness = math.sqrt(a * a + b * b + c * c) / range_s * scene.density[0] * scene.density[1]
        passing[0], end = _f(1.0), -1
        for i in range(last + 1):
            passing[i + 1] = max(passing[i] - weights[n, i], _f(0.0))
            if weights[n, i] != _f(0.0):
                end = i
        behind = _f(0.0)
        far_edge = _f(1.0) / (edges_s[n, end + 1] * range_s + least)
        for i in range(end, -1, -1):
            z = _f(1.0) / (s[n, i] * range_s + least)
            near_edge = _f(1.0) / (edges_s[n, i] * range_s + least)
            u, v, w, inverse_z = locate(scene, origin[n, 0] + z * a, origin[n, 1] + z * b, origin[n, 2] + z * c)
            at = evaluate(scene, u, v, w, numbers)
            weight = weights[n, i]
            g = of_weights[n, i]
            for k in range(3):
                colour = sigmoid(numbers[at + 1 + k])
                g += of_rgb[n, k] * colour
                back[at + 1 + k] = of_rgb[n, k] * weight * colour * (_f(1.0) - colour)
            back[at] = _f(0.0)
            if i < last:
                t = softplus_argument(scene, numbers[at], normalised_disparity(scene, inverse_z))
                steep = per_thickness * inverse_z * inverse_z * (far_edge - near_edge) * sigmoid(t)
                back[at] = (g * passing[i + 1] - behind) * steep
            far_edge = near_edge
            behind += g * weight
            for k in range(4):
                out[4 * units + k] += back[at + k]
            target = at - units
            back_outputs(numbers, target, units, scene.out, back, at, out)
            start, start_transposed = len(layers), len(transposed)
            for layer in range(len(scene.inputs) - 1, -1, -1):
                count = scene.inputs[layer]
                source = target - units if layer > 0 else 0
                start -= (count + 1) * units
                start_transposed -= count * units
                for block in range(scene.blocks):
                    add_outer(numbers, source, count, back, target + block * UNITS, layers,
                              start + block * (count + 1) * UNITS)  # fmt: skip
                for channel in range(0, count, LANES):
                    mix(back, target, units, transposed, start_transposed + channel, count, source + channel)
                if layer > 0:
                    for channel in range(source, target):
                        if numbers[channel] <= _f(0.0):
                            back[channel] = _f(0.0)
                target = source
            for plane in range(3):
                first, below, w00, w01, w10, w11 = corners(scene, plane, u, v, w)
                for channel in range(0, scene.channels, LANES):
                    spread(of_table, first + channel, first + scene.channels + channel, below + channel,
                           below + scene.channels + channel, w00, w01, w10, w11, back, channel)  # fmt: skip
        if n % _RAYS_TOGETHER == _RAYS_TOGETHER - 1 or n == len(origin) - 1:
            for k in range(len(layers)):
                of_layers[k] += layers[k]
                layers[k] = _f(0.0)
            for k in range(len(out)):
                of_out[k] += out[k]
                out[k] = _f(0.0)


def _scene(table: Tensor, layers: Tensor, out: Tensor, inputs: Sequence[int], numbers: Sequence[float]) -> Packed:
    """Planes `[3, P, P, C]` and what else `fused.Packed` holds."""
    return Packed(
        table.numpy().reshape(-1),
        table.shape[1],
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
        planes: `[B, 3, P, P, C]`, C padded to whole lanes.
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
        found: tuple[Tensor, Tensor] = look_along(
            self.planes, self.layers, self.out, rays.origin, rays.direction, samples.s, samples.edges_s, self.inputs,
            self.numbers,
        )  # fmt: skip
        return found
