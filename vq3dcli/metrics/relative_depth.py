"""How right a map is that is known up to an increasing affine map, where the truth has holes.

Legend: n known pixels of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vq3dcli.metrics.geometry import average_ranks
from vq3dcli.seeding import generator

FIGURES = ("spearman", "ordinal", "ssi_error", "delta1")
_PAIRS = 3000
# Pairs of pixels whose ranks differ by less than this share of the image are not asked for their order.
_LEAST_APART = 0.1
_DELTA1 = 1.25
_LEAST_STD = 1e-6


def relative_figures(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Figures of one image.

    Args:
        predicted: Disparity up to an increasing affine map, at the known pixels, `[n]`.
        truth: Disparity there, `[n]`; above 0 for `delta1`.

    Returns:
        `spearman`: rank correlation. `ordinal`: share of 3,000 fixed random pairs of pixels, whose true ranks are at
        least a tenth of the image apart, that are in the right order. `ssi_error`: mean |a p + b - t| / std(t), a and
        b by least squares, a at least 0. `delta1`: share of pixels whose depth, after that fit, is within a factor of
        1.25 of the truth (Eigen et al., NeurIPS 2014).
    """
    p, t = predicted.double().flatten(), truth.double().flatten()
    assert p.shape == t.shape and len(p) > 1, (p.shape, t.shape)
    ranks_p, ranks_t = average_ranks(p[None])[0], average_ranks(t[None])[0]
    centred_p, centred_t = ranks_p - ranks_p.mean(), ranks_t - ranks_t.mean()
    norm = (centred_p.square().sum() * centred_t.square().sum()).clamp(min=0.25).sqrt()

    first, second = torch.randint(len(t), (2, _PAIRS), generator=generator(0, "ordinal pairs"))
    apart = (ranks_t[first] - ranks_t[second]).abs() > _LEAST_APART * len(t)
    right = (p[first] - p[second]).sign() == (t[first] - t[second]).sign()
    ordinal = right[apart].double().mean() if bool(apart.any()) else torch.tensor(0.5)

    spread = p - p.mean()
    slope = ((spread * (t - t.mean())).mean() / spread.square().mean().clamp(min=_LEAST_STD**2)).clamp(min=0.0)
    fitted = slope * spread + t.mean()
    ssi_error = (fitted - t).abs().mean() / t.std(correction=0).clamp(min=_LEAST_STD)
    # Half of the least true disparity: twice the greatest depth, beyond which the fit is wrong anyway.
    ratio = fitted.clamp(min=0.5 * float(t.min())) / t
    delta1 = (torch.maximum(ratio, 1.0 / ratio) < _DELTA1).double().mean()
    values = ((centred_p * centred_t).sum() / norm, ordinal, ssi_error, delta1)
    return {name: float(value) for name, value in zip(FIGURES, values, strict=True)}
