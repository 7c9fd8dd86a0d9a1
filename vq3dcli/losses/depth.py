"""Depth losses in normalised disparity s: VQ3D's pointwise one and what it is compared with.

    pointwise:     mean over rays of  sum_i w_i |s_i - s*|^2
    accumulated:   mean over rays of  |sum_i w_i s_i - s*|^2
    pointwise_l1:  mean over rays of  sum_i w_i |s_i - s*|

s* is the label. VQ3D's project page says that pointwise rendering weights are supervised by pseudo-GT disparity, not
the accumulated disparity; squares and means over rays are our reading. With weights that sum to 1, `pointwise` is
`accumulated` plus the variance of s under w: it punishes every piece of density away from the surface, where
`accumulated` is content with floaters that cancel. `pointwise_l1` is ours: it does so too, is least at the weighted
median, and minds small errors more beside large ones at borders.

To all three the shape of a far surface matters little: the slope of a wall is a small error beside its distance's.
`order_loss` looks at nothing but which of two rays is nearer, as rankings do (Xian et al., CVPR 2020), and by how much
while they are close.

A depth network, whose maps are known up to scale and shift, learns by `relative_depth_loss` (MiDaS, Ranftl et al.,
TPAMI 2022, sec. 5).

Legend: B images, N rays, S samples, P partners of a ray, H height_px, W width_px.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

DepthKind = Literal["pointwise", "pointwise_l1", "accumulated", "none"]

LABEL_NONE, LABEL_METRIC, LABEL_RELATIVE = 0, 1, 2
"""Values of `label_kind`: no label, an exact one, one that is known up to an increasing affine map."""

_WINSORISE = (0.02, 0.98)
# The least standard deviation of s after the least-squares fit, about a third of a toy scene's: unbounded, the
# rendering collapses to a flat wall and the fit follows it.
_LEAST_STD = 0.045
# A relative label whose deviation is a smaller share of its mean magnitude is nearly flat, and is stretched as if it
# were this: else a wall's noise would become a relief. The flattest of 141 photos with known disparity has 0.08.
_LEAST_SHARE = 0.05
# Where two rays are told apart by half: from one side of a toy scene's wall to the other s changes by some 0.03.
_ORDER_S = 0.02
MAX_PARTNERS = 64
# A normalised error of a depth network beyond this is a border that is off by some pixels, or a wrong label: it pulls
# no harder.
_GREATEST_ERROR = 5.0
# Guards a division for maps without relief, whose errors then count for nothing.
_LEAST_SPREAD = 1e-4


def depth_loss(weights: Tensor, samples_s: Tensor, label_s: Tensor, kind: DepthKind) -> Tensor:
    """The loss `[B]` of rendering weights `[B, N, S]`, summing to 1 over S, of samples at s `[B, N, S]`.

    Labels `[B, N]` are aligned.
    """
    if kind == "pointwise":
        return (weights * (samples_s - label_s[..., None]).square()).sum(-1).mean(-1)
    if kind == "pointwise_l1":
        return (weights * (samples_s - label_s[..., None]).abs()).sum(-1).mean(-1)
    if kind == "accumulated":
        return ((weights * samples_s).sum(-1) - label_s).square().mean(-1)
    return weights.new_zeros(weights.shape[0])


def order_loss(rendered_s: Tensor, label_s: Tensor) -> Tensor:
    """How far pairs of rays are from their order: mean |f(s_i - s_j) - f(s*_i - s*_j)|, f(x) = x / (0.02 + |x|).

    f is a soft sign, so that this is a soft form of the distance that Kendall's rank correlation is made of: the order
    within a surface counts as much as that of surfaces, whatever their distance. It does not know where s is 0: the
    depth losses do.

    Of expected s and aligned labels, both `[B, N]`, it gives `[B]`, each in [0, 2]; 0 where there is one ray alone. A
    ray meets at most 128 others, evenly spread over N.
    """
    rays = rendered_s.shape[1]
    partners = min(rays // 2, MAX_PARTNERS)
    if partners == 0:
        return rendered_s.new_zeros(rendered_s.shape[0])
    device = rendered_s.device
    offset = 1 + torch.arange(partners, device=device) * (rays // 2) // partners
    partner = (torch.arange(rays, device=device)[:, None] + offset) % rays  # [N, P]

    def order(s: Tensor) -> Tensor:
        apart = s[:, :, None] - s[:, partner]
        return apart / (_ORDER_S + apart.abs())

    return (order(rendered_s.float()) - order(label_s.float())).abs().mean((1, 2))


def align_canonical(label: Tensor, *, mean: float, std: float) -> Tensor:
    """Bring relative labels to the depth statistics of a typical scene.

    Each image is winsorised at its 2 % and 98 % quantiles, shifted and scaled to `mean` and `std` of s, and clamped
    to [0, 1]. It does not look at the rendering, so it cannot follow it into a flat wall. A nearly flat label
    stays so: its deviation counts as a twentieth of its mean magnitude at least. Labels are relative disparity
    `[B, H, W]`, larger is nearer.
    """
    flat = label.flatten(1).float()
    low, high = torch.quantile(flat, torch.tensor(_WINSORISE, device=flat.device), dim=1)
    flat = flat.clamp(low[:, None], high[:, None])
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / _spread(flat, centred) * std + mean).clamp(0.0, 1.0).reshape(label.shape)


def _spread(label: Tensor, centred: Tensor) -> Tensor:
    """The deviation `[B, 1]` that a label `[B, N]` counts for, `centred` at 0."""
    spread = centred.square().mean(1, keepdim=True).sqrt()
    # A label of zeros stays one: any least value will do.
    return spread.maximum(_LEAST_SHARE * label.abs().mean(1, keepdim=True)).clamp(min=1e-12)


def align_least_squares(label: Tensor, rendered_s: Tensor) -> Tensor:
    """Fit a label + b at rays `[B, N]` to the rendered s, a bounded from below; no gradient to the rendering."""
    target = rendered_s.detach().float()
    label_mean, target_mean = label.mean(1, keepdim=True), target.mean(1, keepdim=True)
    centred = label - label_mean
    covariance = (centred * (target - target_mean)).mean(1, keepdim=True)
    # The bound is on the result's spread, so that it means the same for every teacher.
    spread = _spread(label, centred)
    slope = (covariance / spread).clamp(min=_LEAST_STD) / spread
    return slope * centred + target_mean


def align_labels(
    label: Tensor,
    label_kind: Tensor,
    rendered_s: Tensor,
    *,
    alignment: Literal["canonical", "least_squares"],
    canonical: Tensor,
) -> Tensor:
    """Each image's labels at its rays `[B, N]`: metric ones untouched, relative ones aligned.

    `canonical` are the labels at the rays after `align_canonical`; `label_kind` is `[B]`.
    """
    relative = canonical if alignment == "canonical" else align_least_squares(label, rendered_s)
    return torch.where((label_kind == LABEL_RELATIVE)[:, None], relative, label)


def normalised(disparity: Tensor) -> Tensor:
    """Each map `[B, h, w]` less its median, over its mean absolute deviation from it (MiDaS, eq. 4 and 5)."""
    flat = disparity.flatten(1)
    centred = flat - flat.median(1, keepdim=True).values
    return (centred / centred.abs().mean(1, keepdim=True).clamp(min=_LEAST_SPREAD)).reshape(disparity.shape)


def relative_depth_loss(predicted: Tensor, label: Tensor, *, gradient: float, scales: int) -> Tensor:
    """Mean absolute error of normalised maps, and of their slopes at several scales (MiDaS, eq. 6 and 11).

    Of maps `[B, h, w]` it gives `[B]`, unchanged by any increasing affine map of either side. `gradient` weighs the
    slopes, at so many `scales`, each half of the one before.
    """
    error = normalised(predicted.float()) - normalised(label.float())
    total = error.abs().clamp(max=_GREATEST_ERROR).mean((1, 2))
    for scale in range(scales):
        step = 1 << scale
        coarse = error[:, ::step, ::step]
        slopes = coarse.diff(dim=1).abs().mean((1, 2)) + coarse.diff(dim=2).abs().mean((1, 2))
        total = total + gradient * slopes
    return total
