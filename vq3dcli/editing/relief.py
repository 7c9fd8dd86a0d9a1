"""Reliefs: normalised disparity of each pixel of a photo, with the photo's own edges, and fields that take one on.

```
disparity of a NeRF or a depth network -> moved and scaled to the camera -> with the photo's edges (`refined.py`) -> s
```

Legend: H height_px, W width_px of the photo, h and w of a map, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.rendering.cameras import s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import look_up
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import Frustum

# Weights below this are empty: an average over nothing would be noise.
_LEAST_WEIGHT = 1e-6
# Steps towards Laplace's equation, at each scale, that continue planes to what nobody sees.
RELAXATIONS = 40
# The range of a slope in a window is a third of that in one of three times the side; that of a step is all of it.
_SLOPE_SHARE, _STEP_SHARE = 0.5, 0.7
# Of the range of all values.
_LEAST_STEP = 0.04
_STEEPER = 3.0
# The longer side of the relief that the photo guides: finer, it would take up texture.
RELIEF_PX = 256
# The window of noise in the NeRF's disparity, as a part of the longer side.
_NOISE_WINDOW = 1 / 64
# A network's map is fitted with errors of this much of s counted as large, and keeps at least this part of the spread
# that relative labels have in training: a NeRF that saw next to nothing would flatten it.
_FIT_S = 0.02
_FIT_ROUNDS = 10
_LEAST_SPREAD = 0.5
# Moved surfaces do not come closer to the ends than this: what lies between would be squeezed into nothing.
_LEAST_S = 0.02


def resized(values: Tensor, size: tuple[int, int] | torch.Size | list[int], *, smooth: bool = True) -> Tensor:
    """Maps `[..., H, W]` at another size, bilinear, with a low-pass filter where it shrinks unless not `smooth`."""
    flat = values.float().reshape(1, -1, *values.shape[-2:])
    out = functional.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False, antialias=smooth)
    return out.reshape(*values.shape[:-2], *out.shape[-2:])


def box_mean(maps: Tensor, radius_px: int) -> Tensor:
    """Means of `[C, H, W]` over squares of side 2 `radius_px` + 1, cut at the border."""
    side = 2 * radius_px + 1
    # Rows, then columns: the cost grows with the radius, not with its square.
    rows = functional.avg_pool2d(maps[None], (1, side), 1, (0, radius_px), count_include_pad=False)
    return functional.avg_pool2d(rows, (side, 1), 1, (radius_px, 0), count_include_pad=False)[0]


def mean_of(maps: Tensor, weight: Tensor, radius_px: int) -> Tensor:
    """The same by weight `[H, W]`."""
    mean = box_mean(torch.cat([maps * weight, weight[None]]), radius_px)
    return mean[:-1] / mean[-1:].clamp(min=_LEAST_WEIGHT)


def guided_filter(guide: Tensor, values: Tensor, *, radius_px: int, epsilon: float) -> Tensor:
    """Give `values` `[h, w]` the edges of a guide `[3, H, W]` of higher resolution: float32 `[H, W]`.

    He, Sun and Tang, PAMI 2013, equations 14 to 16. Within each window of side 2 `radius_px` + 1 the result is an
    affine function of the guide's three colours. Its coefficients are smooth, so they are found at the resolution of
    `values` (He and Sun, "Fast Guided Filter", 2015). Where the guide's variance is below `epsilon`, and the filter
    would blur, values stay as they are.
    """
    guide, values = guide.float(), values.float()
    small = resized(guide, values.shape)
    mean = box_mean(small, radius_px)
    mean_value = box_mean(values[None], radius_px)[0]
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    products = box_mean(torch.stack([small[i] * small[j] for i, j in pairs]), radius_px)
    covariance = guide.new_empty(*values.shape, 3, 3)
    for product, (i, j) in zip(products, pairs, strict=True):
        covariance[..., i, j] = covariance[..., j, i] = product - mean[i] * mean[j]
    covariance = covariance + epsilon * torch.eye(3, device=guide.device)
    with_value = (box_mean(small * values, radius_px) - mean * mean_value).permute(1, 2, 0)
    slope = _solve_symmetric(covariance, with_value).permute(2, 0, 1)
    offset = mean_value - (slope * mean).sum(0)
    varied = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)  # at least 3 epsilon
    averaged = box_mean(torch.cat([slope, offset[None], (1.0 - 3.0 * epsilon / varied)[None]]), radius_px)
    parts = torch.cat([averaged, values[None]])
    full = resized(parts, guide.shape[1:], smooth=False)
    return torch.lerp(full[5], (full[:3] * guide).sum(0) + full[3], full[4])


def _solve_symmetric(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve A x = b for symmetric positive A `[..., 3, 3]` by cofactors: ten times faster than LAPACK one by one."""
    a, b, c = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2]
    d, e, f = matrix[..., 1, 1], matrix[..., 1, 2], matrix[..., 2, 2]
    inverse = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
    determinant = a * inverse[0] + b * inverse[1] + c * inverse[2]
    x, y, z = right.unbind(-1)
    rows = [
        inverse[0] * x + inverse[1] * y + inverse[2] * z,
        inverse[1] * x + inverse[3] * y + inverse[4] * z,
        inverse[2] * x + inverse[4] * y + inverse[5] * z,
    ]
    return torch.stack(rows, -1) / determinant[..., None]


def local_range(values: Tensor, radius_px: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of `[H, W]` within squares of side 2 `radius_px` + 1."""
    side = 2 * radius_px + 1
    both = torch.stack([-values, values])[None]
    rows = functional.max_pool2d(both, (1, side), 1, (0, radius_px))
    low, high = functional.max_pool2d(rows, (side, 1), 1, (radius_px, 0))[0]
    return -low, high


def steps(values: Tensor, radius_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where a relief `[H, W]` steps from one level to another within `radius_px`.

    At a step the range of values hardly grows with the window; on a slope it grows as fast as the window does.

    Returns:
        How surely it is a step, from 0 to 1; and the two levels, each `[H, W]`.
    """
    low, high = local_range(values, radius_px)
    wide_low, wide_high = local_range(values, 3 * radius_px)
    height = high - low
    sure = (height / (wide_high - wide_low).clamp(min=1e-9) - _SLOPE_SHARE) / (_STEP_SHARE - _SLOPE_SHARE)
    # Small steps are texture.
    least = _LEAST_STEP * (values.max() - values.min()).clamp(min=1e-9)
    return sure.clamp(0.0, 1.0) * (height / least - 1.0).clamp(0.0, 1.0), low, high


def steepened(values: Tensor, radius_px: int, *, grow_px: int) -> Tensor:
    """A relief `[H, W]` whose blurred steps, at most `radius_px` to both sides, are three times as steep.

    What they lead from and to stays, and so do slopes. What is high at a step grows by `grow_px`: colours are mixed
    there, and belong to what is in front.
    """
    sure, low, high = steps(values, radius_px)
    height = high - low
    share = (values - low) / height.clamp(min=1e-9)
    steep = low + height * (_STEEPER * (share - 0.5) + 0.5).clamp(0.0, 1.0)
    steep = torch.lerp(values, steep, sure)
    sure, _, _ = steps(steep, radius_px)
    return torch.lerp(steep, local_range(steep, grow_px)[1], sure)


def median_filter(values: Tensor, radius_px: int) -> Tensor:
    """Medians of `[H, W]` over squares of side 2 `radius_px` + 1, whose border is continued outwards."""
    side = 2 * radius_px + 1
    padded = functional.pad(values[None, None], [radius_px] * 4, mode="replicate")[0, 0]
    return padded.unfold(0, side, 1).unfold(1, side, 1).flatten(2).median(-1).values


def fill_holes(values: Tensor, weight: Tensor, *, relaxations: int = 0, wide: int = 0) -> Tensor:
    """Fill where the weight is 0 smoothly from where it is not, by averages over ever larger squares and back.

    Push-pull interpolation (Gortler, Grzeszczuk, Szeliski and Cohen, SIGGRAPH 1996, section 3.4.1).

    Args:
        values: `[..., C, H, W]`.
        weight: `[..., H, W]`, from 0 (nothing known) to 1 (known: kept as it is).
        wide: Rounds that look to the left and right alone, before others look up and down, too.
        relaxations: Steps at each scale towards Laplace's equation: with `RELAXATIONS` planes are continued as such.

    Returns:
        `[..., C, H, W]`; zeros if nothing at all is known.
    """
    size = weight.shape[-2:]
    weight = weight.unsqueeze(-3)
    if max(size) <= 1:
        return torch.where(weight > _LEAST_WEIGHT, values, torch.zeros_like(values))
    weighted = torch.cat([values * weight, weight], -3)
    pool = (1 if wide else 2, 2)
    halves = functional.avg_pool2d(weighted, pool, pool, ceil_mode=True, count_include_pad=False)
    sums, known = halves[..., :-1, :, :], halves[..., -1:, :, :]
    half_weight = (pool[0] * pool[1] * known.squeeze(-3)).clamp(max=1.0)
    filled = sums / known.clamp(min=_LEAST_WEIGHT)
    coarse = fill_holes(filled, half_weight, relaxations=relaxations, wide=max(0, wide - 1))
    filled = weight * values + (1.0 - weight) * resized(coarse, size, smooth=False)
    for _ in range(relaxations):
        around = functional.pad(filled, (1, 1, 1, 1), mode="replicate")
        left_right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
        mean = 0.25 * (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + left_right[0] + left_right[1])
        filled = weight * values + (1.0 - weight) * mean
    return filled


def quiet(nerf_s: Tensor) -> Tensor:
    """The NeRF's disparity without what is noise in it, `[h, w]`."""
    radius_px = max(1, round(_NOISE_WINDOW * max(nerf_s.shape)))
    return box_mean(box_mean(nerf_s[None], radius_px), radius_px)[0]


def fitted(disparity: Tensor, nerf_s: Tensor, *, std_s: float) -> Tensor:
    """A relative map `[h, w]` at the scale and shift that agree best with the NeRF's: least absolute errors.

    `disparity` is in any unit, larger is nearer; `nerf_s` `[h', w']` is of the same view; `std_s`, the spread of s in a
    typical scene, bounds the scale. The result lies in [0, 1].
    """
    x = disparity.float()
    low, high = torch.quantile(x.flatten(), torch.tensor([0.02, 0.98], device=x.device)).tolist()
    x = x.clamp(low, high)
    seen = resized(x, nerf_s.shape)
    weight = torch.ones_like(nerf_s)
    scale, shift = 0.0, 0.0
    # Iteratively reweighted least squares.
    for _ in range(_FIT_ROUNDS):
        total = weight.sum()
        mean_x, mean_s = (weight * seen).sum() / total, (weight * nerf_s).sum() / total
        spread = (weight * (seen - mean_x).square()).sum().clamp(min=1e-12)
        scale = float((weight * (seen - mean_x) * (nerf_s - mean_s)).sum() / spread)
        shift = float(mean_s - scale * mean_x)
        weight = 1.0 / (_FIT_S + (scale * seen + shift - nerf_s).abs())
    deviation = max(float(seen.std()), 1e-6)
    bounded = min(max(scale, _LEAST_SPREAD * std_s / deviation), std_s / _LEAST_SPREAD / deviation)
    if bounded != scale:
        shift = float((nerf_s - bounded * seen).median())
    return (bounded * x + shift).clamp(0.0, 1.0)


def moved_to(field: Field, from_s: Tensor, to_s: Tensor, frustum: Frustum) -> Field:
    """A field whose surfaces are moved along the rays of its canonical camera, which sees the same colours as before.

    Along each ray s is stretched piecewise linearly, so that what lay at `from_s` lies at `to_s`, while near and far
    stay. Each piece of the ray keeps its optical thickness: with g from the new s to the old one,

        sigma'(x) dt = sigma(g(x)) dt_g,   dt ~ z^2 ds   =>   sigma'(x) = sigma(g(x)) g'(s) (z_g / z)^2.

    Args:
        from_s: Where its surfaces are, `[h, w]`; replicated outside.
        to_s: Where they shall be, of any size, of the same picture.
    """
    maps = torch.stack([resized(from_s, to_s.shape, smooth=False), to_s.float()]).clamp(_LEAST_S, 1.0 - _LEAST_S)

    @torch.no_grad()
    def moved(points: Tensor) -> tuple[Tensor, Tensor]:
        z_depth = frustum.z_depth(points)
        s = s_from_z_depth(z_depth, frustum.depth_range)
        slope = points[..., :2] / z_depth[..., None]
        old, new = look_up(maps, (slope / frustum.tangent).reshape(-1, 2)).reshape(2, *s.shape)
        behind = s < new
        gain = torch.where(behind, old / new, (1.0 - old) / (1.0 - new))
        z_old = z_depth_from_s(torch.where(behind, s * gain, 1.0 - (1.0 - s) * gain), frustum.depth_range)
        forward = torch.cat([slope, torch.ones_like(slope[..., :1])], -1)
        density, rgb = field(z_old[..., None] * forward - points.new_tensor([0.0, 0.0, frustum.radius]))
        return density * gain * (z_old / z_depth).square(), rgb

    return moved
