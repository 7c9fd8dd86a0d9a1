"""Main-view losses on rays: the canonical camera must reproduce the input.

Legend: B images, N rays.
"""

from __future__ import annotations

from torch import Tensor


def l2(rgb: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of colours `[..., 3]` in [-1, 1]."""
    return (rgb - target).square().mean()


def l1(rgb: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of colours `[..., 3]` in [-1, 1]."""
    return (rgb - target).abs().mean()


def chroma_ratio(rgb: Tensor, target: Tensor) -> Tensor:
    """How much of the target's colourfulness a reconstruction `[B, N, 3]` has: 0 grey, 1 as colourful.

    A scalar: the ratio of the root mean squares of the colours minus their grey.
    """
    chroma = (rgb - rgb.mean(-1, keepdim=True)).square().mean()
    # The floor (a hundredth of a grey level) only matters for batches of grey photos, which then count as done.
    reference = (target - target.mean(-1, keepdim=True)).square().mean().clamp(min=1e-9)
    return (chroma / reference).sqrt()
