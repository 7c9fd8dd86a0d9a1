"""A thing that was cut out of a photo, as a relief with the photo's own pixels: a surface that rays are cast at.

Legend: H height_px, W width_px of the photo, N rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.cutout import Cutout, FirstView
from vq3dcli.editing.march import intersect, lines_of
from vq3dcli.editing.relief import fill_holes, guided_filter, resized
from vq3dcli.rendering.cameras import Rays, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.space import Frustum

# Half the window, and the least contrast squared, of the edges that a mask takes over from its photo.
_EDGE_PX, _EDGE_EPSILON = 3, 1e-3
# So close to the edge, as parts of the longer side, colours and relief are mixed with the background's.
_MIXED, _SLOPED = 1 / 160, 1 / 32
# Nothing of a thing is farther from its middle than this part of its width.
_THICKNESS = 0.4


@dataclass(frozen=True)
class Card:
    """A `placement.Surface` in the coordinates of the scene that the thing was cut out of."""

    rgb: Tensor  # `[3, H, W]` in [0, 1]
    alpha: Tensor  # how much of each pixel is the thing, `[H, W]`; a ray meets it or does not, at one half
    s: Tensor  # its relief `[H, W]`, continued beyond its edge
    frustum: Frustum

    def __call__(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Where rays `[1, N]` meet it: z_depth `[N]` along them, infinite where they do not, and colour `[N, 3]`."""
        camera = self.frustum.camera(*self.s.shape).to(self.s.device)
        pixels, s, _ = intersect(self.s, lines_of(camera, rays, self.frustum.depth_range))
        size = pixels.new_tensor([self.s.shape[1], self.s.shape[0]])
        met = (look_up_px(self.alpha[None], pixels)[0] > 0.5) & ((pixels >= 0.0) & (pixels <= size)).all(-1)
        ahead = z_depth_from_s(s, self.frustum.depth_range) - self.frustum.radius - rays.origin[0, :, 2]
        along = ahead / rays.direction[0, :, 2]
        return torch.where(met & (along > 0.0), along, torch.inf), look_up_px(self.rgb, pixels, mode="bicubic").T


def card_of(cutout: Cutout, view: FirstView, photo: Tensor) -> Card:
    """What was cut out of a view, with the colours of a photo `[3, H, W]` in [0, 1] of the same."""
    depth_range, size = cutout.frustum.depth_range, photo.shape[1:]
    alpha = guided_filter(photo, cutout.mask, radius_px=_EDGE_PX, epsilon=_EDGE_EPSILON).clamp(0.0, 1.0)
    z_depth = z_depth_from_s(view.s, depth_range)
    middle = float(z_depth[cutout.mask > 0.5].median())
    reach = _THICKNESS * cutout.width
    s = s_from_z_depth(z_depth.clamp(max(depth_range.near, middle - reach), middle + reach), depth_range)
    s = fill_holes(s[None], _core(cutout.mask, round(_SLOPED * len(cutout.mask))))[0]
    core = _core(alpha, max(1, round(_MIXED * max(size))))
    return Card(fill_holes(photo, core), alpha, resized(s, size, smooth=False), cutout.frustum)


def _core(mask: Tensor, by_px: int) -> Tensor:
    """What of a mask `[H, W]` is so far from its edge, 0 or 1; all of it where that is nothing."""
    solid = (mask > 0.5).float()
    # Beyond the picture's border the thing goes on.
    core = -functional.max_pool2d(-solid[None], 2 * by_px + 1, 1, by_px)[0]
    return core if bool(core.any()) else solid
