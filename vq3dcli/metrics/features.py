"""Feature networks for the distances of `vq3dcli.metrics.distribution`: images in, features out, weights by SHA-256.

None of them can be the network of a recipe's perceptual loss, which would reward what that loss optimised: a test holds
the two sets apart.

Legend: B images of a batch, N images, H height_px, W width_px, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.errors import UnavailableError
from vq3dcli.weights.third_party import EFFICIENTNET_LITE, package_file, read_state_dict

FeatureNetworkName = Literal["inception", "efficientnet-lite1", "efficientnet-lite2"]
FEATURE_NETWORKS: tuple[FeatureNetworkName, ...] = get_args(FeatureNetworkName)

# Converted from the TensorFlow graph inception-2015-12-05 that the first FID was measured with.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_OFFLINE_REMEDY = "pip install 'vq3d[offline-metrics]'"
_FID_REMEDY = "pip install 'vq3d[fid]', or the network efficientnet-lite1"


class FeatureNetwork(Protocol):
    """What a distance between sets of images needs of a network.

    Attributes:
        name: One of `FEATURE_NETWORKS`, or the name that a report should give.
        weights_sha256: Of the weights file, for the report.
        dimensions: D.
        resize: How it brings images to its input's size, in words, for the report.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def weights_sha256(self) -> str:
        """See above."""
        ...

    @property
    def dimensions(self) -> int:
        """See above."""
        ...

    @property
    def resize(self) -> str:
        """See above."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 `[B, D]` of images uint8 `[B, 3, H, W]`, each by itself, whatever batch it is in."""
        ...


def load_feature_network(
    name: FeatureNetworkName,
    *,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """A feature network with its published weights.

    Args:
        name: "inception" (for FID and KID), or a network whose weights a package ships.
        weights: Inception's weights file, from `INCEPTION_URL`; for the others the package's file, where it lies
            elsewhere.
        device: Where it runs.

    Raises:
        UnavailableError: A package, or Inception's weights, are missing.
        InputMissingError, UnsafeFileError: `weights` is not there, or is another file.
    """
    if name == "inception":
        return _load_inception(weights, device)
    package, inside, sha256, side_px = EFFICIENTNET_LITE[name]
    path = weights or package_file(package, inside, purpose=f"the feature network {name}", remedy=_OFFLINE_REMEDY)
    network = efficientnet_lite_from(name, read_state_dict(path, sha256))
    # Channels last: a third faster on a CPU, and the same features up to rounding.
    network = network.to(device).to(memory_format=torch.channels_last)
    return EfficientNetLiteFeatures(name, sha256, network, side_px)


def distance_name(network: FeatureNetwork, distance: Literal["frechet", "kernel"]) -> str:
    """Key of a figure in a report: "fid" and "kid" are Inception's alone, as in "frechet_efficientnet_lite1"."""
    if network.weights_sha256 == INCEPTION_SHA256:
        return {"frechet": "fid", "kernel": "kid"}[distance]
    return f"{distance}_{network.name.replace('-', '_')}"


def feature_batches(network: FeatureNetwork, images: Iterable[Tensor], *, batch_size: int = 32) -> Iterator[Tensor]:
    """Features of images that come in batches of any size, as they come.

    Args:
        network: Its features.
        images: uint8 `[b, 3, H, W]` each, any b; sizes may differ between batches.
        batch_size: How many images the network sees at once.

    Yields:
        float32 `[at most batch_size, D]` on the CPU, in the order of the images.
    """
    for batch in images:
        for part in batch.split(batch_size):
            yield network(part).float().cpu()


class EfficientNetLiteFeatures:
    """Mean over positions of EfficientNet-Lite's last feature map, 1280 features (behind a ReLU6, hence in [0, 6]).

    Images of any size and shape are resized as a whole to the square that the network was trained at: by bicubic
    interpolation with antialiasing, in float. Other resizing gives other distances (Parmar, Zhang and Zhu, CVPR 2022).

    Args:
        name: Of the network.
        weights_sha256: Of its weights.
        network: Has `extract_features`, `[B, 3, side_px, side_px]` to `[B, 1280, h, w]`.
        side_px: Side of its input.
    """

    dimensions = 1280

    def __init__(self, name: str, weights_sha256: str, network: nn.Module, side_px: int) -> None:
        self.name = name
        self.weights_sha256 = weights_sha256
        self.network = network
        self.side_px = side_px
        self.resize = f"the whole image to {side_px} x {side_px}, bicubic with antialiasing, in float"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 `[B, 1280]` of images uint8 `[B, 3, H, W]`."""
        _check_images(images)
        size = (self.side_px, self.side_px)
        device = next(self.network.parameters()).device
        pixels = functional.interpolate(images.to(device).float(), size, mode="bicubic", antialias=True)
        # Training normalised by a mean of 127 and a standard deviation of 128 (efficientnet_lite_builder.py).
        normalised = (pixels.clamp(0.0, 255.0) - 127.0) / 128.0
        extract_features = cast(Callable[[Tensor], Tensor], self.network.extract_features)
        return extract_features(normalised).mean((-2, -1))


def efficientnet_lite_from(name: str, tensors: dict[str, Tensor]) -> nn.Module:
    """EfficientNet-Lite with the given weights, frozen. Raises `UnavailableError` where its package is missing."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UnavailableError(
            f"the feature network {name} needs a package that is not installed (efficientnet_lite_pytorch)",
            remedy=_OFFLINE_REMEDY,
        ) from error
    # Without storage: random numbers for it would move the global random state. The package's own loader unpickles
    # anything, and prints.
    with torch.device("meta"):
        network: nn.Module = EfficientNet.from_name(name)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


class InceptionFeatures:
    """The 2048 pooled features of Inception v3 that FID and KID are defined on.

    torch-fidelity resizes to 299 x 299 as the TensorFlow graph of the first FID does, without antialiasing.

    Args:
        weights_sha256: Of its weights.
        network: torch-fidelity's, uint8 `[B, 3, H, W]` to a tuple with `[B, 2048]`.
    """

    name = "inception"
    dimensions = 2048
    resize = "the whole image to 299 x 299, bilinear without antialiasing, as the TensorFlow graph of the first FID"

    def __init__(self, weights_sha256: str, network: nn.Module) -> None:
        self.weights_sha256 = weights_sha256
        self.network = network

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 `[B, 2048]` of images uint8 `[B, 3, H, W]`."""
        _check_images(images)
        features: Tensor = self.network(images.to(next(self.network.parameters()).device))[0]
        return features

    @torch.inference_mode()
    def class_logits(self, features: Tensor) -> Tensor:
        """Class logits without the bias, `[N, 1008]` of features `[N, 2048]`: what the Inception score is taken of."""
        layer = cast(nn.Linear, self.network.fc)
        return functional.linear(features.to(layer.weight), layer.weight).cpu()


def _load_inception(weights: Path | None, device: torch.device | str) -> InceptionFeatures:
    if weights is None:
        raise UnavailableError(
            "FID and KID need Inception's weights, which are not part of any package",
            remedy=f"fetch {INCEPTION_URL} and give its path, or the network efficientnet-lite1",
        )
    return InceptionFeatures(INCEPTION_SHA256, inception_from(read_state_dict(weights, INCEPTION_SHA256)).to(device))


def inception_from(tensors: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's Inception with the given weights, frozen. Raises `UnavailableError` where it is missing."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch raises RuntimeError when it is imported.
        raise UnavailableError(f"Inception cannot be used: {error}", remedy=_FID_REMEDY) from error
    # Its constructor unpickles without `weights_only`, whatever file it is given. What it gets here is our own copy of
    # tensors that were read safely.
    copy = io.BytesIO()
    torch.save(tensors, copy)
    copy.seek(0)
    with torch.random.fork_rng(devices=[]):  # it fills itself with random numbers first
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)


def _check_images(images: Tensor) -> None:
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (images.dtype, images.shape)
