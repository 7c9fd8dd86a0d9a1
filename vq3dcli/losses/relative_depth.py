"""The loss of a depth network whose maps are known up to scale and shift (MiDaS, Ranftl et al., TPAMI 2022, sec. 5).

Legend: B images, h and w of the maps.
"""

from __future__ import annotations

from torch import Tensor

# A normalised error beyond this is a border that is off by some pixels, or a wrong label: it pulls no harder.
_GREATEST_ERROR = 5.0
# Guards a division for maps without relief, whose errors then count for nothing.
_LEAST_SPREAD = 1e-4


def normalised(disparity: Tensor) -> Tensor:
    """Each map `[B, h, w]` less its median, over its mean absolute deviation from it (MiDaS, eq. 4 and 5)."""
    flat = disparity.flatten(1)
    centred = flat - flat.median(1, keepdim=True).values
    return (centred / centred.abs().mean(1, keepdim=True).clamp(min=_LEAST_SPREAD)).reshape(disparity.shape)


def relative_depth_loss(predicted: Tensor, label: Tensor, *, gradient: float, scales: int) -> Tensor:
    """Mean absolute error of normalised maps, and of their slopes at several scales (MiDaS, eq. 6 and 11).

    Args:
        predicted: Relative disparity `[B, h, w]`.
        label: Disparity or an increasing affine map of it, `[B, h, w]`.
        gradient: Weight of the slopes.
        scales: At how many scales, each half of the one before.

    Returns:
        `[B]`, unchanged by any increasing affine map of either side.
    """
    error = normalised(predicted.float()) - normalised(label.float())
    total = error.abs().clamp(max=_GREATEST_ERROR).mean((1, 2))
    for scale in range(scales):
        step = 1 << scale
        coarse = error[:, ::step, ::step]
        slopes = coarse.diff(dim=1).abs().mean((1, 2)) + coarse.diff(dim=2).abs().mean((1, 2))
        total = total + gradient * slopes
    return total
