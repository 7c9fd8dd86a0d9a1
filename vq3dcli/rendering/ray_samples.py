"""Where samples lie on a ray: uniform in normalised disparity s, from near (s = 1) to far (s = 0).

Legend: S samples. All tensors end in the sample axis, `[..., S]`, ordered from near to far.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_s(samples: int, device: torch.device | None = None) -> Tensor:
    """The middles of equal bins of s, `[S]`, descending."""
    return 1.0 - (torch.arange(samples, device=device, dtype=torch.float32) + 0.5) / samples


def stratified_s(jitter: Tensor) -> Tensor:
    """One sample in each of S equal bins.

    Args:
        jitter: Uniform numbers in [0, 1), `[..., S]`.
    """
    samples = jitter.shape[-1]
    bins = torch.arange(samples, device=jitter.device, dtype=jitter.dtype)
    return 1.0 - (bins + jitter) / samples


def bin_edges(samples_s: Tensor) -> Tensor:
    """The interval that each sample stands for: midpoints between neighbours, 1 and 0 at the ends, `[..., S + 1]`.

    For `uniform_s` these are the edges of the equal bins.
    """
    ones = torch.ones_like(samples_s[..., :1])
    middle = 0.5 * (samples_s[..., 1:] + samples_s[..., :-1])
    return torch.cat([ones, middle, torch.zeros_like(ones)], -1)


def importance_s(samples_s: Tensor, weights: Tensor, jitter: Tensor) -> Tensor:
    """Samples drawn from the piecewise-constant density that `weights` give to the intervals of `samples_s`.

    Args:
        samples_s: `[..., S]`.
        weights: Rendering weights `[..., S]`; detached here, since a gradient through positions is noise.
        jitter: Uniform numbers `[..., M]`; stratified over M equal bins of the cumulative weight.

    Returns:
        `[..., M]`, descending.
    """
    edges = bin_edges(samples_s)
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
    index = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, samples_s.shape[-1])
    low, high = cdf.gather(-1, index - 1), cdf.gather(-1, index)
    fraction = ((u - low) / (high - low).clamp(min=1e-8)).clamp(0.0, 1.0)
    start, end = edges.gather(-1, index - 1), edges.gather(-1, index)
    return start + (end - start) * fraction


def merge_s(first: Tensor, second: Tensor) -> Tensor:
    """Both sets of samples in one, from near to far."""
    return torch.sort(torch.cat([first, second], -1), -1, descending=True).values
