"""The networks whose activations perceptual distances compare.

Legend: B batch, C channels, H height_px, W width_px, h and w of a stage.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# The blocks of EfficientNet-Lite0 that halve the resolution, from stride 2 to 32.
_LITE0_REDUCTIONS = (1, 3, 5, 11)


class LpipsTrunk(nn.Module):
    """The trunk that `lpips` cuts out of a torchvision network, behind its scaling of images in [-1, 1].

    Args:
        scaling: The package's `ScalingLayer`.
        network: The package's `vgg16` or `alexnet`.
    """

    def __init__(self, scaling: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.scaling, self.network = scaling, network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` in [-1, 1] to the activations of each stage, `[B, C, h, w]`."""
        return list(self.network(self.scaling(images)))


class Lite0Trunk(nn.Module):
    """EfficientNet-Lite0 up to stride 16: its stem, and the widened activations before each halving.

    Those are the places where VGG is tapped for LPIPS: behind a nonlinearity, before the resolution is reduced. Of four
    photos at 64x64, blurred to 20.7 dB and optimised by the distance alone, they restored 23.0 dB; the outputs of the
    bottlenecks 22.2 dB, in nearly twice the time.

    Args:
        network: The `EfficientNet` of efficientnet-lite-pytorch; its blocks are taken over.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem: nn.Module = network._conv_stem
        self.stem_norm: nn.Module = network._bn0
        self.activation = nn.ReLU6()
        *blocks, last = list(network._blocks)[: _LITE0_REDUCTIONS[-1] + 1]
        self.blocks = nn.ModuleList(blocks)
        self.last_widen, self.last_norm = last._expand_conv, last._bn0
        widened = [*(blocks[index]._bn0 for index in _LITE0_REDUCTIONS[:-1]), self.last_norm]
        self.channels = [norm.num_features for norm in (self.stem_norm, *widened)]

    def published_names(self) -> dict[str, str]:
        """Names of this module's tensors to those in the published file."""
        last = f"_blocks.{_LITE0_REDUCTIONS[-1]}."
        prefixes = {"stem": "_conv_stem", "stem_norm": "_bn0", "blocks": "_blocks"}
        prefixes |= {"last_widen": f"{last}_expand_conv", "last_norm": f"{last}_bn0"}
        split = {name: name.partition(".") for name in self.state_dict()}
        return {name: f"{prefixes[head]}.{rest}" for name, (head, _, rest) in split.items()}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` in [-1, 1] to the activations of each stage, `[B, C, h, w]`."""
        # The network's own preprocessing is (v - 127) / 128 of 8-bit values v.
        hidden = self.activation(self.stem_norm(self.stem((images * 127.5 + 0.5) / 128.0)))
        stages = [hidden]
        for index, block in enumerate(self.blocks):
            if index in _LITE0_REDUCTIONS:
                widen, norm = block.get_submodule("_expand_conv"), block.get_submodule("_bn0")
                stages.append(self.activation(norm(widen(hidden))))
            hidden = block(hidden)
        return [*stages, self.activation(self.last_norm(self.last_widen(hidden)))]
