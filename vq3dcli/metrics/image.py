"""How close two images are.

Legend: B images, H height_px, W width_px.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Equal images would score infinity, which JSON cannot hold: the error is floored so that they score 100 dB, far above
# the 59 dB of 8-bit images that differ by one grey level in 1 of 12 values.
_SMALLEST_MSE = 1e-10


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, from the mean squared error of values in [0, 1].

    Args:
        image: `[B, 3, H, W]`, uint8 or float in [0, 1].
        target: The same shape; its type may differ.

    Returns:
        float64 `[B]`, at most 100.
    """
    assert image.shape == target.shape, (image.shape, target.shape)
    mse = (_unit_range(image) - _unit_range(target)).square().flatten(1).mean(-1)
    return -10.0 * torch.log10(mse.clamp(min=_SMALLEST_MSE))


def _unit_range(image: Tensor) -> Tensor:
    """float64 in [0, 1]."""
    return image.double() / 255.0 if image.dtype == torch.uint8 else image.double()
