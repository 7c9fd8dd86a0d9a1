"""From a network's map to a label: its size, its 16 bits, and what is wrong with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.shard_format import DISPARITY_LEVELS
from vq3dcli.data.shard_reader import resize_label

CONSTANT = "constant"
CLIPPED = "clipped"
NOISY = "noisy"
NOT_FINITE = "not finite"

# Standard deviation below this share of the mean magnitude: a constant in a network's own bfloat16, no relief. Of 141
# photos with measured or estimated disparity the flattest has 0.08.
_LEAST_RELIEF = 5e-3
# Far walls and skies are level in sound maps, near ones are rare: networks saturate at either end where they fail.
_MOST_AT_FAR_END, _MOST_AT_NEAR_END = 0.6, 0.1
_END = 1.0 / 1024.0  # of the range
# What is left of a map without its mean over 3 x 3 pixels, as a share of its deviation: 0.94 for white noise, below 0.2
# for maps of photos.
_MOST_ROUGHNESS = 0.5


class Label(NamedTuple):
    """`levels` int32 `[side, side]` for `lo + (hi - lo) * level / 65535`, and what is wrong with them."""

    levels: Tensor
    lo: float
    hi: float
    flags: list[str]


def make_label(disparity: Tensor, side: int) -> Label:
    """Reduce a disparity map `[h, w]`, larger is nearer, to `side` pixels and 16 bits, and say what is wrong with it.

    A smaller map is not enlarged.
    """
    values = resize_label(disparity.float(), min(side, *disparity.shape))
    finite = values.isfinite()
    if not finite.all():
        least = float(values[finite].min()) if finite.any() else 0.0
        values = values.where(finite, torch.tensor(least))
    flags = _flags(values) + ([] if finite.all() else [NOT_FINITE])
    lo, hi = float(values.min()), float(values.max())
    # 16 bits are spent on all values but far outliers, which are clamped: those further from the 1st or 99th percentile
    # than these are apart.
    low, high = (float(v) for v in torch.quantile(values.flatten().double(), torch.tensor([0.01, 0.99]).double()))
    if high > low:
        lo, hi = max(lo, low - (high - low)), min(hi, high + (high - low))
    if hi <= lo:
        return Label(torch.zeros_like(values, dtype=torch.int32), lo, lo, flags)
    levels = ((values.double().clamp(lo, hi) - lo) / (hi - lo) * DISPARITY_LEVELS).round().to(torch.int32)
    return Label(levels, lo, hi, flags)


def _flags(values: Tensor) -> list[str]:
    exact = values.double()
    deviation = float(exact.std(correction=0))
    if deviation <= _LEAST_RELIEF * float(exact.abs().mean()):
        return [CONSTANT]
    flags = []
    low, high = float(exact.min()), float(exact.max())
    end = _END * (high - low)
    at_far_end = float((exact <= low + end).double().mean())
    at_near_end = float((exact >= high - end).double().mean())
    if at_far_end > _MOST_AT_FAR_END or at_near_end > _MOST_AT_NEAR_END:
        flags.append(CLIPPED)
    smooth = functional.avg_pool2d(exact[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    if float((exact - smooth).std(correction=0)) > _MOST_ROUGHNESS * deviation:
        flags.append(NOISY)
    return flags
