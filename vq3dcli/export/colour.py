"""A colour map for disparity: dark violet (far) over magenta and orange to pale yellow (near).

The map is a curve in OKLab (Ottosson 2020): lightness grows by the same amount at each step, so equal differences of
`s` look equal and the order survives in greyscale, while the hue turns once from violet to yellow.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_ENTRIES = 256
_LIGHTNESS = (0.17, 0.96)
_HUE_RAD = (math.radians(-75.0), math.radians(100.0))
_CHROMA = 0.175

# OKLab to linear sRGB, by way of cube roots of cone responses.
_LAB_TO_CONES = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_CONES_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def colour_map(s: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Colour a map of normalised disparity.

    Args:
        s: `[..., H, W]`, any float type. NaN is shown as `low`.
        low: The value that gets the darkest colour; give the same range for all frames of a video, or they flicker.
        high: The value that gets the brightest colour, above `low`. Values outside the range are clamped.

    Returns:
        uint8 `[..., 3, H, W]` on the device of `s`.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    position = ((s.float().nan_to_num(nan=low) - low) / (high - low)).clamp(0.0, 1.0)
    index = (position * (_ENTRIES - 1)).round().long()
    return colour_table().to(s.device)[index].movedim(-1, -3).contiguous()


def display_range(s: Tensor) -> tuple[float, float]:
    """A range for `colour_map` that uses the colours well: the 1st and 99th percentile of `s`, at least 0.1 apart.

    Noise on a flat wall is not blown up to full contrast. Taken once, from the first frame of a video.
    """
    # A stride bounds the cost: the percentiles of a hundred thousand pixels are as good as those of all.
    values = s.detach().flatten().float()
    values = values[:: max(1, values.numel() // 100_000)]
    low, high = (float(value) for value in torch.quantile(values, torch.tensor([0.01, 0.99], device=values.device)))
    missing = max(0.0, 0.1 - (high - low))
    return max(0.0, low - 0.5 * missing), min(1.0, high + 0.5 * missing)


@functools.cache
def colour_table() -> Tensor:
    """The map itself: uint8 `[256, 3]`, row 0 for far."""
    position = torch.linspace(0.0, 1.0, _ENTRIES, dtype=torch.float64)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * position
    hue_rad = _HUE_RAD[0] + (_HUE_RAD[1] - _HUE_RAD[0]) * position
    # Little chroma at the dark and the bright end, where sRGB has none to give.
    chroma = _CHROMA * torch.sin(math.pi * (0.08 + 0.76 * position)) ** 0.7
    colours = _linear_rgb(lightness, chroma, hue_rad)
    # Whatever still leaves sRGB is moved towards the grey of the same lightness, which keeps the order of lightness.
    for _ in range(40):
        outside = ((colours < 0.0) | (colours > 1.0)).any(-1)
        chroma = torch.where(outside, chroma * 0.95, chroma)
        colours = _linear_rgb(lightness, chroma, hue_rad)
    colours = colours.clamp(0.0, 1.0)
    encoded = torch.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    return (encoded * 255.0).round().to(torch.uint8)


def _linear_rgb(lightness: Tensor, chroma: Tensor, hue_rad: Tensor) -> Tensor:
    """OKLCh `[N]` each to linear sRGB `[N, 3]`, unclamped."""
    lab = torch.stack([lightness, chroma * torch.cos(hue_rad), chroma * torch.sin(hue_rad)], -1)
    cones = (lab @ torch.tensor(_LAB_TO_CONES, dtype=lab.dtype).T) ** 3
    return cones @ torch.tensor(_CONES_TO_RGB, dtype=lab.dtype).T
