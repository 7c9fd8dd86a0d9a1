"""Both ways of attention against its definition, and their gradients."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.model.attention import attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_trains_is_what_is_inferred(dtype: torch.dtype, causal: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    scores = inputs[0] @ inputs[1].transpose(-1, -2) / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ inputs[2]
    target = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * target).sum(), inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    for training in (False, True):
        copies = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        found = attend(*copies, training=training, causal=causal)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
        for mine, true in zip(torch.autograd.grad((found * target.to(dtype)).sum(), copies), gradients, strict=True):
            torch.testing.assert_close(mine.double(), true, atol=tolerance, rtol=tolerance)


def test_a_token_does_not_see_later_ones() -> None:
    query, key, value = (torch.randn(1, 1, 6, 4).bfloat16() for _ in range(3))
    before = attend(query, key, value, training=True, causal=True)
    key[..., 4:, :], value[..., 4:, :] = 9.0, 9.0
    after = attend(query, key, value, training=True, causal=True)
    assert torch.equal(before[..., :4, :], after[..., :4, :])
    assert not torch.equal(before[..., 4:, :], after[..., 4:, :])
