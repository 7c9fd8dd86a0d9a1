"""How right a rendered geometry is, against the exact one.

All functions take normalised disparity `[B, H, W]` (1 near, 0 far), give one number an image and know no model, but
`relative_figures`, for maps that are known up to an increasing affine map and where the truth has holes. A painted
wall, which can have a perfect main view, is exposed by `spearman`, `ssi_error` and `relief` together; an image-blind
template by comparing with the template's own figures.

Legend: B images, H height_px, W width_px, N pixels of an image, n known ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.seeding import generator

# A step of s between neighbouring pixels that is the border of something: several times that of a slanted ground at 64
# pixels (0.015), several times less than that between a toy scene's object and what is behind it.
EDGE_JUMP_S = 0.05

# Guards divisions for images without any relief. s lies in [0, 1] and is stored in 16 bits, so that a standard
# deviation below this is a constant image and not a measurement.
_SMALLEST_STD = 1e-6

RELATIVE_FIGURES = ("spearman", "ordinal", "ssi_error", "delta1")
_PAIRS = 3000
# Pairs of pixels whose ranks differ by less than this share of the image are not asked for their order.
_LEAST_APART = 0.1
_DELTA1 = 1.25
_BINS = 64


def spearman(s: Tensor, s_true: Tensor) -> Tensor:
    """Rank correlation between rendered and true disparity; tied values share their average rank.

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

    float64 `[B]`, 0 for any affine image of s_true.
    """
    rendered, exact = _centred(_pixels(s)), _centred(_pixels(s_true))
    variance = rendered.square().mean(-1)
    slope = (rendered * exact).mean(-1) / variance.clamp(min=_SMALLEST_STD**2)
    residual = (slope[:, None] * rendered - exact).abs().mean(-1)
    return residual / _std(exact).clamp(min=_SMALLEST_STD)


def relief(s: Tensor, s_true: Tensor) -> Tensor:
    """std(s) / std(s_true) of each image, without any alignment: 1 is right, 0 a flat wall; float64 `[B]`.

    Reports give the median over images.
    """
    return _std(_centred(_pixels(s))) / _std(_centred(_pixels(s_true))).clamp(min=_SMALLEST_STD)


def mean_weight_variance(weight_variance: Tensor) -> Tensor:
    """Mean over rays of sum_i w_i (s_i - s_mean)^2, float64 `[B]`, from a rendering's `[B, H, W]`.

    A surface split over two of 96 samples gives about 2e-5; floaters give a hundred times that.
    """
    return _pixels(weight_variance).mean(-1)


class EdgeScores(NamedTuple):
    """Parts of the rendered borders near a true one (0 without any), of the true near a rendered one; harmonic mean.

    float64 `[B]` each, in [0, 1].
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


def edge_scores(s: Tensor, s_true: Tensor) -> EdgeScores:
    """Edge accuracy: borders are pixels that differ from a neighbour by more than `EDGE_JUMP_S`, on both sides of it.

    Disparity is compared as it stands, without alignment. A border that is smeared over many pixels has no jump and
    counts as missing, as does all of a flat wall. The idea, precision and recall of occluding borders, is that of Depth
    Pro (Bochkovskii et al., 2024), the definition in s with a tolerance along either axis is ours. NaN for images
    without a true border.
    """
    rendered, exact = _edges(s), _edges(s_true)

    def share(these: Tensor, others: Tensor) -> Tensor:
        near = functional.max_pool2d(others.double()[:, None], 3, stride=1, padding=1)[:, 0] > 0  # within a pixel
        return (these & near).flatten(1).sum(-1).double() / these.flatten(1).sum(-1).clamp(min=1)

    precision, recall = share(rendered, exact), share(exact, rendered)
    f1 = 2.0 * precision * recall / (precision + recall).clamp(min=1e-12)
    none = ~exact.flatten(1).any(-1)
    return EdgeScores(*(value.masked_fill(none, float("nan")) for value in (precision, recall, f1)))


def _edges(s: Tensor) -> Tensor:
    """Pixels on either side of a jump, bool `[B, H, W]`."""
    edge = torch.zeros(s.shape, dtype=torch.bool, device=s.device)
    for axis in (1, 2):
        steps = s.diff(dim=axis).abs() > EDGE_JUMP_S
        length = s.shape[axis]
        edge.narrow(axis, 0, length - 1).logical_or_(steps)
        edge.narrow(axis, 1, length - 1).logical_or_(steps)
    return edge


def non_flatness_score(s: Tensor) -> Tensor:
    """Non-flatness score: exp of the entropy of each image's histogram of disparity, in 64 bins from 0 to 1.

    From 3DGP (Skorokhodov et al., "3D generation on ImageNet", ICLR 2023). It needs no ground truth: the effective
    number of bins that an image fills. Noise scores as high as geometry, so that it says that something is flat, not
    that something is right. Published figures are of `z_depth`, and another number with the same meaning.

    Of `[B, H, W]` it gives float64 `[B]`: 1 for a flat wall, 64 for a ramp over the whole range.
    """
    # The upper end belongs to the last bin, as in every histogram function.
    index = (_pixels(s) * _BINS).clamp(0, _BINS - 1).long()
    counts = torch.zeros(len(index), _BINS, dtype=torch.float64, device=index.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    return torch.special.entr(counts / index.shape[1]).sum(-1).exp()


def _pixels(image: Tensor) -> Tensor:
    """`[B, H, W]` to float64 `[B, N]`."""
    return image.double().flatten(1)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def _std(centred: Tensor) -> Tensor:
    return centred.square().mean(-1).sqrt()


def relative_figures(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """`RELATIVE_FIGURES` of one image's known pixels `[n]`: disparity up to an increasing affine map, and the true one.

    `spearman`: rank correlation. `ordinal`: share of 3,000 fixed random pairs of pixels, whose true ranks are at least
    a tenth of the image apart, that are in the right order. `ssi_error`: mean |a p + b - t| / std(t), a and b by least
    squares, a at least 0. `delta1`: share of pixels whose depth, after that fit, is within a factor of 1.25 of the
    truth (Eigen et al., NeurIPS 2014), which must be above 0 for it.
    """
    p, t = predicted.double().flatten(), truth.double().flatten()
    ranks = average_ranks(t[None])[0]
    first, second = torch.randint(len(t), (2, _PAIRS), generator=generator(0, "ordinal pairs"))
    apart = (ranks[first] - ranks[second]).abs() > _LEAST_APART * len(t)
    right = (p[first] - p[second]).sign() == (t[first] - t[second]).sign()
    ordinal = right[apart].double().mean() if bool(apart.any()) else torch.tensor(0.5)

    centred = _centred(p)
    slope = ((centred * _centred(t)).mean() / centred.square().mean().clamp(min=_SMALLEST_STD**2)).clamp(min=0.0)
    fitted = slope * centred + t.mean()
    error = (fitted - t).abs().mean() / t.std(correction=0).clamp(min=_SMALLEST_STD)
    # Half of the least true disparity: twice the greatest depth, beyond which the fit is wrong anyway.
    ratio = fitted.clamp(min=0.5 * float(t.min())) / t
    delta1 = (torch.maximum(ratio, 1.0 / ratio) < _DELTA1).double().mean()
    values = (spearman(p[None], t[None])[0], ordinal, error, delta1)
    return {name: float(value) for name, value in zip(RELATIVE_FIGURES, values, strict=True)}
