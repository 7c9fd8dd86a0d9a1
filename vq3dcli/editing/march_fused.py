"""Rays that meet a relief on a CPU, one loop a ray: what `editing.march` computes by tensor operations.

Legend: N rays, H height_px, W width_px.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli.compiled import compiled_fast, inlined_fast
from vq3dcli.rendering.fused import share

_f: Any = np.float32


@inlined_fast
def _height(relief: Any, x: Any, y: Any) -> Any:
    """Bilinear between pixels, whose centres lie at +0.5, replicated outside."""
    high, wide = relief.shape
    x, y = min(max(x - _f(0.5), _f(0.0)), _f(wide - 1)), min(max(y - _f(0.5), _f(0.0)), _f(high - 1))
    i, j = max(min(int(x), wide - 2), 0), max(min(int(y), high - 2), 0)  # NaN becomes 0
    right, below = min(i + 1, wide - 1), min(j + 1, high - 1)
    a, b = x - _f(i), y - _f(j)
    upper = relief[j, i] + a * (relief[j, right] - relief[j, i])
    lower = relief[below, i] + a * (relief[below, right] - relief[below, i])
    return upper + b * (lower - upper)


@compiled_fast
def _march(
    relief: Any, base: Any, step: Any, high: Any, low: Any, step_px: Any, most_steps: int, precise_s: Any, result: Any
) -> None:
    """Where rays `base + s * step` `[N, 2]` meet a relief `[H, W]`: s and stretch `[N, 2]`."""
    for n in range(len(base)):
        x, y, a, b = base[n, 0], base[n, 1], step[n, 0], step[n, 1]
        pixels = math.sqrt(a * a + b * b) * (high - low) / step_px
        num_steps = min(max(int(pixels) + 1, 1), most_steps)
        width = (low - high) / _f(num_steps)
        first = num_steps
        for index in range(num_steps):
            level = high + width * _f(index)
            if _height(relief, x + level * a, y + level * b) >= level:
                first = index
                break
        front, behind = high + width * _f(max(first - 1, 0)), high + width * _f(first)
        halves = 0
        while halves < 2 or abs(width) > precise_s:
            middle = _f(0.5) * (front + behind)
            if _height(relief, x + middle * a, y + middle * b) >= middle:
                behind = middle
            else:
                front = middle
            width *= _f(0.5)
            halves += 1
        s = _f(0.5) * (front + behind)
        u, v, half = x + s * a, y + s * b, _f(0.5)
        slope_u = _height(relief, u + half, v) - _height(relief, u - half, v)
        slope_v = _height(relief, u, v + half) - _height(relief, u, v - half)
        result[n, 0], result[n, 1] = s, _f(1.0) - slope_u * a - slope_v * b


def march(
    relief: Tensor, base: Tensor, step: Tensor, high: float, low: float, *, step_px: float, most_steps: int,
    precise_s: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Where rays `base + s * step` `[N, 2]` meet a relief `[H, W]`, from disparity high to low: s and stretch `[N]`.

    Each ray takes steps of `step_px` in the photo, and the place between two of them is found to `precise_s`.
    """
    maps, start, along = (np.ascontiguousarray(each.numpy(), np.float32) for each in (relief, base, step))
    result = np.empty((len(start), 2), np.float32)
    numbers = (_f(high), _f(low), _f(step_px), most_steps, _f(precise_s))
    share(len(start), lambda part: _march(maps, start[part], along[part], *numbers, result[part]), kernel=_march)
    s, stretch = torch.from_numpy(result).unbind(-1)
    return s, stretch
