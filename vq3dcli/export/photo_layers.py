"""Pictures with reliefs, such as a photo and what its things in front hide, and layers that are cut from them.

Legend: L layers from near to far, H height_px, W width_px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.filters import fill_holes
from vq3dcli.export.layers import PROBE_SAMPLES, Frustum, Layers, edges_of, trust_of

# Two neighbouring texels belong to one surface if their s differ by less.
_SAME_SURFACE_S = 0.04
# Five of them in a row span more only where one surface ends before another.
_STEP_S = 0.08
_NEAR_SURFACE_S = 0.01


class Sheet(NamedTuple):
    """A picture with a relief: colour `[3, H, W]` in [0, 1], and the disparity of each pixel `[H, W]`."""

    rgb: Tensor
    s: Tensor


@dataclass(frozen=True)
class Sheets:
    """A photo as photo detail has it, for who draws it in the same way (`pipelines.detail.PhotoScene`).

    Attributes:
        front: What the canonical camera sees.
        behind: What takes its place where it is pulled apart; of the same size.
        frustum: The canonical camera.
        fades: Factors of being pulled apart between which the front gives way.
    """

    front: Sheet
    behind: Sheet
    frustum: Frustum
    fades: tuple[float, float]


def layers_of_sheets(
    sheets: Sequence[Sheet], frustum: Frustum, layers: int, *, margins: tuple[float, float] = (1.0, 1.0)
) -> Layers:
    """Cut pictures with reliefs into layers, for example a photo and what its things in front hide.

    Args:
        sheets: From front to back, all of one size.
        frustum: The canonical camera.
        layers: How many.
        margins: How much wider and higher the sheets are than what that camera sees.
    """
    steps = torch.cat([sheet.s.flatten() for sheet in sheets]).cpu()
    seen = torch.histc(1.0 - steps, PROBE_SAMPLES, 0.0, 1.0) / len(steps)
    edges_s = edges_of(seen, layers)
    last = sheets[-1]
    planes = (0.5 * (edges_s[1:] + edges_s[:-1])).to(last.s)[:, None, None].expand(layers, *last.s.shape)
    alpha = torch.zeros_like(planes)
    built = Layers(last.rgb.expand(layers, -1, -1, -1), alpha, planes, edges_s, frustum, margins)
    for sheet in reversed(sheets):
        built = add_photo(built, sheet.rgb, sheet.s)
    return built


def add_photo(layers: Layers, photo: Tensor, s: Tensor) -> Layers:
    """Put a photo on the surface that the canonical camera sees; what it hides stays the NeRF's.

    Args:
        layers: Of the NeRF, at any resolution; the result has the photo's.
        photo: `[3, H, W]` in [0, 1], what the canonical camera sees.
        s: The disparity of each of its pixels, `[H, W]`, for example the NeRF's refined by the photo's edges.
    """
    s = snap_to_surfaces(s)
    low, high = _surface_range(s)
    edges = layers.edges_s.tolist()
    count, (height, width) = len(layers), s.shape
    rgb, alpha = s.new_empty(count, 3, height, width), s.new_empty(count, height, width)
    texel_s = torch.empty_like(alpha)
    # A layer at a time: 32 layers of 512 pixels are half a gigabyte as it is.
    for layer in range(count):
        maps = torch.cat([layers.rgb[layer], layers.s[layer][None], layers.alpha[layer][None]])[None].to(s)
        maps = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[0]
        # A surface that crosses from one bin into the next lies in both along the seam: no crack opens between them.
        own = (edges[layer + 1] <= high) & (edges[layer] >= low)
        in_front = edges[layer + 1] > high
        opacity = torch.where(own, torch.ones_like(s), torch.where(in_front, torch.zeros_like(s), maps[4]))
        trust = torch.where(own, torch.ones_like(s), trust_of(opacity))
        maps = torch.where(own, torch.cat([photo.to(s), s[None]]), maps[:4])
        if not (trust == trust.flatten()[0]).all():
            maps = fill_holes(maps, trust)
        alpha[layer] = torch.ones_like(s) if layer == count - 1 else opacity
        rgb[layer], texel_s[layer] = maps[:3].clamp(0.0, 1.0), maps[3]
    return replace(layers, rgb=rgb, alpha=alpha, s=texel_s)


def snap_to_surfaces(s: Tensor) -> Tensor:
    """Pixels between two surfaces, which see a mean of both, go to the nearer one in s: `[..., H, W]`, by 5 x 5."""
    maps = s.reshape(-1, 1, *s.shape[-2:])
    high = functional.max_pool2d(maps, 5, 1, 2).reshape(s.shape)
    low = -functional.max_pool2d(-maps, 5, 1, 2).reshape(s.shape)
    closest = torch.where(high - s < s - low, high, low)
    return torch.where((high - low > _STEP_S) & ((closest - s).abs() > _NEAR_SURFACE_S), closest, s)


def _surface_range(s: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest s `[H, W]` in the 3 x 3 neighbourhood of each texel that are of its own surface."""
    padded = functional.pad(s[None, None], (1, 1, 1, 1), mode="replicate")
    around = functional.unfold(padded, 3).reshape(9, *s.shape)
    around = torch.where((around - s).abs() < _SAME_SURFACE_S, around, s)
    return around.amin(0), around.amax(0)
