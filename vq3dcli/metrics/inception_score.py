"""The Inception score: classes that are certain for an image and even over all images.

Legend: N images, C classes of the network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import UsageError
from vq3dcli.seeding import generator

SPLITS = 10


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the parts of a set.

    Attributes:
        mean: At least 1, and at most C.
        std: Over the parts, not of the mean.
        splits: How many parts.
    """

    mean: float
    std: float
    splits: int


def inception_score(logits: Tensor, *, splits: int = SPLITS, seed: int = 0) -> InceptionScore:
    """The exponential of the mean of KL(p(y|x) || p(y)) in each part (Salimans et al., NeurIPS 2016, section 4).

    Parts are drawn at random: of samples in the order of their classes, each part would hold a few classes only.

    Args:
        logits: Of the network's classes, `[N, C]`.
        splits: Parts of equal size, up to one image; with 50,000 images the usual ten have 5000.
        seed: Of the order.

    Raises:
        UsageError: Fewer images than parts.
    """
    count = len(logits)
    if count < splits:
        raise UsageError(
            f"an Inception score in {splits} parts needs {splits} images, not {count}", remedy="more images"
        )
    order = torch.randperm(count, generator=generator(seed, "inception-score"))
    scores = []
    for part in range(splits):
        rows = order[part * count // splits : (part + 1) * count // splits]
        log_p = logits[rows].double().log_softmax(1)
        p = log_p.exp()
        # A class that no image has any probability of adds 0 x log 0.
        log_mean = p.mean(0).clamp_min(torch.finfo(p.dtype).tiny).log()
        scores.append((p * (log_p - log_mean)).sum(1).mean().exp())
    found = torch.stack(scores)
    return InceptionScore(found.mean().item(), found.std(correction=0).item(), splits)
