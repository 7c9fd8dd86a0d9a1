"""Augmentation of all that a discriminator sees, so that it cannot learn a small data set by heart.

Reals and fakes pass through the same random, differentiable changes (Zhao et al., NeurIPS 2020): brightness,
saturation, contrast, translation, cutout. Each is applied to an image with probability p: 1 ("differentiable"), or as
high as the discriminator's overfitting asks for ("adaptive", Karras et al., NeurIPS 2020).

Legend: B images, C channels (rgb, then disparity if any), H height_px, W width_px.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli import seeding

# Zhao et al.: an eighth of the side, half of the side.
_TRANSLATION = 0.125
_CUTOUT = 0.5
# Above it, augmentations leak into what is generated (Karras et al., sec. 2.2): the fakes look augmented.
LARGEST_ADAPTIVE_PROBABILITY = 0.8
# The statistic is an average over about four steps (Karras et al., sec. 3).
_SIGN_MOMENTUM = 0.25
_RANDOM_NUMBERS = 12


class AdaptiveState(NamedTuple):
    """The probability p, up to `LARGEST_ADAPTIVE_PROBABILITY`, and the running mean of r_t, the sign of real scores."""

    probability: float = 0.0
    sign: float = 0.0


def update_probability(
    state: AdaptiveState, sign: float, *, target: float, images: int, images_to_full: float
) -> AdaptiveState:
    """Raise p while r_t is above its target (0.6 in the paper), lower it while below (Karras et al., sec. 3).

    `sign` is the r_t of this step, of so many images, over all ranks; p can go from 0 to 1 in `images_to_full` (500,000
    in the paper).
    """
    running = state.sign + _SIGN_MOMENTUM * (sign - state.sign)
    step = images / images_to_full * ((running > target) - (running < target))
    return AdaptiveState(min(max(state.probability + step, 0.0), LARGEST_ADAPTIVE_PROBABILITY), running)


def augment(images: Tensor, index: Tensor, probability: float, *, seed: int, purpose: str) -> Tensor:
    """Change images `[B, C, H, W]` in [-1, 1] at random, C at least 3: later ones are moved and cut, not coloured.

    Gradients flow through; what is moved in or cut out is 0. Each of the five changes has the probability p; with 0 the
    images themselves come back. The numbers of an image depend on its global sample index `[B]`, the run's seed and
    the purpose alone, which is another one for reals than for fakes.
    """
    if probability <= 0.0:
        return images
    number = seeding.uniform(seed, purpose, index, _RANDOM_NUMBERS).to(images.device)
    chosen = number[:, :5] < probability
    amount = number[:, 5:]
    rgb = _recolour(images[:, :3], chosen, amount)
    changed = rgb if images.shape[1] == 3 else torch.cat([rgb, images[:, 3:]], 1)
    return _cut_out(_translate(changed, chosen[:, 3], amount[:, 3:5]), chosen[:, 4], amount[:, 5:7])


def _recolour(rgb: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5; `chosen` and `amount` `[B, >=3]`."""

    def drawn(change: int, low: float, high: float, neutral: float) -> Tensor:
        value = torch.where(chosen[:, change], low + (high - low) * amount[:, change], neutral)
        return value[:, None, None, None].to(rgb.dtype)

    rgb = rgb + drawn(0, -0.5, 0.5, 0.0)
    grey = rgb.mean(1, keepdim=True)
    rgb = grey + (rgb - grey) * drawn(1, 0.0, 2.0, 1.0)
    mean = rgb.mean((1, 2, 3), keepdim=True)
    return mean + (rgb - mean) * drawn(2, 0.5, 1.5, 1.0)


def _translate(images: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Move by whole pixels, up to an eighth of the side; `chosen` `[B]`, `amount` `[B, 2]`."""
    for axis in (0, 1):
        side = images.shape[2 + axis]
        reach = round(side * _TRANSLATION)
        shift = (amount[:, axis] * (2 * reach + 1)).long() - reach
        source = torch.arange(side, device=images.device) - torch.where(chosen, shift, 0)[:, None]
        inside = (source >= 0) & (source < side)
        shape = (-1, 1, side, 1) if axis == 0 else (-1, 1, 1, side)
        where = source.clamp(0, side - 1).reshape(shape).expand_as(images)
        images = images.gather(2 + axis, where) * inside.reshape(shape).to(images.dtype)
    return images


def _cut_out(images: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Blank a square of half the side; `chosen` `[B]`, `amount` `[B, 2]`."""
    hidden = chosen[:, None, None, None]
    for axis in (0, 1):
        side = images.shape[2 + axis]
        half = 0.5 * side * _CUTOUT
        # Between pixels, so that an even side loses exactly half of its pixels where the border does not.
        centre = (amount[:, axis] * (side + 1)).floor()
        position = torch.arange(side, device=images.device) + 0.5
        near = (position - centre[:, None]).abs() <= half
        hidden = hidden & near.reshape((-1, 1, side, 1) if axis == 0 else (-1, 1, 1, side))
    return images * (~hidden).to(images.dtype)
