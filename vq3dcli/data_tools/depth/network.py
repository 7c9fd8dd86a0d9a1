"""What depth networks have in common: images in, numbers out that mean disparity or depth."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Meaning = Literal["disparity", "depth"]

# A depth below this share of the map's median is taken for it: 1 / z of a pixel at zero would use up all levels of the
# label. A share, since the unit is not known: some networks predict depth from 0 to 1.
NEAREST = 0.02


class DepthModel(Protocol):
    """An opened network.

    Attributes:
        facts: JSON values that its numbers depend on, the hash of its files among them.
        meaning: What the numbers are: `disparity`, larger is nearer, known up to scale and shift; or `depth`, z in
            metres or any other unit.
    """

    facts: dict[str, Any]
    meaning: Meaning

    def predict(self, images: Tensor) -> Tensor:
        """The network's own numbers, float32 `[B, h, w]` on the CPU, for uint8 images `[B, 3, H, W]`."""
        ...


def to_disparity(prediction: Tensor, meaning: Meaning) -> Tensor:
    """Disparity up to scale and shift, larger is nearer, from a network's numbers, float32 `[B, h, w]`."""
    if meaning == "disparity":
        return prediction
    nearest = NEAREST * prediction.flatten(1).nanmedian(dim=1).values[:, None, None]
    # A map that is nowhere above zero becomes constant, and its label is flagged.
    return 1.0 / prediction.maximum(nearest.clamp(min=torch.finfo(torch.float32).tiny))
