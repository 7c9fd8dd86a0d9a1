"""Whether two rendered views show the same surfaces, without any ground truth.

A pixel of the first view is carried to the second by the first view's disparity, and back by what the second view
renders there. In a scene of surfaces it comes home; where a view's disparity is a mean over floaters it does not.
Consistent is not right: a painted wall is perfectly consistent.

Legend: B images, H height_px, W width_px, N pixels of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.rendering.cameras import (
    FAR,
    NEAR,
    Camera,
    image_rays,
    pixel_centres,
    project,
    rays_at_pixels,
    z_depth_from_s,
)

# A pixel that comes home within this share of the width is consistent: 1.3 pixels of 64.
CONSISTENT_SHARE_OF_WIDTH = 0.02
_SMALLEST_Z = 1e-3


class Reprojection(NamedTuple):
    """How pixels come home; float64 `[B]` each, NaN where the second view sees none of them.

    Attributes:
        error: Median distance from where they started, in percent of the width. A median, since what one view sees and
            something hides from the other never comes home.
        share: Part of the pixels within `CONSISTENT_SHARE_OF_WIDTH`. Exact scenes do not reach 1 either: compare with
            theirs.
    """

    error: Tensor
    share: Tensor


def reprojection(
    source: Camera, s_source: Tensor, target: Camera, s_target: Tensor, *, near: float = NEAR, far: float = FAR
) -> Reprojection:
    """Carry pixels from one view to another and back.

    Args:
        source: Camera of the first view, B of them.
        s_source: Its normalised disparity `[B, H, W]`.
        target: Camera of the second view, B of them, of any size.
        s_target: Its normalised disparity, at its size; read off bilinearly, which is exact on planes.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
    """
    start = pixel_centres(source.height_px, source.width_px, s_source.device)
    rays = image_rays(source)
    points = rays.origin + z_depth_from_s(s_source.flatten(1), near, far)[..., None] * rays.direction
    pixels, z_depth = project(target, points)
    size = torch.tensor([target.width_px, target.height_px], dtype=pixels.dtype, device=pixels.device)
    seen = (z_depth > _SMALLEST_Z) & ((pixels > 0) & (pixels < size)).all(-1)
    inside = torch.where(seen[..., None], pixels, torch.zeros_like(pixels))
    grid = (2.0 * inside / size - 1.0)[:, :, None]
    found = functional.grid_sample(s_target[:, None], grid, padding_mode="border", align_corners=False)[:, 0, :, 0]
    back = rays_at_pixels(target, inside)
    home, home_z = project(source, back.origin + z_depth_from_s(found, near, far)[..., None] * back.direction)
    distance = (home - start).square().sum(-1).sqrt().double() / source.width_px
    # A point behind the first camera has mirrored pixels: it is lost, however near they lie.
    distance = torch.where(home_z > _SMALLEST_Z, distance, torch.full_like(distance, torch.inf))
    distance = torch.where(seen, distance, torch.full_like(distance, torch.nan))
    near_home = (distance <= CONSISTENT_SHARE_OF_WIDTH).double().masked_fill(~seen, torch.nan)
    return Reprojection(100.0 * distance.nanmedian(-1).values, near_home.nanmean(-1))
