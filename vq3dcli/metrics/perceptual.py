"""LPIPS as a metric: how different two images look to a network, by the authors' package `lpips`.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. The package has the
learnt weights of the comparison, the heads. The ImageNet weights of the network below them, the trunk, are fetched once
from PyTorch's server into the folder that torchvision uses too, or read from a given file.

Legend: B images, H height_px, W width_px.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vq3dcli.errors import UnavailableError, UsageError
from vq3dcli.weights.third_party import (
    LPIPS_HEADS_SHA256,
    LPIPS_TRUNKS,
    cached_file,
    package_file,
    read_state_dict,
)

LpipsNetwork = Literal["alex", "vgg"]

# Below this side a feature map of the trunk would be empty.
_SMALLEST_SIDE_PX = {"alex": 32, "vgg": 16}

_INSTALL = "pip install 'vq3d[perceptual]', or leave LPIPS out"


@dataclass(frozen=True)
class Lpips:
    """A loaded LPIPS; call it with two batches of images.

    Args:
        network: "alex" or "vgg": their values do not compare.
        weights_sha256: Of the trunk's weights, for the report.
        module: The package's network, frozen, in evaluation mode.
    """

    network: LpipsNetwork
    weights_sha256: str
    module: nn.Module

    @torch.inference_mode()
    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair; 0 for equal images, rarely above 1.

        Args:
            image: `[B, 3, H, W]`, uint8 or float in [0, 1]; H and W at least 32 for "alex", 16 for "vgg".
            target: The same shape; its type may differ.

        Returns:
            float64 `[B]` on the CPU.
        """
        assert image.shape == target.shape, (image.shape, target.shape)
        assert min(image.shape[-2:]) >= _SMALLEST_SIDE_PX[self.network], (self.network, image.shape)
        device = next(self.module.parameters()).device
        first, second = (_signed_range(values.to(device)) for values in (image, target))
        return self.module(first, second).flatten().to("cpu", torch.float64)


def load_lpips(
    network: LpipsNetwork = "alex",
    *,
    trunk_weights: Path | None = None,
    trained_with: str = "none",
    device: torch.device | str = "cpu",
) -> Lpips:
    """LPIPS version 0.1 with its published weights.

    Args:
        network: "alex", which the authors advise as a metric, or "vgg", which they advise as a loss.
        trunk_weights: torchvision's file of the trunk's weights; fetched, or taken from an earlier fetch, if None.
        trained_with: The network of the perceptual loss of what is measured (the recipe's `loss.perceptual_network`).
        device: Where it runs.

    Raises:
        UsageError: `trained_with` is this network.
        UnavailableError: The package is missing, or the trunk's weights cannot be fetched.
        InputMissingError, UnsafeFileError: `trunk_weights` is not there, or is another file.
    """
    if trained_with == f"lpips-{network}":
        raise UsageError(
            f"{trained_with} is this model's perceptual loss: as a metric it would flatter the model",
            remedy=f"the network {'vgg' if network == 'alex' else 'alex'}",
        )
    purpose = f"LPIPS ({network})"
    heads = package_file("lpips", f"weights/v0.1/{network}.pth", purpose=purpose, remedy=_INSTALL)
    published = LPIPS_TRUNKS[network]
    path = trunk_weights or cached_file(
        published,
        purpose=purpose,
        remedy="copy it into PyTorch's checkpoint folder or give its path, or leave LPIPS out",
    )
    module = lpips_from(
        network,
        read_state_dict(path, published.sha256),
        read_state_dict(heads, LPIPS_HEADS_SHA256[network]),
    )
    return Lpips(network, published.sha256, module.to(device))


def is_here(network: LpipsNetwork) -> bool:
    """Whether the trunk's weights were fetched before, by us or by torchvision."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNKS[network].name).is_file()


def lpips_from(network: LpipsNetwork, trunk: dict[str, Tensor], heads: dict[str, Tensor]) -> nn.Module:
    """The package's network with the given weights, frozen; silent, and nothing is fetched.

    Args:
        network: "alex" or "vgg".
        trunk: torchvision's weights, `features.N.weight` and `features.N.bias`; others are ignored.
        heads: The package's weights, `linK.model.1.weight`.

    Raises:
        UnavailableError: `lpips` or torchvision cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by arguments that are deprecated
            from lpips import LPIPS, ScalingLayer

            # Without storage: filling it with random numbers takes a second and moves the global random state.
            with torch.device("meta"):
                module: nn.Module = LPIPS(net=network, version="0.1", pnet_rand=True, pretrained=False, verbose=False)
            module.scaling_layer = scaling = ScalingLayer()
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch raises RuntimeError when it is imported.
        raise UnavailableError(f"LPIPS cannot be used: {error}", remedy=_INSTALL) from error
    tensors = scaling.state_dict(prefix="scaling_layer.")
    for name in module.state_dict():
        part, _, inside = name.partition(".")
        if part == "net":  # slices keep torchvision's numbers: net.slice2.3.weight is features.3.weight
            tensors[name] = trunk[f"features.{inside.partition('.')[2]}"]
        elif part == "lins":  # the same layers a second time: lins.0 is lin0
            tensors[name] = heads[f"lin{inside}"]
        elif part.startswith("lin"):
            tensors[name] = heads[name]
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _signed_range(image: Tensor) -> Tensor:
    """float32 in [-1, 1], which the network's own scaling expects."""
    values = image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
    return values * 2.0 - 1.0
