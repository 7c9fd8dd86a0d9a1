"""How far apart two sets of images are, by the features that a network gives them.

`frechet_distance` compares means and covariances, `kernel_distance` the sets themselves. Neither knows a network:
`vq3dcli.metrics.features` has those. With Inception's features the first is the FID and the second the KID; with any
other network's features they have other values and need another name (`features.distance_name`).

Legend: N images, D features of an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import DataError, UsageError
from vq3dcli.seeding import generator


class Moments(NamedTuple):
    """Mean and covariance of features, both float64 on the CPU.

    Attributes:
        samples: N.
        mean: `[D]`.
        covariance: `[D, D]`, with N - 1 in the denominator.
    """

    samples: int
    mean: Tensor
    covariance: Tensor


def moments(batches: Iterable[Tensor]) -> Moments:
    """Moments of features that come in batches, in memory of `[D, D]` however many they are.

    Batches are merged by their deviations from their own means (Chan, Golub and LeVeque 1979), which loses
    no digits where the mean is large beside the spread, as it is for features behind a ReLU.

    Args:
        batches: `[B, D]` each, any float type, any device, any B of at least 1. One `[N, D]` array is `[features]`.

    Raises:
        UsageError: Fewer than two images.
        DataError: A feature that is not finite.
    """
    count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for batch in batches:
        assert batch.ndim == 2 and len(batch) > 0, batch.shape
        _require_finite(batch)
        values = batch.detach().to("cpu", torch.float64)
        batch_mean = values.mean(0)
        centred = values - batch_mean
        if count == 0:
            count, mean, scatter = len(values), batch_mean, centred.T @ centred
            continue
        total = count + len(values)
        shift = batch_mean - mean
        scatter += centred.T @ centred + torch.outer(shift, shift) * (count * len(values) / total)
        mean = mean + shift * (len(values) / total)
        count = total
    _require_two(count)
    return Moments(count, mean, scatter / (count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; its use on Inception's
    features is the FID (Heusel et al., NeurIPS 2017, equation 6).

    The trace of the root is the sum of the singular values of F1^T F2, with C = F F^T from the eigenvectors of C. That
    is exact for covariances without full rank, as they are for N <= D, where an iteration for the matrix root of C1 C2
    does not converge or turns complex. No multiple of the identity is added.

    Args:
        first: Moments of one set.
        second: Moments of the other, of the same D.

    Returns:
        At least 0 and 0 for equal moments, both up to rounding; it is biased upwards by about 1 / N, so that only
        figures with the same N on each side compare.
    """
    assert first.mean.shape == second.mean.shape, (first.mean.shape, second.mean.shape)
    root_trace = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    distance = (first.mean - second.mean).square().sum()
    distance += first.covariance.trace() + second.covariance.trace() - 2.0 * root_trace
    return max(distance.item(), 0.0)


class KernelDistance(NamedTuple):
    """An estimate over subsets.

    Attributes:
        mean: Mean over subsets; without bias, hence below 0 by chance where the sets are alike.
        std: Standard deviation over subsets, not of the mean.
        subsets: How many were drawn.
        subset_size: Images of each side in a subset.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


def kernel_distance(
    first: Tensor, second: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, averaged over random subsets.

    Bińkowski et al., "Demystifying MMD GANs", ICLR 2018: the kernel and the unbiased estimator of their KID,
    which this is on Inception's features. Unlike the Fréchet distance it has no bias in N.

    Args:
        first: Features of one set, `[N1, D]`.
        second: Features of the other, `[N2, D]`.
        subsets: How many subsets to draw; one is enough where a subset is the whole of both sets.
        subset_size: Images of each side in a subset, drawn without replacement; at most the smaller set.
        seed: Of the subsets.

    Raises:
        UsageError: Fewer than two images on a side.
        DataError: A feature that is not finite.
    """
    assert first.shape[1] == second.shape[1] and subsets >= 1, (first.shape, second.shape, subsets)
    _require_finite(first, second)
    size = min(subset_size, len(first), len(second))
    _require_two(size)
    if size == len(first) == len(second):
        subsets = 1
    estimates = torch.stack(
        [
            _unbiased_mmd(_subset(first, size, seed, 2 * i), _subset(second, size, seed, 2 * i + 1))
            for i in range(subsets)
        ]
    )
    return KernelDistance(estimates.mean().item(), estimates.std(correction=0).item(), subsets, size)


def _subset(features: Tensor, size: int, seed: int, index: int) -> Tensor:
    """`size` random rows, float64 on the CPU: only a subset at a time is held in double precision."""
    if size < len(features):
        chosen = torch.randperm(len(features), generator=generator(seed, "kernel-distance", index))[:size]
        features = features[chosen.to(features.device)]
    return features.detach().to("cpu", torch.float64)


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Sums without the diagonals, over m (m - 1) pairs inside a set and m^2 between the sets; `[m, D]` each."""
    count, features = x.shape
    xx, yy, xy = ((a @ b.T / features + 1.0).pow(3) for a, b in ((x, x), (y, y), (x, y)))
    inside = xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()
    return inside / (count * (count - 1)) - 2.0 * xy.mean()


def _factor(covariance: Tensor) -> Tensor:
    """F `[D, rank]` with F F^T = covariance, up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    # Below this an eigenvalue is the rounding error of the decomposition. Its root would not be small: 1500 spurious
    # values of 1e-16 add 1e-5 to a trace.
    smallest = values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept = values > smallest
    return vectors[:, kept] * values[kept].sqrt()


def _require_finite(*arrays: Tensor) -> None:
    if not all(torch.isfinite(features).all() for features in arrays):
        raise DataError(
            "a feature is not finite: the network's weights or the images are damaged",
            remedy="fetch the weights again, or look at the images",
        )


def _require_two(count: int) -> None:
    if count < 2:
        raise UsageError(f"a distance between sets needs at least 2 images a side, not {count}", remedy="more images")
