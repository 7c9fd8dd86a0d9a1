"""The loss of relative disparity against its closed form and its invariances."""

from __future__ import annotations

import torch

from vq3dcli.losses.depth import normalised, relative_depth_loss


def test_normalised_in_closed_form() -> None:
    found = normalised(torch.tensor([[[1.0, 2.0, 9.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[-1.0, 0.0, 7.0]]]) / (8.0 / 3.0))


def test_any_increasing_affine_map_of_either_side_changes_nothing() -> None:
    torch.manual_seed(0)
    predicted, label = torch.rand(3, 16, 16), torch.rand(3, 16, 16)
    loss = relative_depth_loss(predicted, label, gradient=0.5, scales=4)
    torch.testing.assert_close(relative_depth_loss(7 * predicted - 3, label, gradient=0.5, scales=4), loss)
    torch.testing.assert_close(relative_depth_loss(predicted, 0.1 * label + 5, gradient=0.5, scales=4), loss)
    assert bool((relative_depth_loss(3 * label + 1, label, gradient=0.5, scales=4) < 1e-5).all())
    assert bool((relative_depth_loss(-label, label, gradient=0.5, scales=4) > 1.0).all())


def test_slopes_are_summed_over_scales_of_half_the_size() -> None:
    torch.manual_seed(0)
    predicted, label = torch.rand(2, 8, 8), torch.rand(2, 8, 8)
    error = normalised(predicted) - normalised(label)
    expected = error.abs().mean((1, 2))
    for coarse in (error, error[:, ::2, ::2]):
        expected = expected + 0.3 * (coarse[:, 1:] - coarse[:, :-1]).abs().mean((1, 2))
        expected = expected + 0.3 * (coarse[:, :, 1:] - coarse[:, :, :-1]).abs().mean((1, 2))
    torch.testing.assert_close(relative_depth_loss(predicted, label, gradient=0.3, scales=2), expected)


def test_an_outlier_pulls_no_harder_than_its_bound() -> None:
    label = torch.rand(1, 8, 8)
    predicted = label.clone()
    predicted[0, 0, 0] = 1e4
    loss = relative_depth_loss(predicted.requires_grad_(), label, gradient=0.0, scales=1)
    assert float(loss.detach()) <= 5.0
    assert bool(torch.autograd.grad(loss.sum(), predicted)[0].isfinite().all())


def test_a_flat_map_has_a_finite_gradient() -> None:
    flat = torch.zeros(1, 8, 8, requires_grad=True)
    relative_depth_loss(flat, torch.rand(1, 8, 8), gradient=0.25, scales=3).sum().backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())
