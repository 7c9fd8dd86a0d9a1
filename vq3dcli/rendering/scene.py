"""Views of fields: what cameras see, as pictures and maps of disparity.

Legend: V views, H height_px, W width_px.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import DEPTH_RANGE, Camera, DepthRange, Rays, image_rays
from vq3dcli.rendering.render import Field, render


class SceneView(NamedTuple):
    """What cameras see."""

    rgb: Tensor  # uint8 `[V, 3, H, W]`
    s: Tensor  # expected normalised disparity `[V, H, W]` in [0, 1]
    weight_variance: Tensor  # variance of s under the rendering weights `[V, H, W]`


ViewOf = Callable[[Camera], SceneView]
"""Anything that cameras can look at, to film it, to export it or to measure it."""


def to_uint8(rgb: Tensor) -> Tensor:
    """Colours in [0, 1] as bytes."""
    return (rgb * 255.0).round().clamp(0, 255).to(torch.uint8)


def as_view(camera: Camera, rgb: Tensor, s: Tensor, weight_variance: Tensor) -> SceneView:
    """What all rays of cameras see, rgb `[V, H * W, 3]` and maps `[V, H * W]`, as images."""
    size = (len(camera), camera.height_px, camera.width_px)
    image = rgb.reshape(*size, 3).permute(0, 3, 1, 2)
    return SceneView(to_uint8(image), s.reshape(size), weight_variance.reshape(size))


def joined(views: list[SceneView]) -> SceneView:
    """Views of one size, one after the other."""
    return SceneView(*(torch.cat(part) for part in zip(*views, strict=True)))


@torch.no_grad()
def view_fields(
    field_of: Callable[[int], Field], camera: Camera, samples: int, depth_range: DepthRange = DEPTH_RANGE
) -> SceneView:
    """Look at fields, one a camera."""
    rays = image_rays(camera)
    parts = []
    # A field at a time: the lookup table of one scene's planes stays in the cache.
    for view in range(len(camera)):
        ray = Rays(rays.origin[view : view + 1], rays.direction[view : view + 1])
        parts.append(render(field_of(view), ray, samples, depth_range))
    return as_view(camera, *(torch.cat(part) for part in zip(*parts, strict=True)))
