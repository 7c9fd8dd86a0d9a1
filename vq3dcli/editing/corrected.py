"""A field whose surfaces are moved along the rays of its first camera.

Along each of those rays normalised disparity is stretched piecewise linearly, so that what lay at `from_s` lies at
`to_s`, while near (s = 1) and far (s = 0) stay. The density changes so that each piece of the ray keeps its optical
thickness: with g from the new s to the old one,

    sigma'(x) dt = sigma(g(x)) dt_g,   dt ~ z^2 ds   =>   sigma'(x) = sigma(g(x)) g'(s) (z_g / z)^2,

so the first camera sees the same colours as before, at other distances.

Legend: N points, h and w the size of the maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.rendering.cameras import s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import canonical_z_depth

# Surfaces do not come closer to the ends than this: what lies between would be squeezed into nothing.
_LEAST_S = 0.02


def corrected_field(
    field: Field, from_s: Tensor, to_s: Tensor, *, radius: float, fov_rad: float, near: float, far: float
) -> Field:
    """Move the surfaces of a field.

    Args:
        field: A single scene.
        from_s: Where they are in the first camera, `[h, w]`; replicated outside.
        to_s: Where they shall be, of any size, of the same picture.
        radius: Distance of the first camera from the pivot.
        fov_rad: Its field of view, which the maps span on both axes.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
    """
    from_s = functional.interpolate(from_s[None, None].float(), size=to_s.shape, mode="bilinear", align_corners=False)
    maps = torch.cat([from_s, to_s[None, None].float()], 1).clamp(_LEAST_S, 1.0 - _LEAST_S)
    half = math.tan(0.5 * fov_rad)

    @torch.no_grad()
    def corrected(points: Tensor) -> tuple[Tensor, Tensor]:
        z_depth = canonical_z_depth(points, radius=radius, near=near, far=far)
        s = s_from_z_depth(z_depth, near, far)
        slope = points[..., :2] / z_depth[..., None]
        grid = (slope / half).reshape(1, 1, -1, 2)
        found = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
        old, new = (part.reshape(s.shape) for part in found[0, :, 0])
        behind = s < new
        gain = torch.where(behind, old / new, (1.0 - old) / (1.0 - new))
        z_old = z_depth_from_s(torch.where(behind, s * gain, 1.0 - (1.0 - s) * gain), near, far)
        forward = torch.cat([slope, torch.ones_like(slope[..., :1])], -1)
        density, rgb = field(z_old[..., None] * forward - points.new_tensor([0.0, 0.0, radius]))
        return density * gain * (z_old / z_depth).square(), rgb

    return corrected
