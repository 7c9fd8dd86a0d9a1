"""Filters for maps that follow a photo: the guided filter, local ranges, steps, and the filling of holes.

Legend: H height_px, W width_px, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Weights below this are empty: an average over nothing would be noise.
_LEAST_WEIGHT = 1e-6
# The range of a slope in a window is a third of that in one of three times the side; that of a step is all of it.
_SLOPE_SHARE, _STEP_SHARE = 0.5, 0.7
# Of the range of all values.
_LEAST_STEP = 0.04
_STEEPER = 3.0


def box_mean(maps: Tensor, radius_px: int) -> Tensor:
    """Means of `[C, H, W]` over squares of side 2 `radius_px` + 1, cut at the border."""
    side = 2 * radius_px + 1
    # Rows, then columns: the cost grows with the radius, not with its square.
    rows = functional.avg_pool2d(maps[None], (1, side), 1, (0, radius_px), count_include_pad=False)
    return functional.avg_pool2d(rows, (side, 1), 1, (radius_px, 0), count_include_pad=False)[0]


def guided_filter(guide: Tensor, values: Tensor, *, radius_px: int, epsilon: float) -> Tensor:
    """Give `values` the edges of a guide of higher resolution (He, Sun and Tang, PAMI 2013, equations 14 to 16).

    Within each window the result is an affine function of the guide's three colours. Its coefficients are smooth, so
    they are found at the resolution of `values` (He and Sun, "Fast Guided Filter", 2015). Where the guide is flat, and
    the filter would blur, values stay as they are.

    Args:
        guide: Colours `[3, H, W]` in [0, 1].
        values: `[h, w]`, of the same scene, at most as large.
        radius_px: Half the side of a window, in pixels of `values`.
        epsilon: Variance of the guide that still counts as flat; above 0.

    Returns:
        float32 `[H, W]`.
    """
    guide, values = guide.float(), values.float()
    small = functional.interpolate(guide[None], size=values.shape, mode="bilinear", antialias=True)[0]
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
    full = functional.interpolate(parts[None], size=guide.shape[1:], mode="bilinear", align_corners=False)[0]
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


def fill_holes(values: Tensor, weight: Tensor) -> Tensor:
    """Fill where the weight is 0 smoothly from where it is not, by averages over ever larger squares and back.

    Push-pull interpolation (Gortler, Grzeszczuk, Szeliski and Cohen, SIGGRAPH 1996, section 3.4.1).

    Args:
        values: `[..., C, H, W]`.
        weight: `[..., H, W]`, from 0 (nothing known) to 1 (known: kept as it is).

    Returns:
        `[..., C, H, W]`; zeros if nothing at all is known.
    """
    height_px, width_px = weight.shape[-2:]
    weight = weight.unsqueeze(-3)
    if max(height_px, width_px) <= 1:
        return torch.where(weight > _LEAST_WEIGHT, values, torch.zeros_like(values))
    weighted = torch.cat([values * weight, weight], -3)
    halves = functional.avg_pool2d(weighted, 2, 2, ceil_mode=True, count_include_pad=False)
    sums, known = halves[..., :-1, :, :], halves[..., -1:, :, :]
    coarse = fill_holes(sums / known.clamp(min=_LEAST_WEIGHT), (4.0 * known.squeeze(-3)).clamp(max=1.0))
    flat = coarse.reshape(-1, *coarse.shape[-3:])
    up = functional.interpolate(flat, size=(height_px, width_px), mode="bilinear", align_corners=False)
    return weight * values + (1.0 - weight) * up.reshape(values.shape)
