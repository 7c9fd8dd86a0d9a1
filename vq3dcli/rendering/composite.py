"""Volume rendering weights (Max, 1995; Mildenhall et al., ECCV 2020, eq. 3), in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def ray_weights(tau: Tensor, *, opaque_end: bool) -> Tensor:
    """Rendering weights from optical thickness.

    With T_i = exp(-sum_{j<i} tau_j), the weight of sample i is T_i (1 - exp(-tau_i)).

    Args:
        tau: Density times metric length of each interval, `[..., S]`, at least 0.
        opaque_end: Give what passes through all samples to the last one, so that the weights sum to 1.

    Returns:
        `[..., S]`, at least 0, summing to at most 1.
    """
    tau = tau.float()
    # exp(-80) is nothing to see and still a normal float32; denormal numbers are slow on some CPUs.
    thickness_before = (torch.cumsum(tau, -1) - tau).clamp(max=80.0)
    transmittance = torch.exp(-thickness_before)
    # expm1 keeps thin media exact where 1 - exp(-tau) would round to zero.
    opacity = -torch.expm1(-tau)
    if opaque_end:
        opacity = torch.cat([opacity[..., :-1], torch.ones_like(opacity[..., -1:])], -1)
    return transmittance * opacity
