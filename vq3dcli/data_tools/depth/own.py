"""Depth networks that `vq3d train-depth` made, the embedded one among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data_tools.depth.network import Meaning
from vq3dcli.weights_file import load_depth


class OwnModel:
    """See `network.DepthModel`.

    Args:
        path: A weights file, or a run's folder or checkpoint; None for the embedded network.
        device: Where it computes.
        flip: Average with the mirrored map of the mirrored image.

    Raises:
        InputMissingError, UnsafeFileError, DataError, UnavailableError: As `depth_checkpoint.load_depth`.
    """

    meaning: Meaning = "disparity"

    def __init__(self, path: Path | None, device: torch.device, *, flip: bool = False) -> None:
        self._loaded, self._flip = load_depth(path, device), flip
        self.facts: dict[str, Any] = {
            "backend": "vq3d",
            "meaning": self.meaning,
            "input_px": self._loaded.recipe.model.input_px,
            "flip": flip,
            "sha256": self._loaded.sha256,
        }

    def predict(self, images: Tensor) -> Tensor:
        """Disparity up to scale and shift, float32 `[B, h, w]` on the CPU, for uint8 images `[B, 3, H, W]`."""
        return self._loaded.model.predict(images, self._loaded.recipe.model.input_px, flip=self._flip).cpu()
