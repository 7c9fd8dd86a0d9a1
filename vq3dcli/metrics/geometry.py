"""How right a rendered geometry is, against the exact one.

All functions take normalised disparity s (1 near, 0 far), give one number an image and know no model. A painted wall,
which can have a perfect main view, is exposed by `spearman`, `ssi_error` and `relief` together; an image-blind template
by comparing with the template's own figures.

Legend: B images, H height_px, W width_px, N pixels of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# A step of s between neighbouring pixels that is the border of something: several times that of a slanted ground at 64
# pixels (0.015), several times less than that between a toy scene's object and what is behind it.
EDGE_JUMP_S = 0.05

# Guards divisions for images without any relief. s lies in [0, 1] and is stored in 16 bits, so that a standard
# deviation below this is a constant image and not a measurement.
_SMALLEST_STD = 1e-6


def spearman(s: Tensor, s_true: Tensor) -> Tensor:
    """Rank correlation between rendered and true disparity; tied values share their average rank.

    Args:
        s: Rendered, `[B, H, W]`.
        s_true: Exact, `[B, H, W]`.

    Returns:
        float64 `[B]` in [-1, 1]; 0 where either image is constant.
    """
    ranks, ranks_true = _centred(average_ranks(_pixels(s))), _centred(average_ranks(_pixels(s_true)))
    # Centred ranks that are not all equal have a sum of squares of at least 1/2: the bound only replaces zero.
    norm = (ranks.square().sum(-1) * ranks_true.square().sum(-1)).clamp(min=0.25).sqrt()
    return (ranks * ranks_true).sum(-1) / norm


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1..N along the last dimension, the mean rank for ties; float64, the shape of `values` `[B, N]`."""
    ordered = values.sort(dim=-1).values.contiguous()
    smaller = torch.searchsorted(ordered, values.contiguous(), right=False)
    not_larger = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (smaller + not_larger + 1).double() / 2.0


def ssi_error(s: Tensor, s_true: Tensor) -> Tensor:
    """Scale- and shift-invariant error: mean |a s + b - s_true| / std(s_true), a and b by least squares an image.

    A constant s is fitted by the mean of s_true, which gives about 0.8 for most images. An s that runs the wrong way is
    not punished here (a may be negative) but by `spearman`.

    Args:
        s: Rendered, `[B, H, W]`.
        s_true: Exact, `[B, H, W]`.

    Returns:
        float64 `[B]`, 0 for any affine image of s_true.
    """
    rendered, exact = _centred(_pixels(s)), _centred(_pixels(s_true))
    variance = rendered.square().mean(-1)
    slope = (rendered * exact).mean(-1) / variance.clamp(min=_SMALLEST_STD**2)
    residual = (slope[:, None] * rendered - exact).abs().mean(-1)
    return residual / _std(exact).clamp(min=_SMALLEST_STD)


def relief(s: Tensor, s_true: Tensor) -> Tensor:
    """std(s) / std(s_true) of each image, without any alignment; reports give the median over images.

    Args:
        s: Rendered, `[B, H, W]`.
        s_true: Exact, `[B, H, W]`.

    Returns:
        float64 `[B]`: 1 is right, 0 a flat wall.
    """
    return _std(_centred(_pixels(s))) / _std(_centred(_pixels(s_true))).clamp(min=_SMALLEST_STD)


def mean_weight_variance(weight_variance: Tensor) -> Tensor:
    """Mean over rays of sum_i w_i (s_i - s_mean)^2, float64 `[B]`, from a rendering's `[B, H, W]`.

    A surface split over two of 96 samples gives about 2e-5; floaters give a hundred times that.
    """
    return _pixels(weight_variance).mean(-1)


class EdgeScores(NamedTuple):
    """How well the borders in a disparity map lie where the true ones are; float64 `[B]` each, in [0, 1].

    Attributes:
        precision: Part of the rendered borders within the tolerance of a true one; 0 where none is rendered.
        recall: Part of the true borders within the tolerance of a rendered one.
        f1: Their harmonic mean, 0 where either is 0.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


def edge_scores(s: Tensor, s_true: Tensor, *, jump: float = EDGE_JUMP_S, tolerance_px: int = 1) -> EdgeScores:
    """Edge accuracy: borders are pixels that differ from a neighbour by more than `jump` in s, on both sides of it.

    Disparity is compared as it stands, without alignment. A border that is smeared over many pixels has no jump and
    counts as missing, as does all of a flat wall. The idea, precision and recall of occluding borders, is that of Depth
    Pro (Bochkovskii et al., 2024), the definition in s with a tolerance is ours.

    Args:
        s: Rendered, `[B, H, W]`.
        s_true: Exact, `[B, H, W]`.
        jump: In s.
        tolerance_px: How far apart borders may lie, along either axis.

    Returns:
        NaN for images without a true border.
    """
    found, exact = _edges(s, jump), _edges(s_true, jump)

    def share(these: Tensor, others: Tensor) -> Tensor:
        size = 2 * tolerance_px + 1
        near = functional.max_pool2d(others.double()[:, None], size, stride=1, padding=tolerance_px)[:, 0] > 0
        return (these & near).flatten(1).sum(-1).double() / these.flatten(1).sum(-1).clamp(min=1)

    precision, recall = share(found, exact), share(exact, found)
    f1 = 2.0 * precision * recall / (precision + recall).clamp(min=1e-12)
    none = ~exact.flatten(1).any(-1)
    return EdgeScores(*(value.masked_fill(none, float("nan")) for value in (precision, recall, f1)))


def _edges(s: Tensor, jump: float) -> Tensor:
    """Pixels on either side of a jump, bool `[B, H, W]`."""
    edge = torch.zeros(s.shape, dtype=torch.bool, device=s.device)
    for axis in (1, 2):
        steps = s.diff(dim=axis).abs() > jump
        length = s.shape[axis]
        edge.narrow(axis, 0, length - 1).logical_or_(steps)
        edge.narrow(axis, 1, length - 1).logical_or_(steps)
    return edge


def non_flatness_score(values: Tensor, *, low: float = 0.0, high: float = 1.0, bins: int = 64) -> Tensor:
    """Non-flatness score: exp of the entropy of each image's histogram of depths; reports give the mean over images.

    From 3DGP (Skorokhodov et al., "3D generation on ImageNet", ICLR 2023; metric `nfs256` of its published code). It
    needs no ground truth: the effective number of bins that an image's depths fill. Noise scores as high as geometry,
    so that it says that something is flat, not that something is right.

    Published figures follow a protocol that the caller must keep to: 256 samples seen frontally, densities below
    their median set to zero before rendering, and `z_depth` between the near and far plane of the system's own camera
    (`low`, `high`). The score of disparity, the default here, is another number with the same meaning.

    Args:
        values: Disparity s, or `z_depth` with its range in `low` and `high`, `[B, H, W]`; clamped to the range.
        low: Lower end of the histogram, in the unit of `values`.
        high: Upper end of the histogram.
        bins: Number of equal bins.

    Returns:
        float64 `[B]` in [1, `bins`]: 1 for a flat wall, `bins` for a ramp over the whole range.
    """
    assert low < high and bins >= 1, (low, high, bins)
    position = (_pixels(values) - low) / (high - low) * bins
    # The upper end belongs to the last bin, as in every histogram function.
    index = position.clamp(0, bins - 1).long()
    counts = torch.zeros(len(index), bins, dtype=torch.float64, device=index.device)
    counts.scatter_add_(1, index, torch.ones_like(position))
    return torch.special.entr(counts / index.shape[1]).sum(-1).exp()


def _pixels(image: Tensor) -> Tensor:
    """`[B, H, W]` to float64 `[B, N]`."""
    return image.double().flatten(1)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def _std(centred: Tensor) -> Tensor:
    """Population standard deviation of values whose mean is zero."""
    return centred.square().mean(-1).sqrt()
