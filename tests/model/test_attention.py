"""Both ways of attention against its definition, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.model.vit import attend, attend_by_products


def _exact(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "spread", "tolerance"),
    [(torch.float32, 1.0, 1e-5), (torch.bfloat16, 1.0, 0.06), (torch.bfloat16, 3.0, 0.2)],
)
def test_both_ways_and_their_gradients_are_right(
    dtype: torch.dtype, spread: float, tolerance: float, causal: bool
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8, dtype=torch.float64) for _ in range(3)]
    inputs[0] *= spread
    leaves = [tensor.requires_grad_() for tensor in inputs]
    expected = _exact(*leaves, causal)
    target = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * target).sum(), leaves)
    copies = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    for way in (attend, attend_by_products):
        found = way(*copies, causal=causal)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
        of_way = torch.autograd.grad((found * target.to(dtype)).sum(), copies)
        for mine, true in zip(of_way, gradients, strict=True):
            scale = float(true.square().mean().sqrt())
            torch.testing.assert_close(mine.double() / scale, true / scale, atol=tolerance, rtol=tolerance)


def test_products_are_for_gradients_alone() -> None:
    query, key, value = (torch.randn(1, 2, 9, 4).bfloat16() for _ in range(3))
    assert torch.equal(attend(query, key, value), functional.scaled_dot_product_attention(query, key, value))
    differentiated = attend(query, key.requires_grad_(), value)
    assert torch.equal(differentiated, attend_by_products(query, key, value))
    with torch.no_grad():
        assert torch.equal(attend(query, key, value), functional.scaled_dot_product_attention(query, key, value))


def test_a_token_does_not_see_later_ones() -> None:
    query, key, value = (torch.randn(1, 1, 6, 4).bfloat16() for _ in range(3))
    before = attend_by_products(query, key, value, causal=True)
    key[..., 4:, :], value[..., 4:, :] = 9.0, 9.0
    after = attend_by_products(query, key, value, causal=True)
    assert torch.equal(before[..., :4, :], after[..., :4, :])
    assert not torch.equal(before[..., 4:, :], after[..., 4:, :])
