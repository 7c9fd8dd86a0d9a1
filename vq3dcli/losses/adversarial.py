"""Adversarial losses: non-saturating (Goodfellow et al., NeurIPS 2014, sec. 3) with R1 (Mescheder et al., ICML 2018).

A score is a logit: the discriminator says "real" with probability sigmoid(score).

Legend: B images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def generator_loss(fake_score: Tensor) -> Tensor:
    """-log sigmoid(score) of fakes `[B]`, averaged: strong gradients where the discriminator is sure."""
    return functional.softplus(-fake_score).mean()


def discriminator_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """-log sigmoid(real) - log(1 - sigmoid(fake)), each averaged over its images `[B]`."""
    return functional.softplus(-real_score).mean() + functional.softplus(fake_score).mean()


def r1_penalty(real_score: Tensor, real: Tensor) -> Tensor:
    """Squared norm of the gradient of scores `[B]` of real images `[B, C, H, W]`, their mean, differentiable again.

    Mescheder et al., eq. 9, without gamma / 2.
    """
    # Scores of one minibatch group depend on each other's images; the sum is what StyleGAN2 differentiates too.
    (gradient,) = torch.autograd.grad(real_score.sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def r1_loss(penalty: Tensor, *, weight: float, every_steps: int) -> Tensor:
    """The penalty times gamma / 2, and times the interval, since it is added in one of `every_steps` steps only.

    The interval keeps the average strength (lazy regularisation: Karras et al., CVPR 2020, sec. 3.1).
    """
    return penalty * (0.5 * weight * every_steps)


def score_figures(real_score: Tensor, fake_score: Tensor) -> dict[str, Tensor]:
    """What scores `[B]` say about the game: detached scalars by name.

    `real_score`, `fake_score`: means. `accuracy`: share of images on the right side of zero, a zero counting half: 1
    when the discriminator wins, 0.5 when it cannot tell. `sign`: mean sign of the real scores, the overfitting
    statistic r_t of Karras et al. (NeurIPS 2020, eq. 1).
    """
    real, fake = real_score.detach().float(), fake_score.detach().float()
    sign = real.sign().mean()
    return {
        "real_score": real.mean(),
        "fake_score": fake.mean(),
        "accuracy": 0.5 + 0.25 * (sign - fake.sign().mean()),
        "sign": sign,
    }
