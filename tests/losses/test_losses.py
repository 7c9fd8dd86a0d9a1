"""The depth losses against their identity, and label alignment."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.losses.depth import (
    LABEL_METRIC,
    LABEL_RELATIVE,
    align_canonical,
    align_labels,
    align_least_squares,
    depth_loss,
    order_loss,
)
from vq3dcli.losses.reconstruction import chroma_ratio, l1, l2


def _rays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights = torch.softmax(torch.randn(3, 20, 16).double() * 2, -1)
    samples_s = torch.rand(3, 20, 16).double().sort(-1, descending=True).values
    return weights, samples_s, torch.rand(3, 20).double()


def test_pointwise_minus_accumulated_is_the_variance_under_the_weights() -> None:
    weights, samples_s, label = _rays()
    mean = (weights * samples_s).sum(-1, keepdim=True)
    variance = (weights * (samples_s - mean).square()).sum(-1).mean(-1)
    difference = depth_loss(weights, samples_s, label, "pointwise") - depth_loss(
        weights, samples_s, label, "accumulated"
    )
    torch.testing.assert_close(difference, variance, rtol=1e-10, atol=1e-12)


def test_a_pair_of_floaters_that_cancel_is_seen_by_the_pointwise_loss_only() -> None:
    weights = torch.tensor([[[0.5, 0.0, 0.5]]])
    samples_s = torch.tensor([[[0.9, 0.5, 0.1]]])
    label = torch.tensor([[0.5]])
    assert depth_loss(weights, samples_s, label, "accumulated").item() < 1e-12
    assert abs(depth_loss(weights, samples_s, label, "pointwise").item() - 0.16) < 1e-6


def test_the_linear_loss_is_least_where_half_of_the_weight_lies_on_either_side() -> None:
    weights, samples_s = torch.tensor([[[0.2, 0.5, 0.3]]]), torch.tensor([[[0.8, 0.6, 0.1]]])
    at = {
        label: depth_loss(weights, samples_s, torch.tensor([[label]]), "pointwise_l1").item()
        for label in (0.5, 0.6, 0.7)
    }
    assert abs(at[0.6] - (0.2 * 0.2 + 0.3 * 0.5)) < 1e-6
    assert at[0.6] < min(at[0.5], at[0.7])


def test_none_is_zero() -> None:
    weights, samples_s, label = _rays()
    assert (depth_loss(weights, samples_s, label, "none") == 0).all()


def test_order_of_all_pairs_by_brute_force() -> None:
    _, _, label = _rays()
    s = torch.rand_like(label)
    rays = label.shape[1]  # so few that every pair is met: those half of the rays apart twice, as (i, j) and (j, i)
    pairs = [(i, (i + step) % rays) for i in range(rays) for step in range(1, rays // 2 + 1)]

    def soft_sign(x: float) -> float:
        return x / (0.02 + abs(x))

    expected = [
        sum(abs(soft_sign(float(a[i] - a[j])) - soft_sign(float(b[i] - b[j]))) for i, j in pairs) / len(pairs)
        for a, b in zip(s, label, strict=True)
    ]
    torch.testing.assert_close(order_loss(s, label).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rays", "met"), [(448, 128), (9, 8), (20, 20), (2, 2)])
def test_a_ray_meets_others_up_to_a_number(rays: int, met: int) -> None:
    label = torch.zeros(1, rays)
    label[0, rays // 3] = 0.98  # its pairs are 0.98 wrong, all others right
    wrong = order_loss(torch.zeros_like(label), label) * rays * min(rays // 2, 64)
    torch.testing.assert_close(wrong, torch.tensor([0.98 * met]), rtol=1e-4, atol=0)


def test_order_forgets_the_distance_of_a_wall_and_sees_its_slope() -> None:
    wall = 0.15 + 0.03 * torch.linspace(0.0, 1.0, 512)[None]
    farther = order_loss(wall - 0.1, wall)
    flat = order_loss(wall.mean().expand_as(wall), wall)
    turned = order_loss(wall.flip(1), wall)
    torch.testing.assert_close(farther, torch.zeros(1), atol=1e-4, rtol=0)
    assert 0.2 < flat.item() < turned.item() / 1.9


def test_order_pulls_a_flat_wall_towards_its_slope() -> None:
    label = 0.15 + 0.03 * torch.linspace(0.0, 1.0, 512)[None]
    s = torch.full_like(label, 0.3).requires_grad_()
    order_loss(s, label).sum().backward()
    assert s.grad is not None
    assert s.grad[0, :200].min() > 0 > s.grad[0, -200:].max()
    assert abs(s.grad.sum().item()) < 1e-5  # a shift changes nothing


def test_the_order_of_one_ray_is_zero() -> None:
    assert order_loss(torch.rand(3, 1), torch.rand(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_canonical_alignment_has_the_wanted_statistics_and_forgets_scale() -> None:
    label = torch.rand(4, 32, 32)
    aligned = align_canonical(label, mean=0.4, std=0.18)
    torch.testing.assert_close(aligned.flatten(1).mean(1), torch.full((4,), 0.4), atol=0.01, rtol=0)
    torch.testing.assert_close(aligned.flatten(1).std(1), torch.full((4,), 0.18), atol=0.01, rtol=0)
    torch.testing.assert_close(align_canonical(label * 37 - 5, mean=0.4, std=0.18), aligned, atol=1e-4, rtol=0)
    assert torch.isfinite(align_canonical(torch.ones(1, 8, 8), mean=0.4, std=0.18)).all()


def test_a_nearly_flat_label_gets_no_relief_of_its_noise() -> None:
    pattern = torch.rand(1, 64, 64).mul(2).sub(1)
    pattern = pattern / pattern.std()

    def relief(share: float, level: float = 1.0) -> float:
        return float(align_canonical(level * (1.0 + share * pattern), mean=0.4, std=0.18).std())

    full = relief(0.1)
    assert full == pytest.approx(0.18, abs=0.005)
    assert relief(0.06) == pytest.approx(full, rel=1e-3)
    # From a twentieth on it falls in proportion, at any scale of the labels.
    for share in (0.02, 1e-3, 1e-4):
        assert relief(share) == pytest.approx(full * share / 0.05, rel=0.03)
        assert relief(share, 300.0) == pytest.approx(relief(share), rel=1e-3)
    assert align_canonical(torch.zeros(1, 8, 8), mean=0.4, std=0.18).unique().tolist() == [pytest.approx(0.4)]
    rendered = torch.rand(1, 64 * 64)
    flat = align_least_squares((1.0 + 1e-4 * pattern).flatten(1), rendered)
    assert float(flat.std()) < 1e-3


def test_canonical_alignment_withstands_outliers() -> None:
    label = torch.rand(1, 64, 64)
    spoiled = label.clone()
    spoiled[0, 0, 0] = 1e6
    aligned = align_canonical(spoiled, mean=0.4, std=0.18) - align_canonical(label, mean=0.4, std=0.18)
    assert aligned[0, 1:].abs().max() < 0.01


def test_least_squares_recovers_an_increasing_affine_map() -> None:
    rendered = torch.rand(2, 100) * 0.5 + 0.2
    torch.testing.assert_close(align_least_squares(rendered * 9 - 4, rendered), rendered, atol=1e-5, rtol=0)


def test_least_squares_does_not_follow_a_flat_wall() -> None:
    label = torch.rand(2, 100)
    aligned = align_least_squares(label, torch.full((2, 100), 0.4))
    assert (aligned.std(1) > 0.02).all()
    assert (torch.corrcoef(torch.stack([aligned[0], label[0]]))[0, 1]) > 0.999


def test_metric_labels_are_never_touched() -> None:
    label = torch.rand(2, 30)
    kind = torch.tensor([LABEL_METRIC, LABEL_RELATIVE])
    for alignment in ("canonical", "least_squares"):
        aligned = align_labels(label, kind, torch.rand(2, 30), alignment=alignment, canonical=label * 0.5)  # type: ignore[arg-type]
        assert torch.equal(aligned[0], label[0])
        assert not torch.equal(aligned[1], label[1])


def test_reconstruction_losses() -> None:
    a, b = torch.zeros(2, 5, 3), torch.full((2, 5, 3), 0.5)
    assert l2(a, b).item() == 0.25
    assert l1(a, b).item() == 0.5
    colourful = torch.rand(2, 50, 3)
    grey = colourful.mean(-1, keepdim=True).expand_as(colourful)
    assert chroma_ratio(grey, colourful).item() < 1e-3
    assert abs(chroma_ratio(colourful, colourful).item() - 1) < 1e-6
