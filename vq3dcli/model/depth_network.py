"""A monocular depth network: a pretrained encoder, EfficientNet-Lite, below a decoder with batch normalisation.

```
image -> stem -> blocks (strides 2, 4, 8, 16, 32) -> decoder, coarse to fine, a skip a stride -> disparity at stride 2
```

What it says of an image is known up to an increasing affine map: larger is nearer.

Legend: B images, H height_px, W width_px, both multiples of 32, C channels, h and w of a stride.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.model.backbone import Backbone

EncoderName = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]

# Width and depth factors of each network (tensorflow/tpu, efficientnet_lite_builder.py).
_FACTORS: dict[str, tuple[float, float]] = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
_STEM_CHANNELS = 32
# The side is halved five times.
STRIDE = 32


class _Stage(NamedTuple):
    """Blocks of the same shape (Tan and Le, ICML 2019, Table 1); the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def _convolution(inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution of an encoder and its normalisation, whose constants are those of the published networks."""
    # TensorFlow's "same" padding of an even side: with a stride of 2, one pixel less on the left and on the top.
    total = kernel - stride
    before = total // 2
    layers: list[nn.Module] = [] if total == 0 else [nn.ZeroPad2d((before, total - before, before, total - before))]
    layers += [nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01))


class _Block(nn.Module):
    """An inverted bottleneck without squeeze and excitation."""

    def __init__(self, inside: int, outside: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inside * expansion
        self.stride, self.channels = stride, outside
        self.widen = _convolution(inside, hidden, 1) if expansion > 1 else None
        self.depthwise = _convolution(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _convolution(hidden, outside, 1)
        self.adds = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, C', h / stride, w / stride]`."""
        hidden = x if self.widen is None else functional.relu6(self.widen(x))
        out: Tensor = self.project(functional.relu6(self.depthwise(hidden)))
        return out + x if self.adds else out


class EfficientNetLite(nn.Module):
    """The trunk of EfficientNet-Lite, without its classifier; `channels` are those of what `forward` returns."""

    def __init__(self, name: EncoderName) -> None:
        super().__init__()
        width, depth = _FACTORS[name]
        self.stem = _convolution(3, _STEM_CHANNELS, 3, stride=2)
        blocks: list[_Block] = []
        inside = _STEM_CHANNELS
        for number, stage in enumerate(_STAGES):
            outside = _rounded(stage.channels * width)
            # Lite networks repeat their first and last stage as often at any depth.
            repeats = stage.repeats if number in (0, len(_STAGES) - 1) else math.ceil(stage.repeats * depth)
            for place in range(repeats):
                stride = stage.stride if place == 0 else 1
                blocks.append(_Block(inside, outside, kernel=stage.kernel, stride=stride, expansion=stage.expansion))
                inside = outside
        self.blocks = nn.ModuleList(blocks)
        # The last block at each stride.
        self.taps = [i for i in range(len(blocks)) if i + 1 == len(blocks) or blocks[i + 1].stride == 2]
        self.channels = [blocks[i].channels for i in self.taps]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` in [0, 255] to features `[B, C, h, w]` at strides 2, 4, 8, 16 and 32."""
        # The published networks were trained on (v - 127) / 128 of 8-bit values.
        x = functional.relu6(self.stem((x - 127.0) / 128.0))
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                features.append(x)
        return features

    def freeze(self, blocks: int) -> None:
        """Keep the weights of so many blocks and of the stem, unless there are none."""
        for part in (self.stem, *self.blocks[:blocks]) if blocks > 0 else ():
            part.requires_grad_(False)

    def published_names(self) -> dict[str, str]:
        """Names of this module's tensors to those in the file that the network was published in."""
        names = {}
        for name in self.state_dict():
            *block, layer, place, leaf = name.removeprefix("blocks.").split(".")
            # A layer is its convolution, behind padding or not, and its normalisation.
            norm_place = len(cast(nn.Sequential, self.get_submodule(name.rsplit(".", 2)[0]))) - 1
            published = _PUBLISHED[layer][int(place) == norm_place]
            names[name] = ".".join([*(["_blocks", *block] if block else []), published, leaf])
        return names


_PUBLISHED = {
    "stem": ("_conv_stem", "_bn0"),
    "widen": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def _rounded(channels: float) -> int:
    """Channels as a multiple of 8, at most a tenth less than asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class DepthNetwork(nn.Module):
    """The whole network.

    Batch normalisation in the decoder is what lets it learn: without it the output stayed blind to the image. Its
    `widths` are channels at strides 2, 4, 8, 16, 32. What `frozen_blocks` names of the encoder keeps its weights;
    statistics of its normalisations never change. `input_px` is the side of a square of as many pixels as `predict`
    shows the network.
    """

    def __init__(
        self, encoder: EfficientNetLite | Backbone, widths: tuple[int, ...], frozen_blocks: int, input_px: int
    ) -> None:
        super().__init__()
        assert len(widths) == 5, widths
        self.input_px = input_px
        self.encoder = encoder
        self.lateral = nn.ModuleList(
            _norm_convolution(inside, outside, 1) for inside, outside in zip(self.encoder.channels, widths, strict=True)
        )
        self.context = nn.Linear(self.encoder.channels[-1], widths[-1])
        self.narrow = nn.ModuleList(_norm_convolution(widths[i + 1], widths[i], 1) for i in range(4))
        self.residual = nn.ModuleList(_Residual(width) for width in widths[1:])
        self.out = nn.Conv2d(widths[0], 1, 3, padding=1, padding_mode="replicate")
        nn.init.normal_(self.context.weight, std=0.01)
        nn.init.zeros_(self.context.bias)
        encoder.freeze(frozen_blocks)

    def train(self, mode: bool = True) -> DepthNetwork:
        """As of any module, but the encoder's normalisations keep the statistics of ImageNet."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 255] to relative disparity `[B, H / 2, W / 2]`, float32."""
        features = self.encoder(images)
        laterals = [layer(feature) for layer, feature in zip(self.lateral, features, strict=True)]
        x = functional.relu(laterals[4] + self.context(features[4].mean((2, 3)))[:, :, None, None])
        x = self.residual[3](x)
        for i in (3, 2, 1, 0):
            x = functional.interpolate(self.narrow[i](x), size=laterals[i].shape[-2:], mode="bilinear")
            x = functional.relu(x + laterals[i])
            if i > 0:
                x = self.residual[i - 1](x)
        disparity: Tensor = self.out(x)[:, 0].float()
        return disparity

    @torch.no_grad()
    def standardised(self, images: Tensor) -> Tensor:
        """What `predict` says of square images in [0, 255], with a mean of 0 and a deviation of 1: `[B, 1, H, W]`.

        Values that lie more than four deviations out are cut. In float32, under autocast too: an encoder is trained on
        what it sees in use.
        """
        with torch.autocast(images.device.type, enabled=False):
            disparity = self.predict(images)[:, None]
        disparity = functional.interpolate(disparity, images.shape[-2:], mode="bilinear", antialias=True)
        deviation, mean = torch.std_mean(disparity, dim=(1, 2, 3), keepdim=True)
        return ((disparity - mean) / deviation.clamp(min=1e-6)).clamp(-4.0, 4.0)

    @torch.no_grad()
    def predict(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Relative disparity of images `[B, 3, H, W]` in [0, 255] of any size: `[B, h, w]`, on the network's device.

        What the network is shown, about twice h and w, has the image's shape up to multiples of 32. With `flip` it is
        the mean with the mirrored map of the mirrored image, at twice the cost.
        """
        return self._shown(images, self.input_px, flip)

    @torch.no_grad()
    def predict_fine(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """As `predict`, twice as fine, at five times the cost.

        Shown at twice the size, the network finds thin parts and edges, but loses the layout of what is too large for
        its context. So of that map only what is finer than a quarter of the side is taken (two scales of one network:
        Miangoleh et al., CVPR 2021).
        """
        fine = self._shown(images, 2 * self.input_px, flip)[:, None]
        coarse = functional.interpolate(self.predict(images, flip=flip)[:, None], fine.shape[-2:], mode="bilinear")
        deviation = [torch.std(disparity, dim=(1, 2, 3), keepdim=True) for disparity in (coarse, fine)]
        fine = fine * (deviation[0] / deviation[1].clamp(min=1e-6))
        radius = min(fine.shape[-2:]) // 8
        difference = functional.avg_pool2d(coarse - fine, 2 * radius + 1, 1, radius, count_include_pad=False)
        return (fine + difference)[:, 0]

    @torch.no_grad()
    def texture(self, images: Tensor) -> Tensor:
        """What the encoder's first two strides say of each place of images as `predict`: `[B, C, h, w]`, centred.

        Each of the two counts as much as the other in the distance of two places.
        """
        features = self.encoder(self._input(images, 2 * self.input_px))[:2]
        maps = [functional.interpolate(part, features[1].shape[-2:], mode="area").float() for part in features]
        maps = [part - part.mean((2, 3), keepdim=True) for part in maps]
        return torch.cat([functional.normalize(part.flatten(1)).reshape(part.shape) for part in maps], 1)

    def _shown(self, images: Tensor, side_px: int, flip: bool) -> Tensor:
        """The map of images that are shown with as many pixels as a square of this side."""
        shown = self._input(images, side_px)
        disparity: Tensor = self(shown)
        return (disparity + self(shown.flip(-1)).flip(-1)) / 2.0 if flip else disparity

    def _input(self, images: Tensor, side_px: int) -> Tensor:
        """Images at a size of their own shape, with as many pixels as a square of this side."""
        height_px, width_px = images.shape[-2:]
        shape = math.sqrt(width_px / height_px)
        size = tuple(max(STRIDE, round(side / STRIDE) * STRIDE) for side in (side_px / shape, side_px * shape))
        pixels = images.to(self.out.weight.device).float()
        shown = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0.0, 255.0)
        return shown.contiguous(memory_format=torch.channels_last)


class _Residual(nn.Module):
    """Two convolutions beside the identity, at first a third as strong."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _norm_convolution(channels, channels, 3)
        self.second = _norm_convolution(channels, channels, 3)
        norm = cast(nn.BatchNorm2d, self.second[1])
        nn.init.constant_(norm.weight, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to the same shape."""
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def _norm_convolution(inside: int, outside: int, kernel: int) -> nn.Sequential:
    # Borders continue what is inside: zeros drew dark lines around every map.
    convolution = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False, padding_mode="replicate")
    return nn.Sequential(convolution, nn.BatchNorm2d(outside, momentum=0.05))
