"""How close two images are.

Legend: B images, H height_px, W width_px.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.losses.perceptual import PerceptualDistance

# Equal images would score infinity, which JSON cannot hold: the error is floored so that they score 100 dB, far above
# the 59 dB of 8-bit images that differ by one grey level in 1 of 12 values.
_SMALLEST_MSE = 1e-10

# Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
# Transactions on Image Processing 13(4), 2004, section III.C: a Gaussian window of 11x11 pixels with a standard
# deviation of 1.5, K1 = 0.01 and K2 = 0.03 for values with a range of 1.
_SSIM_WINDOW_PX = 11
_SSIM_SIGMA_PX = 1.5
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, from the mean squared error of values in [0, 1].

    Images `[B, 3, H, W]`, uint8 or float in [0, 1] each, give float64 `[B]`, at most 100.
    """
    assert image.shape == target.shape, (image.shape, target.shape)
    mse = (_unit_range(image) - _unit_range(target)).square().flatten(1).mean(-1)
    return -10.0 * torch.log10(mse.clamp(min=_SMALLEST_MSE))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of each image (Wang et al. 2004, equation 13, averaged as in equation 17).

    Each colour channel is compared by itself and the three are averaged, as is usual for colour images; the paper has
    grey ones. Only windows that lie wholly inside the image count.

    Images as `psnr` takes them, H and W at least 11, give float64 `[B]`, at most 1, which only equal ones reach.
    """
    assert image.shape == target.shape, (image.shape, target.shape)
    assert min(image.shape[-2:]) >= _SSIM_WINDOW_PX, image.shape
    x, y = _unit_range(image), _unit_range(target)
    # The window's weights sum to 1, so that these are a mean, and then second moments without Bessel's correction.
    mean_x, mean_y, xx, yy, xy = (_window_mean(v) for v in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = xx - mean_x.square(), yy - mean_y.square()
    covariance = xy - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + _SSIM_C1) / (mean_x.square() + mean_y.square() + _SSIM_C1)
    structure = (2.0 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return (luminance * structure).flatten(1).mean(-1)


@torch.inference_mode()
def perceptual(distance: PerceptualDistance, image: Tensor, target: Tensor) -> Tensor:
    """Perceptual distance of each pair, float64 `[B]` on the CPU, of images as `psnr` takes them; LPIPS rarely above 1.

    The network must be another one than that of the measured model's loss, which would flatter the model.
    """
    device = next(distance.parameters()).device
    first, second = (
        (v.to(device).float() / 255.0 if v.dtype == torch.uint8 else v.to(device).float()) * 2.0 - 1.0
        for v in (image, target)
    )
    return distance(first, second).to("cpu", torch.float64)


def _window_mean(image: Tensor) -> Tensor:
    """Gaussian-weighted means over windows, `[B, 3, H, W]` to `[B, 3, H - 10, W - 10]`."""
    offset = torch.arange(_SSIM_WINDOW_PX, dtype=image.dtype, device=image.device) - _SSIM_WINDOW_PX // 2
    weight = torch.exp(-0.5 * (offset / _SSIM_SIGMA_PX).square())
    weight = (weight / weight.sum()).expand(image.shape[1], 1, 1, -1)
    rows = functional.conv2d(image, weight, groups=image.shape[1])
    return functional.conv2d(rows, weight.transpose(-1, -2), groups=image.shape[1])


def _unit_range(image: Tensor) -> Tensor:
    return image.double() / 255.0 if image.dtype == torch.uint8 else image.double()
