"""Decoder tokens to tri-planes.

The planes are a learnt base, the same for every image, plus what the tokens say. The base starts as Fourier features
of the coordinates, so that the field can tell near from far at its first step; without it, density grows everywhere
alike, and the geometry locks as an opaque wall before the tokens know where they are.

Legend: B batch, L tokens, D width, C plane channels, P plane side in texels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vq3dcli.model.vit import unpatchify

PlaneHeadKind = Literal["linear", "residual", "convolution"]

# Radians a half side: from near to far a channel turns about once.
_BASE_FREQUENCY = 3.0
_BASE_AMPLITUDE = 0.5


class PlaneHead(nn.Module):
    """Each token becomes a patch of each of the three planes.

    `linear` unpatchifies and shows the token grid; `residual` adds a zero-initialised 3x3 convolution, ReLU, 3x3 a
    plane, which may soften the seams; `convolution` unpatchifies to twice the channels and convolves them down.
    `patch` counts the texels that a token covers along a side.
    """

    def __init__(self, width: int, patch: int, channels: int, kind: PlaneHeadKind, side: int) -> None:
        super().__init__()
        self.patch, self.channels, self.kind = patch, channels, kind
        self.inner = inner = 3 * channels * (2 if kind == "convolution" else 1)
        self.unpatchify = nn.Linear(width, inner * patch * patch)
        nn.init.trunc_normal_(self.unpatchify.weight, std=0.02)
        nn.init.zeros_(self.unpatchify.bias)
        self.base = nn.Parameter(_fourier_base(side, channels))
        self.convolutions: nn.Sequential | None = None
        if kind != "linear":
            self.convolutions = nn.Sequential(
                nn.Conv2d(inner, 3 * channels, 3, padding=1, padding_mode="replicate", groups=3),
                nn.ReLU(),
                nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, padding_mode="replicate", groups=3),
            )
        if kind == "residual" and self.convolutions is not None:
            last = self.convolutions[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, L, D]` to channels-last planes `[B, 3, P, P, C]`."""
        if torch.is_autocast_enabled(tokens.device.type):
            images = self._channels_last(tokens)
        else:
            images = unpatchify(self.unpatchify(tokens), self.patch, self.inner)
        if self.convolutions is not None:
            first, activation, last = self.convolutions
            convolved = _bordered(last, activation(_bordered(first, images)))
            images = images + convolved if self.kind == "residual" else convolved
        texels = images.permute(0, 2, 3, 1).unflatten(-1, (3, self.channels))
        return (texels + self.base.permute(0, 2, 3, 1, 4).contiguous()).permute(0, 3, 1, 2, 4)  # one order is fast

    def _channels_last(self, tokens: Tensor) -> Tensor:
        """The same images in an order in which convolutions in bfloat16 take two thirds of the time.

        Weights are brought into it, which are fewer than what they make.
        """
        batch, length, width = tokens.shape
        side, patch, inner = round(length**0.5), self.patch, self.inner
        weight = self.unpatchify.weight.reshape(inner, patch * patch, width).transpose(0, 1).reshape(-1, width)
        bias = self.unpatchify.bias.reshape(inner, patch * patch).T.reshape(-1)
        images = nn.functional.linear(tokens, weight, bias).reshape(batch, side, side, patch, patch * inner)
        images = images.transpose(2, 3).reshape(batch, side * patch, side * patch, inner)
        return images.permute(0, 3, 1, 2)


def _bordered(convolution: nn.Module, images: Tensor) -> Tensor:
    """A 3x3 convolution that sees replicated borders, in the precision that images have: autocast pads in float32."""
    assert isinstance(convolution, nn.Conv2d)
    with torch.autocast(images.device.type, enabled=False):
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return nn.functional.conv2d(padded, convolution.weight, convolution.bias, groups=convolution.groups)


def _fourier_base(side: int, channels: int) -> Tensor:
    """cos(f . u + phase) at the texel centres u in [-1, 1]^2, random low frequencies, `[1, 3, P, P, C]`."""
    base = torch.empty(1, 3, side, side, channels)
    if base.is_meta:  # its shape is all that is asked for, and arithmetic there imports for a second
        return base
    centres = (torch.arange(side) + 0.5) / side * 2.0 - 1.0
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    frequency = torch.randn(2, 3, 1, 1, channels) * _BASE_FREQUENCY
    phase = torch.rand(3, 1, 1, channels) * (2.0 * torch.pi)
    wave = frequency[0] * across[..., None] + frequency[1] * down[..., None] + phase
    return (_BASE_AMPLITUDE * torch.cos(wave))[None]
