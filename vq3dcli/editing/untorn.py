"""A relief that a camera which goes not far does not tear: slopes beside things, and edges that stay straight.

Beside a thing, what is behind it comes in sight as the camera moves. Where that is little, what is seen around the
thing may as well be stretched and squeezed: nothing is made up, and no step of the relief has to meet the thing's
outline to the pixel. So the relief becomes the least one above it without steep slopes. What still shows is a straight
edge along which the relief errs: it is changed smoothly to where it rises and falls evenly along the photo's edges.

Legend: H height_px, W width_px of the photo; h, w of a smaller map, N = h w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.march import edge_lines, longest_shift
from vq3dcli.editing.parallax import MOST_PARALLAX, disparity_extent
from vq3dcli.editing.relief import RELIEF_PX, box_mean, resized
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.space import Frustum

# What the steepest slopes are stretched to: just less than where views fade to what is behind.
_MOST_STRETCH = 1.5
# Cameras that see things move by more than this have a relief with steps: the ground would follow them visibly.
_MOST_SHIFT = 2.0 * MOST_PARALLAX
# The longer side of the map that is made even along edges, and how far apart three places in a line lie there.
_EVEN_PX, _APART_PX = 160, (3.0, 6.0)
# Contrasts of less than this a pixel are no edges. What moves by height alone counts less: cameras go sideways.
_EDGE_CONTRAST, _UPRIGHT = 0.03, 0.4
# Weights of an even course and of the change that it takes, over that of the change's slopes; steps to the solution.
_EVEN_WEIGHT, _KEEP_WEIGHT, _STEPS = 20.0, 0.02, 80
# An edge as sure as this goes on as such.
_GOES_ON = 0.3


def untorn(s: Tensor, photo: Tensor, frustum: Frustum, cameras: Camera) -> Tensor:
    """The relief `[H, W]` of a photo uint8 `[3, H, W]` without what some cameras would tear or bend, in its range.

    As it is where a camera goes far beyond what suits a photo.
    """
    lines = edge_lines(frustum.camera(*s.shape).to(s.device), cameras.to(s.device), frustum.depth_range)
    pixels_per_s = max(longest_shift(each, 0.0, 1.0) for each in lines)
    extent = disparity_extent(s, frustum.depth_range).width / frustum.depth_range.extent
    if not 0.0 < pixels_per_s * extent <= _MOST_SHIFT * s.shape[1]:
        return s
    factor = min(1.0, RELIEF_PX / max(s.shape))
    small = resized(s, [max(2, round(side * factor)) for side in s.shape])
    slope = (_MOST_STRETCH - 1.0) / (pixels_per_s * factor)
    even = evened(with_slopes(small, slope), photo).clamp(float(s.min()), float(s.max()))
    calm = with_slopes(even, slope)
    return resized(calm, s.shape, smooth=False)


def with_slopes(s: Tensor, most: float) -> Tensor:
    """The least relief at or above `s` `[h, w]` that falls by no more than `most` a pixel, in octagons around all."""
    for index in range(math.ceil(float(s.max() - s.min()) / most)):
        # The greatest of the square of 3 x 3 pixels, and of the cross in it, in turn.
        windows = [((3, 3), (1, 1))] if index % 2 else [((3, 1), (1, 0)), ((1, 3), (0, 1))]
        for size, padding in windows:
            s = torch.maximum(s, functional.max_pool2d(s[None], size, 1, padding)[0] - most)
    return s


class _Line(NamedTuple):
    """Three places in a line along an edge through each pixel."""

    places: Tensor  # pixels around both ends, `[8, N]`
    shares: Tensor  # what each contributes to its end, `[8, N]`
    weight: Tensor  # how surely there is such an edge, `[N]`

    def bend(self, values: Tensor) -> Tensor:
        """Second differences of a map `[N]`."""
        return (values[self.places] * self.shares).sum(0) - 2.0 * values

    def unbend(self, bends: Tensor) -> Tensor:
        """The transpose of `bend`."""
        return (-2.0 * bends).index_add(0, self.places.flatten(), (self.shares * bends).flatten())


def evened(s: Tensor, photo: Tensor) -> Tensor:
    """A relief `[H, W]` that changes evenly along the edges of its photo uint8 `[3, H, W]`, by a smooth change.

    Least squares: second differences along edges, slopes of the change, and the change.
    """
    factor = min(1.0, _EVEN_PX / max(s.shape))
    size = [max(2, round(side * factor)) for side in s.shape]
    lines = _lines(resized(photo.to(s) / 255.0, size))

    def pull(values: Tensor) -> Tensor:
        return _EVEN_WEIGHT * torch.stack([line.unbend(line.weight * line.bend(values)) for line in lines]).sum(0)

    def normal(values: Tensor) -> Tensor:
        return pull(values) + _KEEP_WEIGHT * values + _rough(values.reshape(size)).flatten()

    change = _solved(normal, -pull(resized(s, size).flatten()))
    return s + resized(change.reshape(size), s.shape, smooth=False)


def _lines(photo: Tensor) -> list[_Line]:
    """Lines along the edges of a photo `[3, h, w]` in [0, 1]."""
    down, right = torch.gradient(photo, dim=(1, 2))
    products = torch.stack([(right * right).sum(0), (right * down).sum(0), (down * down).sum(0)])
    xx, xy, yy = box_mean(box_mean(products, 1), 1)
    apart, both = torch.hypot(xx - yy, 2.0 * xy), (xx + yy).clamp(min=1e-9)
    angle = 0.5 * torch.atan2(2.0 * xy, xx - yy)  # of what is across the edge
    across_x, across_y = torch.cos(angle), torch.sin(angle)
    strong = 0.5 * (both + apart)
    sure = (apart / both).square() * strong / (strong + _EDGE_CONTRAST**2)
    sure = (sure * (across_x.square() + (_UPRIGHT * across_y).square())).flatten()
    height, width = photo.shape[1:]
    y, x = (each.flatten() for each in torch.meshgrid(*map(torch.arange, (height, width)), indexing="ij"))
    y, x = y.to(photo), x.to(photo)
    lines = []
    for way in _APART_PX:
        places, shares, weight = [], [], sure
        for side in (way, -way):
            u, v = x - side * across_y.flatten(), y + side * across_x.flatten()
            within = (u >= 0.0) & (u <= width - 1.0) & (v >= 0.0) & (v <= height - 1.0)
            u, v = u.clamp(0.0, width - 1.0), v.clamp(0.0, height - 1.0)
            left, top = u.floor().clamp(max=max(0, width - 2)), v.floor().clamp(max=max(0, height - 2))
            a, b = u - left, v - top
            first = (top * width + left).long()
            around = torch.stack([first, first + 1, first + width, first + width + 1])
            parts = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
            goes_on = (sure[around] * parts).sum(0)
            weight = torch.minimum(weight, sure * within * (goes_on / _GOES_ON).clamp(max=1.0))
            places.append(around)
            shares.append(parts)
        lines.append(_Line(torch.cat(places), torch.cat(shares), weight))
    return lines


def _rough(values: Tensor) -> Tensor:
    """The negative Laplacian of a map `[h, w]`, by differences of neighbours."""
    out = torch.zeros_like(values)
    for axis in (0, 1):
        apart = values.diff(dim=axis)
        count = apart.shape[axis]
        out.narrow(axis, 1, count).add_(apart)
        out.narrow(axis, 0, count).sub_(apart)
    return out


def _solved(normal: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """By conjugate gradients, about what a positive map takes to `right` `[N]`."""
    found, rest, way = torch.zeros_like(right), right, right
    norm = rest.square().sum()
    for _ in range(_STEPS):
        image = normal(way)
        length = norm / (way * image).sum().clamp(min=1e-20)
        found, rest = found + length * way, rest - length * image
        norm, before = rest.square().sum(), norm
        way = rest + norm / before.clamp(min=1e-20) * way
    return found
