"""Scaled dot-product attention by the faster way of a device (Vaswani et al., NeurIPS 2017, eq. 1).

Legend: B batch, H heads, L tokens, C channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(C)) v.

    In bfloat16 on a CPU the fused kernel's backward pass takes longer than that of matrix products, forward alone less
    (benchmarks/attention.py, docs/measurements.md): where a gradient is wanted, these are taken there.

    Args:
        query: `[B, H, L, C]`.
        key: `[B, H, L, C]`.
        value: `[B, H, L, C]`.
        causal: A token sees itself and those before it alone.

    Returns:
        `[B, H, L, C]`.
    """
    differentiated = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if differentiated and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return attend_by_products(query, key, value, causal=causal)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """The same by matrix products, which keep L x L weights a head for the backward pass."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value
