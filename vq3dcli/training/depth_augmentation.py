"""Random views of stored images for the depth network: crops, stretches, colours, blur, noise, by (seed, position).

Legend: B images, T stored side, P input side, h = P / 2 the side of the maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli import seeding
from vq3dcli.config.schema import AugmentationSection

_LUMA = (0.299, 0.587, 0.114)
_BLUR_TAPS = 9


def augmented(
    image: Tensor, label: Tensor, index: Tensor, *, settings: AugmentationSection, input_px: int, seed: int
) -> tuple[Tensor, Tensor]:
    """What the network is shown, float32 `[B, 3, P, P]` in [0, 255], and the label of its map, `[B, P / 2, P / 2]`.

    Labels are sampled by nearest neighbours: a mixture of near and far across an edge would be a surface that is
    nowhere.

    Args:
        image: uint8 `[B, 3, T, T]`; its label `[B, T, T]`.
        index: Places of the stream, int64 `[B]`: the only source of randomness.
    """
    grid = _crops(index, settings, seed)
    pixels = _sampled(image.float(), grid, input_px, "bilinear")
    target = _sampled(label[:, None].float(), grid, input_px // 2, "nearest")[:, 0]
    pixels = _blurred(pixels, index, settings, seed)
    pixels = _coloured(pixels, index, settings, seed)
    return pixels.clamp(0.0, 255.0), target


def _crops(index: Tensor, settings: AugmentationSection, seed: int) -> Tensor:
    """Affine maps `[B, 2, 3]` from the view's coordinates to the image's, both in [-1, 1]."""
    draw = seeding.uniform(seed, "view", index, 4)
    side = settings.least_crop + (1.0 - settings.least_crop) * draw[:, 0]
    stretch = torch.exp((draw[:, 1] - 0.5) * settings.aspect)
    width, height = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    left, top = ((1.0 - extent) * (2.0 * place - 1.0) for extent, place in ((width, draw[:, 2]), (height, draw[:, 3])))
    zero = torch.zeros_like(width)
    return torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)


def _sampled(values: Tensor, affine: Tensor, side: int, mode: str) -> Tensor:
    grid = functional.affine_grid(affine, [values.shape[0], 1, side, side], align_corners=False)
    return functional.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)


def _blurred(pixels: Tensor, index: Tensor, settings: AugmentationSection, seed: int) -> Tensor:
    """A Gaussian of its own for some images."""
    draw = seeding.uniform(seed, "blur", index, 2)
    chosen = (draw[:, 0] < settings.blur).nonzero()[:, 0]
    if not len(chosen) or settings.blur_sigma_px == 0:
        return pixels
    sigma = (draw[chosen, 1] * settings.blur_sigma_px).clamp(min=0.1)
    offset = torch.arange(_BLUR_TAPS, device=pixels.device) - _BLUR_TAPS // 2
    taps = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0)
    margin = _BLUR_TAPS // 2
    part = pixels[chosen].flatten(0, 1)[None]
    part = functional.pad(part, (margin,) * 4, mode="replicate")
    part = functional.conv2d(part, taps[:, None, :, None], groups=len(taps))
    part = functional.conv2d(part, taps[:, None, None, :], groups=len(taps))
    return pixels.index_copy(0, chosen, part[0].unflatten(0, (-1, 3)))


def _coloured(pixels: Tensor, index: Tensor, settings: AugmentationSection, seed: int) -> Tensor:
    """Brightness, contrast, saturation, a tint and noise, in this order."""
    draw = seeding.uniform(seed, "colour", index, 10)[..., None, None]
    on = (draw[:, 0:1] < settings.colour).float()
    exponent = on * (2.0 * draw[:, 1:4] - 1.0)
    brightness, contrast, saturation = (torch.exp(exponent[:, i : i + 1] * math.log(1.6)) for i in range(3))
    saturation = torch.where(draw[:, 4:5] < settings.grey, 0.0, saturation)
    tint = torch.exp(on * (2.0 * draw[:, 5:8] - 1.0) * 0.12)
    pixels = pixels * brightness
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * contrast + mean
    luma = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    pixels = ((pixels - luma) * saturation + luma) * tint
    noisy = (draw[:, 8, 0, 0] < settings.noise).nonzero()[:, 0]
    if len(noisy):
        amplitude = 24.0 * draw[noisy, 9:10]
        each = seeding.uniform(seed, "noise", index[noisy], pixels[0].numel()).reshape(pixels[noisy].shape)
        pixels = pixels.index_add(0, noisy, (each - 0.5) * amplitude)
    return pixels
