"""Adversarial losses and figures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from vq3dcli.losses.adversarial import discriminator_loss, generator_loss, r1_loss, r1_penalty, score_figures


def test_losses_are_cross_entropies() -> None:
    real, fake = torch.randn(20).double(), torch.randn(20).double()
    expected = -torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), -torch.log(torch.sigmoid(fake)).mean())


def test_losses_of_an_undecided_discriminator() -> None:
    zero = torch.zeros(3)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))


def test_the_generator_learns_where_the_discriminator_is_sure() -> None:
    score = torch.tensor([-50.0], requires_grad=True)
    generator_loss(score).backward()
    assert score.grad is not None
    assert score.grad.item() == pytest.approx(-1.0)


def test_r1_of_a_linear_score_is_its_squared_slope_and_differentiates() -> None:
    slope = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.rand(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((images * slope).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, slope.square().sum())
    (gradient,) = torch.autograd.grad(penalty, slope)
    torch.testing.assert_close(gradient, 2 * slope.detach())


def test_r1_of_a_quadratic_score() -> None:
    images = torch.rand(6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(0.5 * images.square().sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, images.square().sum((1, 2, 3)).mean())


def test_lazy_r1_has_the_strength_of_every_step() -> None:
    penalty = torch.tensor(3.0)
    assert r1_loss(penalty, weight=10.0, every_steps=1).item() == pytest.approx(15.0)
    assert r1_loss(penalty, weight=10.0, every_steps=16).item() / 16 == pytest.approx(15.0)


def test_figures() -> None:
    figures = score_figures(torch.tensor([1.0, 2.0, -1.0, 4.0]), torch.tensor([-1.0, -1.0, -2.0, -4.0]))
    values = {name: value.item() for name, value in figures.items()}
    assert values == {"real_score": 1.5, "fake_score": -2.0, "accuracy": 0.875, "sign": 0.5}
    undecided = score_figures(torch.zeros(4), torch.zeros(4))
    assert undecided["accuracy"].item() == 0.5
    assert undecided["sign"].item() == 0.0
