"""A network of transformers as the encoder of a depth network: DINOv2, Swin, ConvNeXt, ResNet and their like.

Legend: B images, C channels, H and W the image's sides, h and w those of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.errors import DataError
from vq3dcli.weights.third_party import import_package
from vq3dcli.weights.transformers_folder import PACKAGES, image_statistics, open_network, quiet, read_config

_WHAT = "a backbone"
_REMEDY = "a folder of DINOv2, Swin, ConvNeXt, ResNet or another backbone of transformers"
# Maps for the five strides of the decoder, of four evenly spaced layers: nothing is finer than the first one's.
_MAP_OF_STRIDE = (0, 0, 1, 2, 3)
# Of a configuration, what would choose layers or load code, and what is of one machine.
_DROPPED = ("auto_map", "attn_implementation", "quantization_config", "stage_names", "out_features", "out_indices")
# Normalisations of maps, which a checkpoint of the whole network does not have; they begin as the identity.
_NEW = ("hidden_states_norms.",)
# ImageNet's, of values in [0, 1].
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A backbone with random weights; `channels` are those of what `forward` returns.

    Raises `DataError`: transformers has no such backbone. Raises `UnavailableError`: it is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        package = import_package("transformers", "a backbone as encoder", PACKAGES)
        inside = {name: value for name, value in config.items() if name not in _DROPPED and not name.startswith("_")}
        try:
            with quiet():
                full = package.AutoConfig.for_model(**inside)
                last = len(full.stage_names) - 1
                full.out_indices = [max(1, round(last * quarter / 4)) for quarter in (1, 2, 3, 4)]
                if "timm" in full.model_type:
                    raise ValueError("a network of timm, not of transformers itself")
                self.network = package.AutoBackbone.from_config(full)
        except Exception as error:  # a configuration that is not one raises almost any type here
            text = " ".join(str(error).split())[:200]
            raise DataError(f"cannot build {_WHAT} ({config.get('model_type')}): {text}", remedy=_REMEDY) from error
        self.patch = int(full.patch_size) if isinstance(getattr(full, "patch_size", None), int) else 1
        maps = [int(channels) for channels in self.network.channels]
        self.channels = [maps[i] for i in _MAP_OF_STRIDE]
        for name, values in (("mean", config.get("image_mean", _MEAN)), ("std", config.get("image_std", _STD))):
            self.register_buffer(name, 255.0 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` in [0, 255] to features `[B, C, h, w]` at strides 2, 4, 8, 16 and 32."""
        sides = images.shape[-2:]
        # A patch of 14 pixels does not divide what strides of 32 do.
        shown = tuple(round(side / self.patch) * self.patch for side in sides)
        x = (images - self.mean) / self.std
        if shown != tuple(sides):
            x = functional.interpolate(x, shown, mode="bilinear", antialias=True)
        maps = self.network(x).feature_maps
        return [
            functional.interpolate(maps[i], [side >> (level + 1) for side in sides], mode="bilinear", antialias=True)
            for level, i in enumerate(_MAP_OF_STRIDE)
        ]

    def freeze(self, blocks: int) -> None:
        """Train nothing of it if `blocks` is not 0: layers have no common name."""
        self.requires_grad_(blocks == 0)

    def load_folder(self, folder: Path) -> None:
        """Take the weights of a folder. Raises as `transformers_folder.open_network`."""
        kind, config = type(self.network), self.network.config
        self.network.load_state_dict(open_network(kind, folder, _WHAT, new=_NEW, config=config).state_dict())


def backbone_config(folder: Path) -> dict[str, Any]:
    """What a folder says of a backbone, with the mean and deviation of its images where it says these.

    Raises as `transformers_folder.read_config` and `image_statistics`.
    """
    config = read_config(folder, _WHAT)
    preprocessor = folder / "preprocessor_config.json"
    return config | (image_statistics(preprocessor) if preprocessor.is_file() else {})
