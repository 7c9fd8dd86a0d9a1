"""Photos on the surfaces of toy scenes: a bank of small photos, and patches of them.

A surface is tiled by one photo, every other tile mirrored, so that no edge shows; a patch is a window of that tiling.
Photos are kept at halved sizes too, and a ray reads the size whose texels are about as wide as itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.files import sha256_bytes
from vq3dcli.toyscenes.textures import Colour, between, cos_sin

SIDES_PX = (128, 64, 32, 16, 8)
SIDE_PX = SIDES_PX[0]
_FIRST_TEXEL = tuple(sum(side * side for side in SIDES_PX[:level]) for level in range(len(SIDES_PX) + 1))
NUM_PATCH_DRAWS = 9
NO_PHOTO = -1
_BRIGHTNESS = (0.36, 0.7)  # mean of a patch under full light: photos have shadows of their own, and are lit again


class PhotoBank:
    """N photos uint8 `[N, 3, SIDE_PX, SIDE_PX]` at all their sizes, in memory: 65 kB each."""

    def __init__(self, photos: Tensor) -> None:
        if photos.shape[1:] != (3, SIDE_PX, SIDE_PX) or photos.dtype != torch.uint8 or not len(photos):
            raise ValueError(f"photos are {photos.dtype} {list(photos.shape)}, not uint8 [N, 3, {SIDE_PX}, {SIDE_PX}]")
        self.sha256 = sha256_bytes(photos.contiguous().numpy().tobytes())  # of the photos: equal for equal banks
        sizes = [photos.to(torch.int16)]
        while sizes[-1].shape[-1] > SIDES_PX[-1]:
            last = sizes[-1]
            four = last[..., ::2, ::2] + last[..., ::2, 1::2] + last[..., 1::2, ::2] + last[..., 1::2, 1::2]
            sizes.append((four + 2) // 4)
        # Mean colours in [0, 1] `[N, 3]`.
        self.mean = sizes[-1].flatten(2).to(torch.int64).sum(-1).to(torch.float32) / (255.0 * SIDES_PX[-1] ** 2)
        rows = torch.cat([size.to(torch.uint8).flatten(2) for size in sizes], -1)
        # uint8 `[N * texels a photo, 3]`: rows of the largest size, of the next one, ...
        self.texels = rows.transpose(1, 2).reshape(-1, 3).contiguous()

    def __len__(self) -> int:
        """Number of photos N."""
        return len(self.mean)


@dataclass(frozen=True)
class PhotoSurfaces:
    """The photos of n scenes, patches of `make_patch`."""

    bank: PhotoBank  # where they are from
    objects: Tensor  # of the first and the second parts of objects, `[n, k, 2, 9]`
    # of the ground and the wall, in metres, and at infinity instead of the sky, where a unit is the camera's z where x
    # is 1, `[n, 3, 9]`
    planes: Tensor


def make_patch(
    bank: PhotoBank, draws: list[Tensor], *, share: Tensor | float, period: tuple[float, float], max_turn_rad: float
) -> Tensor:
    """Patches `[..., 9]` from NUM_PATCH_DRAWS uniform draws `[...]`.

    A `share` of the surfaces, a probability for all or `[...]`, has one; a photo covers a length between those of
    `period`, and turns at most `max_turn_rad` to either side.

    Returns:
        Number of the photo or NO_PHOTO, photos a unit of length, the phase in photos (2), cosine and sine of the
        photo's angle on the surface, and what its colours are multiplied by (3).
    """
    chosen, photo, rate, phase_u, phase_v, turn, brightness, warmth, tint = draws
    number = (photo * len(bank)).to(torch.int64)
    red, green, blue = bank.mean[number].unbind(-1)
    level = between(brightness, *_BRIGHTNESS) / ((red + green + blue) / 3.0).clamp(min=0.05)
    # A dark photo stays dark: brightened more it would be noise.
    level = level.clamp(min=0.6, max=1.7)
    warm, tint = between(warmth, 0.85, 1.15), between(tint, 0.93, 1.07)
    columns = (
        torch.where(chosen < share, number, NO_PHOTO).to(torch.float32),
        1.0 / between(rate, *period),
        2.0 * phase_u,
        2.0 * phase_v,
        *cos_sin(between(turn, -max_turn_rad, max_turn_rad)).unbind(-1),
        level * warm,
        level * tint,
        level * (2.0 - warm),
    )
    return torch.stack(columns, -1)


def paint_photo(bank: PhotoBank, patch: Tensor, u: Tensor, v: Tensor, width: Tensor) -> Colour:
    """Colours at (u, v), both `[k]` and from 0 on, v downwards, of patches `[k, 9]` that each have a photo.

    `width` is what a ray covers of the surface, in its unit `[k]`.
    """
    number, frequency, phase_u, phase_v, cos, sin, *gain = patch.T.contiguous()
    level = torch.zeros_like(number, dtype=torch.int64)
    for i in range(1, len(SIDES_PX)):
        level += frequency * width * SIDE_PX > 0.7 * 2.0**i
    side = torch.tensor(SIDES_PX, device=u.device)[level]
    first = torch.tensor(_FIRST_TEXEL[:-1], device=u.device)[level] + number.to(torch.int64) * _FIRST_TEXEL[-1]
    left, right, to_right = _neighbours(frequency * (u * cos + v * sin) + phase_u, side)
    top, bottom, to_bottom = _neighbours(frequency * (v * cos - u * sin) + phase_v, side)
    corners = [bank.texels[first + y * side + x].float() for y in (top, bottom) for x in (left, right)]
    upper = corners[0] + (corners[1] - corners[0]) * to_right[:, None]
    lower = corners[2] + (corners[3] - corners[2]) * to_right[:, None]
    rgb = upper + (lower - upper) * to_bottom[:, None]
    red, green, blue = (channel * (factor / 255.0) for channel, factor in zip(rgb.unbind(-1), gain, strict=True))
    return red, green, blue


def _neighbours(t: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two texels beside a place in a row of mirrored photos, int64 `[k]`, and how far it is from the first one."""
    half = 0.5 * t
    within = 1.0 - (2.0 * (half - half.floor()) - 1.0).abs()
    place = (within * side - 0.5).clamp(min=0.0)
    first = torch.minimum(place.floor().to(torch.int64), side - 1)
    return first, torch.minimum(first + 1, side - 1), place - first
