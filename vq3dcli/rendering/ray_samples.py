"""Samples on a ray: intervals of normalised disparity s between fenceposts, from near (s = 1) to far (s = 0).

Legend: S samples. All tensors end in the sample axis, ordered from near to far.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import DepthRange, z_depth_from_s


class RaySamples(NamedTuple):
    """Intervals that follow each other on rays."""

    edges_s: Tensor  # the fenceposts `[..., S + 1]`
    s: Tensor  # where in each interval the field is asked, `[..., S]`

    def lengths(self, depth_range: DepthRange) -> Tensor:
        """Extent of each interval in z_depth, `[..., S]`."""
        return z_depth_from_s(self.edges_s, depth_range).diff(dim=-1)


def samples_between(edges_s: Tensor) -> RaySamples:
    """Samples at the middles of the intervals between given fenceposts."""
    return RaySamples(edges_s, 0.5 * (edges_s[..., 1:] + edges_s[..., :-1]))


def samples_at(s: Tensor) -> RaySamples:
    """Samples at given s `[..., S]`: fenceposts are 1, the midpoints between neighbours, and 0."""
    ones = torch.ones_like(s[..., :1])
    return RaySamples(torch.cat([ones, 0.5 * (s[..., 1:] + s[..., :-1]), torch.zeros_like(ones)], -1), s)


def uniform_samples(count: int, device: torch.device | None = None) -> RaySamples:
    """The middles of equal intervals."""
    return samples_at(1.0 - (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count)


def stratified_samples(jitter: Tensor) -> RaySamples:
    """One sample in each of S equal bins, by uniform numbers in [0, 1), `[..., S]`."""
    samples = jitter.shape[-1]
    bins = torch.arange(samples, device=jitter.device, dtype=jitter.dtype)
    return samples_at(1.0 - (bins + jitter) / samples)


def with_importance(samples: RaySamples, weights: Tensor, jitter: Tensor) -> RaySamples:
    """These samples and M more, drawn from the piecewise-constant density that `weights` give to their intervals.

    Weights `[..., S]` are detached, since a gradient through positions is noise; uniform numbers `[..., M]` are
    stratified over M equal bins of the cumulative weight.
    """
    edges_s, s = (part.expand(*weights.shape[:-1], -1) for part in samples)
    # A surface lies between the last empty sample and the first full one, so a neighbour's weight counts too
    # (mip-NeRF, Barron et al., ICCV 2021, sec. 3.1). The floor spreads the samples of an empty ray evenly.
    weights = weights.detach()
    beside = torch.maximum(weights[..., 1:], weights[..., :-1])
    mass = torch.cat([weights[..., :1], beside], -1) + torch.cat([beside, weights[..., -1:]], -1) + 1e-5
    cdf = torch.cumsum(mass / mass.sum(-1, keepdim=True), -1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], -1)
    count = jitter.shape[-1]
    bins = torch.arange(count, device=jitter.device, dtype=jitter.dtype)
    u = (bins + jitter) / count
    index = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, index - 1), cdf.gather(-1, index)
    fraction = ((u - low) / (high - low).clamp(min=1e-8)).clamp(0.0, 1.0)
    start, end = edges_s.gather(-1, index - 1), edges_s.gather(-1, index)
    drawn = start + (end - start) * fraction
    return samples_at(torch.sort(torch.cat([s, drawn], -1), -1, descending=True).values)
