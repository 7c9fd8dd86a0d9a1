"""How far apart two sets of images are, by the features that a network gives them; `metrics.features` has networks.

With Inception's features `frechet_distance` is the FID and `kernel_distance` the KID; with any other network's they
have other values and need another name (`features.distance_name`).

Legend: N images, D features of an image, C classes of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import DataError, UsageError
from vq3dcli.seeding import generator

# Rows of a block of distances: against 50,000 images it takes 400 MB.
_ROWS = 1024


class Moments(NamedTuple):
    """Mean `[D]` and covariance `[D, D]` (with N - 1) of the features of N = `samples` images, float64 on the CPU."""

    samples: int
    mean: Tensor
    covariance: Tensor


class KernelDistance(NamedTuple):
    """Mean (below 0 by chance where the sets are alike) and standard deviation over subsets of images."""

    mean: float
    std: float
    subsets: int
    subset_size: int


class PrecisionRecall(NamedTuple):
    """Parts of the samples on the manifold of the real images, and of these on that of the samples, by k neighbours."""

    precision: float
    recall: float
    neighbours: int


class InceptionScore(NamedTuple):
    """Mean, from 1 to C, and standard deviation over the parts of a set."""

    mean: float
    std: float
    splits: int


def moments(batches: Iterable[Tensor]) -> Moments:
    """Moments of features that come in batches `[B, D]`, in memory of `[D, D]` however many they are.

    Batches are merged by their deviations from their own means (Chan, Golub and LeVeque 1979), which loses
    no digits where the mean is large beside the spread, as it is for features behind a ReLU.

    Raises `UsageError`: fewer than two images; `DataError`: a feature that is not finite.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        _require_finite(batch)
        values = batch.detach().to("cpu", torch.float64)
        total = count + len(values)
        shift = values.mean(0) - mean
        centred = values - values.mean(0)
        scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * len(values) / total)
        mean = mean + shift * (len(values) / total)
        count = total
    _require_two(count)
    return Moments(count, mean, scatter / (count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Dowson and Landau, 1982; on Inception's features it is the FID (Heusel et al., NeurIPS 2017, equation 6). It is
    biased upwards by about 1 / N: only figures with the same N on each side compare.

    The trace of the root is the sum of the singular values of F1^T F2, with C = F F^T from the eigenvectors of C. That
    is exact for covariances without full rank, as they are for N <= D, where an iteration for the matrix root of C1 C2
    does not converge or turns complex. No multiple of the identity is added.
    """
    root_trace = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    distance = (first.mean - second.mean).square().sum()
    distance += first.covariance.trace() + second.covariance.trace() - 2.0 * root_trace
    return max(distance.item(), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """F `[D, rank]` with F F^T = covariance, up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    # Below this an eigenvalue is the rounding error of the decomposition. Its root would not be small: 1500 spurious
    # values of 1e-16 add 1e-5 to a trace.
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def kernel_distance(
    first: Tensor, second: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, averaged over random subsets.

    Bińkowski et al., "Demystifying MMD GANs", ICLR 2018: the kernel and the unbiased estimator of their KID,
    which this is on Inception's features. Unlike the Fréchet distance it has no bias in N.

    Args:
        first: Features `[N1, D]`; `second`: `[N2, D]`.
        subsets: How many to draw; one where a subset is the whole of both sets.
        subset_size: Images of each side, drawn without replacement; at most the smaller set.

    Raises `UsageError`: fewer than two images on a side; `DataError`: a feature that is not finite.
    """
    _require_finite(first, second)
    size = min(subset_size, len(first), len(second))
    _require_two(size)
    if size == len(first) == len(second):
        subsets = 1

    def subset(features: Tensor, index: int) -> Tensor:
        if size < len(features):
            chosen = torch.randperm(len(features), generator=generator(seed, "kernel-distance", index))[:size]
            features = features[chosen.to(features.device)]
        return features.detach().to("cpu", torch.float64)  # only a subset at a time is held in double precision

    estimates = torch.stack([_unbiased_mmd(subset(first, 2 * i), subset(second, 2 * i + 1)) for i in range(subsets)])
    return KernelDistance(estimates.mean().item(), estimates.std(correction=0).item(), subsets, size)


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Sums without the diagonals, over m (m - 1) pairs inside a set and m^2 between the sets; `[m, D]` each."""
    count, features = x.shape
    xx, yy, xy = ((a @ b.T / features + 1.0).pow(3) for a, b in ((x, x), (y, y), (x, y)))
    inside = xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()
    return inside / (count * (count - 1)) - 2.0 * xy.mean()


def precision_recall(real: Tensor, samples: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019, equations 1 and 2) of features `[N, D]`.

    A set's manifold is the union of balls around its features, each reaching to the k-th nearest other one of the set;
    the paper's k is 3.

    Raises `UsageError`: a set has no more than k images.
    """
    fewest = min(len(real), len(samples))
    if fewest <= neighbours:
        raise UsageError(
            f"precision and recall by {neighbours} neighbours need more than {neighbours} images, not {fewest}",
            remedy="more images",
        )
    # The distances of float32 lose half of their digits to cancellation: |x|^2 is large beside |x - y|^2.
    real, samples = real.detach().cpu().double(), samples.detach().cpu().double()
    return PrecisionRecall(_share_on(samples, real, neighbours), _share_on(real, samples, neighbours), neighbours)


def _share_on(points: Tensor, features: Tensor, neighbours: int) -> float:
    """Part of the rows of `points` that lie on the manifold of `features`."""
    radii = []
    for start in range(0, len(features), _ROWS):
        distance = torch.cdist(features[start : start + _ROWS], features)
        rows = torch.arange(len(distance))
        distance[rows, rows + start] = torch.inf  # itself is no neighbour, at whatever distance rounding leaves it
        radii.append(distance.kthvalue(neighbours, dim=1).values)
    radius = torch.cat(radii)
    inside = [(torch.cdist(part, features) <= radius).any(1) for part in points.split(_ROWS)]
    return torch.cat(inside).double().mean().item()


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> InceptionScore:
    """The exponential of the mean of KL(p(y|x) || p(y)) in each part (Salimans et al., NeurIPS 2016, section 4).

    Parts of equal size, up to one image, are drawn at random from logits `[N, C]`: of samples in the order of their
    classes, each would hold a few classes only. With 50,000 images the usual ten have 5000.

    Raises `UsageError`: fewer images than parts.
    """
    count = len(logits)
    if count < splits:
        raise UsageError(
            f"an Inception score in {splits} parts needs {splits} images, not {count}", remedy="more images"
        )
    order = torch.randperm(count, generator=generator(seed, "inception-score"))
    scores = []
    for part in range(splits):
        log_p = logits[order[part * count // splits : (part + 1) * count // splits]].double().log_softmax(1)
        p = log_p.exp()
        # A class that no image has any probability of adds 0 x log 0.
        log_mean = p.mean(0).clamp_min(torch.finfo(p.dtype).tiny).log()
        scores.append((p * (log_p - log_mean)).sum(1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(values.mean().item(), values.std(correction=0).item(), splits)


def _require_finite(*arrays: Tensor) -> None:
    if not all(torch.isfinite(features).all() for features in arrays):
        raise DataError(
            "a feature is not finite: the network's weights or the images are damaged",
            remedy="fetch the weights again, or look at the images",
        )


def _require_two(count: int) -> None:
    if count < 2:
        raise UsageError(f"a distance between sets needs at least 2 images a side, not {count}", remedy="more images")
