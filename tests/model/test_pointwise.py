"""GELU and softmax of vectors beside PyTorch's, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.model.pointwise import FastGELU, FastSoftmax, attend_to_slots
from vq3dcli.model.vit import TanhGELU, as_on_gpus


def of_both(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ours and PyTorch's, in float64, with their slopes."""
    given, right = x.clone().requires_grad_(), x.double().requires_grad_()
    ours, theirs = FastGELU.apply(given), functional.gelu(right, approximate="tanh")
    slopes = torch.autograd.grad(ours.sum(), given)[0], torch.autograd.grad(theirs.sum(), right)[0]
    return ours, theirs.detach(), *slopes


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 4e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("count", [1, 16, 70_001])
def test_numbers_and_slopes_are_those_of_pytorch(dtype: torch.dtype, error: float, count: int) -> None:
    ours, theirs, slope, right = of_both(torch.linspace(-9.0, 9.0, count).to(dtype))
    for found, expected in ((ours, theirs), (slope, right)):
        assert found.dtype == dtype
        assert bool(((found - expected).abs() <= error * (1.0 + expected.abs())).all())


def test_numbers_that_are_none_stay_so_and_bits_do_not_depend_on_threads() -> None:
    x = torch.randn(3, 70_001).bfloat16()
    x[1, 5] = math.nan
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = FastGELU.apply(x)
        torch.set_num_threads(2)
        assert torch.equal(alone.nan_to_num(7.0), FastGELU.apply(x).nan_to_num(7.0))
    finally:
        torch.set_num_threads(before)
    assert alone.isnan().sum() == 1 and alone[1, 5].isnan()


def test_where_no_gradient_is_wanted_bits_are_pytorchs() -> None:
    x = torch.randn(100)
    assert torch.equal(TanhGELU()(x), functional.gelu(x, approximate="tanh"))
    with as_on_gpus(True):
        assert torch.equal(TanhGELU()(x.requires_grad_()), functional.gelu(x, approximate="tanh"))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 4e-6), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", [(1, 16), (3, 5, 48), (300, 256)])
def test_shares_and_their_gradients_are_those_of_pytorch(
    dtype: torch.dtype, error: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    given, back = (5.0 * torch.randn(shape)).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    right = given.detach().double().requires_grad_()
    ours, theirs = FastSoftmax.apply(given), right.softmax(-1)
    (slope,), (expected,) = torch.autograd.grad(ours, given, back), torch.autograd.grad(theirs, right, back.double())
    assert ours.dtype == slope.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=error, atol=1e-30)
    torch.testing.assert_close(slope.double(), expected, rtol=8 * error, atol=8 * error)


def test_what_is_masked_has_no_share_and_a_row_with_no_number_is_none() -> None:
    x = torch.randn(3, 32).bfloat16()
    x[0, 5:], x[1, 7] = -torch.inf, torch.nan
    shares = FastSoftmax.apply(x)
    assert not shares[0, 5:].any() and shares[1].isnan().all() and shares[2].isfinite().all()


@pytest.mark.parametrize("visible", [1, 6, 9])
def test_one_token_sees_the_slots_that_are_filled_whatever_the_others_hold(visible: int) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 3, 1, 32), torch.randn(2, 3, 9, 32), torch.randn(2, 3, 9, 32)
    expected = functional.scaled_dot_product_attention(query, keys[:, :, :visible], values[:, :, :visible])
    keys[:, :, visible:], values[:, :, visible:] = math.nan, math.nan
    found = attend_to_slots(query, keys, values, visible)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[1:], attend_to_slots(query[1:], keys[1:], values[1:], visible))
