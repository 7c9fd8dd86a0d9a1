"""What grounds, walls and boxes look like: a picture with its size and tint, and pictures of things without a pattern.

The pictures here are grey and few; their tints are a scene's own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.meshscenes.models import Texture, make_texture
from vq3dcli.meshscenes.raster import Bytes, Singles
from vq3dcli.seeding import uniform

WHITE: Bytes = np.full(3, 255, np.uint8)
NUM_PLAIN = 8
NUM_BOARDS = 4
NUM_TILES = 3
_PX = 64


class Skin(NamedTuple):
    """A texture, the length that one picture of it covers, and the colour `[3]` that it is multiplied by."""

    texture: Texture
    period_m: float
    tint: Bytes = WHITE


@functools.cache
def plain(number: int) -> Texture:
    """Nearly one grey, from even (0) to blotched and grainy (NUM_PLAIN - 1)."""
    strength = number / (NUM_PLAIN - 1)
    grain = _noise(f"grain/{number}", _PX) * 0.05 * strength
    blotches = _stretched(_noise(f"blotches/{number}", 4), 16) * 0.16 * strength
    return _grey(0.92 + grain + blotches)


@functools.cache
def boards(number: int) -> Texture:
    """Boards side by side, each of its own grey, with grain along them."""
    wide = (8, 16, 16, 32)[number]
    tone = np.repeat(_noise(f"tone/{number}", _PX // wide), wide, 1)[:1] * 0.3
    grain = np.repeat(_noise(f"fibre/{number}", _PX)[::8], 8, 0) * 0.12
    gap = np.where(np.arange(_PX) % wide == 0, -0.25, 0.0)
    return _grey(0.85 + tone + grain + gap)


@functools.cache
def tiles(number: int) -> Texture:
    """Square tiles with joints."""
    wide = (16, 32, 32)[number]
    tone = np.kron(_noise(f"tile/{number}", _PX // wide), np.ones((wide, wide))) * (0.0, 0.1, 0.3)[number]
    at = np.arange(_PX) % wide < 2
    return _grey(0.88 + tone - np.where(at[:, None] | at[None], (0.3, 0.15, 0.4)[number], 0.0))


def _grey(level: Singles) -> Texture:
    texels = (level.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return make_texture(np.stack([texels, texels, texels, np.full_like(texels, 255)], -1))


def _noise(name: str, side: int) -> Singles:
    """Numbers `[side, side]` in [-0.5, 0.5), the same in all scenes of all seeds."""
    drawn: Singles = uniform(0, f"meshsurfaces/{name}", torch.tensor([0]), side * side)[0].numpy().astype(np.float32)
    return drawn.reshape(side, side) - np.float32(0.5)


def _stretched(small: Singles, times: int) -> Singles:
    """A map `times` as large a side, linear in between."""
    at = (np.arange(len(small) * times) + 0.5) / times - 0.5
    left = np.floor(at).astype(int)
    share = (at - left).astype(np.float32)[:, None]
    low, high = left.clip(0, len(small) - 1), (left + 1).clip(0, len(small) - 1)
    rows = small[low] * (1.0 - share) + small[high] * share
    result: Singles = (rows[:, low] * (1.0 - share.T) + rows[:, high] * share.T).astype(np.float32)
    return result
