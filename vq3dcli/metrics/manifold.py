"""Fidelity and coverage apart: how much of one set lies where the other one is, by distances to nearest neighbours.

Legend: N images, D features of an image, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import UsageError

NEIGHBOURS = 3
# Rows of a block of distances: against 50,000 images it takes 400 MB.
_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Both in [0, 1].

    Attributes:
        precision: Part of the samples that lie on the manifold of the real images.
        recall: Part of the real images that lie on the manifold of the samples.
        neighbours: k.
    """

    precision: float
    recall: float
    neighbours: int


def precision_recall(real: Tensor, samples: Tensor, *, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019, equations 1 and 2).

    A set's manifold is the union of balls around its features, each reaching to the k-th nearest other one of the set.

    Args:
        real: Features of real images, `[N1, D]`.
        samples: Features of samples, `[N2, D]`.
        neighbours: k; the paper's figures have 3.

    Raises:
        UsageError: A set has no more than k images.
    """
    assert real.ndim == samples.ndim == 2 and real.shape[1] == samples.shape[1], (real.shape, samples.shape)
    fewest = min(len(real), len(samples))
    if fewest <= neighbours:
        raise UsageError(
            f"precision and recall by {neighbours} neighbours need more than {neighbours} images, not {fewest}",
            remedy="more images",
        )
    # The distances of float32 lose half of their digits to cancellation: |x|^2 is large beside |x - y|^2.
    real, samples = real.detach().cpu().double(), samples.detach().cpu().double()
    precision = _on_manifold(samples, real, _radii(real, neighbours)).double().mean().item()
    recall = _on_manifold(real, samples, _radii(samples, neighbours)).double().mean().item()
    return PrecisionRecall(precision, recall, neighbours)


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Distance of each row of `[N, D]` to its k-th nearest other row, `[N]`."""
    radii = []
    for start in range(0, len(features), _ROWS):
        distance = torch.cdist(features[start : start + _ROWS], features)
        rows = torch.arange(len(distance))
        distance[rows, rows + start] = torch.inf  # itself is no neighbour, at whatever distance rounding leaves it
        radii.append(distance.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _on_manifold(points: Tensor, features: Tensor, radii: Tensor) -> Tensor:
    """Whether each row of `points` lies in the ball of any row of `features`, bool `[N]`."""
    return torch.cat([(torch.cdist(part, features) <= radii).any(1) for part in points.split(_ROWS)])
