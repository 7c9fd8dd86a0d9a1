"""A relief with the edges of its photo: coarse disparity guided by colours, thin parts, steep steps, flat borders.

Legend: H height_px, W width_px of the photo, h and w of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.relief import (
    RELIEF_PX,
    box_mean,
    guided_filter,
    local_range,
    mean_of,
    median_filter,
    resized,
    steepened,
    steps,
)

# Windows as parts of the longer side: of the guided filter, of a step's half width, of what a median leaves out, and of
# mixed colours beside a step.
_GUIDE_WINDOW = 1 / 64
_STEP_WINDOW = 1 / 64
_SPECK_WINDOW = 1 / 128
_MIXED_WINDOW = 1 / 128
# Only contrasts of more than the square root of this are taken for edges of things.
_GUIDE_EPSILON = 6e-3
# What stands out from an even background beside a thing is its part: the window in which backgrounds are looked at and
# how far a part reaches, as parts of the longer side; what of all values a step has, and the background of a step; how
# far colours may lie apart in an even background, and how far what stands out lies from its mean, at least.
_BACK_WINDOW, _PART_WINDOW = 1 / 12, 1 / 10
_TALL, _BACK = 0.25, 0.3
_EVEN, _STANDS_OUT = 0.05, 0.15
_EVEN_ROUNDS = 3
# A printed border: at most this part of the shorter side, with lines of which most pixels are within so many levels of
# their median, and an edge along most of the side. Two sides have one; the picture inside rises over this part of the
# longer side.
_BORDER_SHARE, _BORDER_LEVELS, _BORDER_EVEN = 0.12, 24.0, 0.75
_EDGE_LEVELS, _EDGE_LONG = 20.0, 0.65
_BORDERED_SIDES, _RISE = 2, 1 / 4


def refined_disparity(coarse_s: Tensor, photo: Tensor) -> Tensor:
    """Give a map `[h, w]` of normalised disparity, squashed or not, the edges of a photo uint8 `[3, H, W]`.

    float32 `[H, W]`, within the map's range.
    """
    size = photo.shape[1:]
    factor = min(1.0, RELIEF_PX / max(size))
    guide = resized(photo.to(coarse_s) / 255.0, [max(1, round(side * factor)) for side in size])
    side_px = max(guide.shape[1:])
    radius_px = max(1, round(_GUIDE_WINDOW * side_px))
    s = guided_filter(guide, resized(coarse_s, guide.shape[1:]), radius_px=radius_px, epsilon=_GUIDE_EPSILON)
    s = with_parts(s.clamp(float(coarse_s.min()), float(coarse_s.max())), guide)
    s = median_filter(s, round(_SPECK_WINDOW * side_px))
    s = steepened(s, max(1, round(_STEP_WINDOW * side_px)), grow_px=round(_MIXED_WINDOW * side_px))
    return pinned(resized(s, size, smooth=False), photo)


def with_parts(s: Tensor, photo: Tensor) -> Tensor:
    """A relief `[H, W]` whose things have their thin parts, which a depth network leaves in an even background.

    Leaves, beaks and paws: what differs from the background's colours in the photo `[3, H, W]` in [0, 1] and touches
    something far in front of it, or what touches that.
    """
    side_px = max(s.shape)
    radius_px, part_px = (max(2, round(window * side_px)) for window in (_BACK_WINDOW, _PART_WINDOW))
    low, high = local_range(s, radius_px)
    span = s.max() - s.min()
    back = s <= low + _BACK * torch.maximum(high - low, _TALL * span)
    weight, share = back.float(), box_mean(back.float()[None], radius_px)[0].clamp(min=1e-6)
    apart = spread = torch.zeros_like(s)
    for _ in range(_EVEN_ROUNDS):
        mean = mean_of(photo, weight, radius_px)
        apart = (photo - mean).abs().amax(0)
        spread = mean_of((photo - mean).square().mean(0, keepdim=True), weight, radius_px)[0].sqrt()
        weight = (back & (apart < 2.5 * spread + 0.01)).float()
    even = (spread < _EVEN) & (box_mean(weight[None], radius_px)[0] > 0.5 * share)
    part = back & even & (apart > torch.maximum(4.0 * spread, torch.full_like(s, _STANDS_OUT)))
    if not bool(part.any()):
        return s
    sure, _, _ = steps(s, max(1, round(_STEP_WINDOW * side_px)))
    tall = high - low
    thing = (local_range(sure, radius_px)[1] > 0.5) & (tall > _TALL * span) & (s > low + 2.0 * _BACK * tall)
    level = torch.where(thing, s, torch.zeros_like(s))
    joins = part | (~back & local_range(thing.float(), part_px)[1].bool())
    for _ in range(part_px):
        level = torch.where(joins & (level <= 0.0), functional.max_pool2d(level[None], 3, 1, 1)[0], level)
    # What reaches farther is something else: no half of it may be torn off.
    goes_on = (joins & (level <= 0.0)).float()
    for _ in range(part_px + 1):
        goes_on = functional.max_pool2d(goes_on[None], 3, 1, 1)[0] * part
    part &= goes_on <= 0.0
    return torch.where(part, torch.maximum(level, s), s)


def pinned(s: Tensor, photo: Tensor) -> Tensor:
    """A relief `[H, W]` that is flat where its photo uint8 `[3, H, W]` has a printed border, and next to it.

    A border is no part of the scene: it moves as one, so it stays straight.
    """
    upright = photo.float()
    sides = (upright, upright.flip(1), upright.mT, upright.mT.flip(1))
    borders = [_border_px(side) for side in sides]
    if sum(border > 0 for border in borders) < _BORDERED_SIDES:
        return s
    rise_px = _RISE * max(s.shape)
    far = torch.ones_like(s)
    for index, border in enumerate(borders):
        across = torch.arange(s.shape[index // 2], device=s.device)
        height = ((across - border) / rise_px).clamp(0.0, 1.0) if border else torch.ones_like(across, dtype=s.dtype)
        height = height.flip(0) if index % 2 else height
        far = torch.minimum(far, height if index // 2 else height[:, None])
    return torch.lerp(s.median(), s, far * far * (3.0 - 2.0 * far))


def _border_px(photo: Tensor) -> int:
    """How many rows at the top of a photo `[3, H, W]`, in 255 levels, are a printed border."""
    rows = photo[:, : max(4, round(_BORDER_SHARE * min(photo.shape[1:])))]
    apart = (rows - rows.median(2, keepdim=True).values).abs().amax(0)
    even = ((apart < _BORDER_LEVELS).float().mean(1) >= _BORDER_EVEN).cumprod(0) > 0
    edge = ((rows[:, 3:] - rows[:, :-3]).abs().amax(0) > _EDGE_LEVELS).float().mean(1) >= _EDGE_LONG
    ends = (edge & even[1:-2]).nonzero()
    return int(ends[-1]) + 3 if len(ends) else 0
