"""Colours and textures of toy scenes: two colours, blended by two waves over a surface.

Only sums, products and floors: the same bits for every tensor layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

Colour = tuple[Tensor, Tensor, Tensor]

NUM_TEXTURE_DRAWS = 6

# Texture kinds: weights of U, V and U * V of two waves in [-1, 1], bias, sharpness of the edges, warp of the waves.
_KINDS = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],  # plain
        [0.0, 0.0, 1.0, 0.0, 2.5, 0.0],  # checker
        [1.0, 0.0, 0.0, 0.0, 2.0, 0.0],  # stripes
        [1.0, 1.0, 0.0, -0.9, 2.0, 0.0],  # dots
        [0.5, 0.4, 0.3, 0.0, 0.7, 0.3],  # smooth noise
    ]
)


def make_texture(
    draws: list[Tensor],
    hue_saturation_value: Colour,
    *,
    hue_shift: Tensor | float,
    plain: float,
    frequency: tuple[float, float],
) -> Tensor:
    """Textures `[..., 17]` from six uniform draws `[...]`, with least and most waves a metre in `frequency`.

    Returns:
        Two colours in [0, 1] (3 + 3), the coefficients of `_KINDS` (6), waves a metre, the phase in periods (2), cosine
        and sine of the pattern's angle.
    """
    kind, rate, phase_u, phase_v, turn, contrast = draws
    hue, saturation, value = hue_saturation_value
    patterned = ((kind - plain) * ((len(_KINDS) - 1) / (1.0 - plain))).floor().to(torch.int64) + 1
    row = patterned.clamp(0, len(_KINDS) - 1)
    columns = (
        rgb_from_hsv(hue, saturation, value),
        rgb_from_hsv(hue + hue_shift, saturation, value * between(contrast, 0.78, 0.52)),
        _KINDS.to(kind.device)[row],
        torch.stack([between(rate, *frequency), phase_u, phase_v], -1),
        cos_sin(between(turn, -0.8, 0.8)),
    )
    return torch.cat(columns, -1)


def paint(texture: Tensor, u: Tensor, v: Tensor, *, contrast: Tensor | float = 1.0) -> Colour:
    """Colours at (u, v) metres of textures `[..., 17]` that broadcast to them.

    A low contrast pales what is too far away to be resolved: 0 is the mean of the two colours.
    """
    columns = texture.movedim(-1, 0).contiguous()
    of_u, of_v, of_uv, bias, sharpness, warp, frequency, phase_u, phase_v, cos, sin = columns[6:]
    across = frequency * (u * cos + v * sin) + phase_u
    along = frequency * (v * cos - u * sin) + phase_v
    wave_u = _wave(across + warp * _wave(along * 0.6))
    wave_v = _wave(along + warp * wave_u)
    level = of_u * wave_u + of_v * wave_v + of_uv * (wave_u * wave_v) + bias
    share = 0.5 + 0.5 * contrast * (sharpness * level).clamp(-1.0, 1.0)
    red, green, blue = (a + (b - a) * share for a, b in zip(columns[:3], columns[3:6], strict=True))
    return red, green, blue


def _wave(t: Tensor) -> Tensor:
    """A smooth wave of period 1 in [-1, 1]: a cubic instead of a cosine, for its bits."""
    ramp = (2.0 * (t - t.floor()) - 1.0).abs()
    return 2.0 * ramp * ramp * (3.0 - 2.0 * ramp) - 1.0


def rgb_from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV in [0, 1], hue in turns of any size, to RGB `[..., 3]`."""
    channels = []
    for offset in (0.0, 2.0 / 3.0, 1.0 / 3.0):
        turn = hue + offset
        purity = (((turn - turn.floor()) * 6.0 - 3.0).abs() - 1.0).clamp(0.0, 1.0)
        channels.append(value * (1.0 - saturation * (1.0 - purity)))
    return torch.stack(channels, -1)


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) to numbers from `low` to `high`."""
    return low + (high - low) * u


def cos_sin(angle_rad: Tensor) -> Tensor:
    """`[..., 2]`; in double precision, so that the last bits of a vectorised cosine are rounded away."""
    angle = angle_rad.double()
    return torch.stack([angle.cos(), angle.sin()], -1).to(angle_rad.dtype)
