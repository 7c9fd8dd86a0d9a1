"""The discriminator: a residual network after StyleGAN2 (Karras et al., CVPR 2020, sec. 4.1 and fig. 7).

```
images -> 1x1 -> [residual block, half the side] x n -> 4..7 pixels -> minibatch deviation -> 3x3 -> linear -> score
```

Weights are kept at unit variance and scaled where they are used ("equalised learning rate", Karras et al., ICLR 2018,
sec. 4.1), so that Adam moves all layers at one speed; R1 keeps the scores smooth, so no spectral norm is needed.

Legend: B images, C channels, H = W side in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2
# Keeps the variance of a unit normal through the leaky ReLU, whose mean square is (1 + slope^2) / 2.
_GAIN = math.sqrt(2.0 / (1.0 + _SLOPE**2))


class EqualizedConv(nn.Module):
    """A convolution with weights of unit variance, scaled by 1 / sqrt(fan in) where they are used."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1.0 / math.sqrt(inputs * kernel * kernel)
        self.stride, self.padding = stride, padding

    def forward(self, features: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H', W']`."""
        return functional.conv2d(features, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualizedLinear(nn.Module):
    """A linear layer with weights of unit variance, scaled by 1 / sqrt(inputs) where they are used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1.0 / math.sqrt(inputs)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, inputs]` to `[B, outputs]`."""
        return functional.linear(features, self.weight * self.scale, self.bias)


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a linear shortcut, both to half the side after a blur (Zhang, ICML 2019)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualizedConv(inputs, inputs, 3, padding=1)
        self.second = EqualizedConv(inputs, outputs, 3, stride=2)
        self.shortcut = EqualizedConv(inputs, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, inputs, H, W]`, H and W even, to `[B, outputs, H / 2, W / 2]`."""
        straight = self.shortcut(blur(features, padding=1, stride=2))
        bent = _activated(self.second(blur(_activated(self.first(features)), padding=2)))
        # The sum of two independent unit-variance images has variance 2.
        return (straight + bent) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Images to scores: positive for real, negative for fake.

    Args:
        size_px: Side of the images: 4, 5, 6 or 7 times a power of two, at least 16.
        channels: 3 for rgb, 4 for rgb and disparity.
        base_channels: Features at the full side; they double with each halving, up to `max_channels`.
        minibatch_group: Images that a minibatch statistic is taken over; must divide every batch; 1 for none.
        classes: Number of classes for a projection discriminator (Miyato and Koyama, ICLR 2018); 0 for unconditional.
    """

    def __init__(
        self,
        *,
        size_px: int,
        channels: int = 3,
        base_channels: int = 32,
        max_channels: int = 256,
        minibatch_group: int = 4,
        classes: int = 0,
    ) -> None:
        super().__init__()
        halvings = size_px.bit_length() - 3  # until 4 to 7 pixels are left
        assert size_px % (1 << halvings) == 0, f"side {size_px} cannot be halved {halvings} times"
        widths = [min(base_channels << level, max_channels) for level in range(halvings + 1)]
        self.minibatch_group = minibatch_group
        self.from_image = EqualizedConv(channels, widths[0], 1)
        self.blocks = nn.ModuleList([DiscriminatorBlock(widths[level], widths[level + 1]) for level in range(halvings)])
        side, width = size_px >> halvings, widths[-1]
        self.last = EqualizedConv(width + (minibatch_group > 1), width, 3, padding=1)
        self.summary = EqualizedLinear(width * side * side, width)
        self.score = EqualizedLinear(width, 1)
        # Zeros: until a class has been seen, its score is the unconditional one.
        self.of_class = nn.Parameter(torch.zeros(classes, width)) if classes else None

    def forward(self, images: Tensor, index: Tensor, class_index: Tensor | None = None) -> Tensor:
        """Scores float32 `[B]` of images `[B, C, H, W]` in [-1, 1], the fourth channel being 2 s - 1.

        Global sample indices `[B]` alone decide which images share a minibatch statistic. Classes `[B]`, -1 for none,
        are needed by a class-conditional discriminator only.
        """
        features = _activated(self.from_image(images))
        for block in self.blocks:
            features = block(features)
        if self.minibatch_group > 1:
            deviation = minibatch_deviation(features, index, self.minibatch_group)
            plane = deviation[:, None, None, None].expand(-1, 1, *features.shape[2:])
            features = torch.cat([features, plane.to(features.dtype)], 1)
        summary = _activated(self.summary(_activated(self.last(features)).flatten(1)))
        with torch.autocast(images.device.type, enabled=False):  # the losses look at small differences of scores
            score = self.score(summary.float()).squeeze(1)
        if self.of_class is not None:
            assert class_index is not None, "a class-conditional discriminator needs classes"
            direction = self.of_class[class_index.clamp(min=0)]
            projection = (summary.float() * direction).sum(1) / math.sqrt(direction.shape[1])
            score = score + projection * (class_index >= 0)
        return score


def blur(features: Tensor, *, padding: int, stride: int = 1) -> Tensor:
    """Each channel of `[B, C, H, W]` under the filter (1, 3, 3, 1) / 8 along both axes, zeros around it."""
    channels = features.shape[1]
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], device=features.device, dtype=features.dtype) / 8.0
    kernel = torch.outer(row, row).expand(channels, 1, 4, 4)
    return functional.conv2d(features, kernel, stride=stride, padding=padding, groups=channels)


def minibatch_deviation(features: Tensor, index: Tensor, group: int) -> Tensor:
    """The mean standard deviation of features among images that belong together (Karras et al., ICLR 2018, sec. 3).

    Groups are `group` neighbours in the order of their global indices: the same in any order of the batch, and on any
    number of ranks whose rows are whole groups.

    Features `[B, C, H, W]` of global indices `[B]` to float32 `[B]`, equal within a group; `group` must divide B.
    """
    assert features.shape[0] % group == 0, "groups must divide the batch"
    order = torch.argsort(index, stable=True)
    groups = features.float()[order].unflatten(0, (-1, group))
    # 1e-8 keeps the gradient of the root finite where images are equal; a deviation of 1e-4 is nothing to see.
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat_interleave(group)[torch.argsort(order)]


def _activated(features: Tensor) -> Tensor:
    return functional.leaky_relu(features, _SLOPE) * _GAIN
