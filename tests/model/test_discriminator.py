"""The discriminator: sizes, statistics over groups, classes, gradients."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.model.discriminator import Discriminator, DiscriminatorBlock, blur, minibatch_deviation


def _small(**changes: int) -> Discriminator:
    torch.manual_seed(0)
    arguments = {"size_px": 16, "base_channels": 8, "max_channels": 16, "minibatch_group": 4, **changes}
    return Discriminator(**arguments)


@pytest.mark.parametrize("size_px", [16, 20, 24, 28, 32, 48, 64, 96, 224, 256])
def test_every_size_gives_a_score_an_image(size_px: int) -> None:
    discriminator = _small(size_px=size_px, base_channels=2, max_channels=4, channels=4)
    scores = discriminator(torch.rand(4, 4, size_px, size_px) * 2 - 1, torch.arange(4))
    assert scores.shape == (4,)
    assert torch.isfinite(scores).all()


def test_activations_keep_their_variance_at_the_start() -> None:
    discriminator = _small(size_px=32, base_channels=32, max_channels=64)
    scores = discriminator(torch.randn(64, 3, 32, 32), torch.arange(64))
    assert 0.05 < scores.square().mean().sqrt() < 5


def test_a_block_is_the_sum_of_its_parts_with_the_variance_of_one() -> None:
    block, features = DiscriminatorBlock(3, 5), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        block.second.weight.zero_()
    straight = block.shortcut(blur(features, padding=1, stride=2))
    torch.testing.assert_close(block(features), straight * 0.5**0.5)


def test_the_score_of_a_class_is_a_projection_of_unit_size() -> None:
    """A direction of ones adds the mean of the summary, times the root of its width."""
    discriminator = _small(classes=2)
    images, index = torch.rand(4, 3, 16, 16), torch.arange(4)
    summaries = []
    discriminator.score.register_forward_hook(lambda module, inputs, output: summaries.append(inputs[0]))
    without = discriminator(images, index, torch.full((4,), -1))
    assert discriminator.of_class is not None
    with torch.no_grad():
        discriminator.of_class[1] = 1.0
    added = discriminator(images, index, torch.tensor([1, 1, 0, -1])) - without
    expected = summaries[0].mean(1) * summaries[0].shape[1] ** 0.5
    torch.testing.assert_close(
        added, torch.where(torch.tensor([True, True, False, False]), expected, 0.0), atol=1e-5, rtol=1e-5
    )


def test_the_blur_keeps_a_constant_and_removes_a_checkerboard() -> None:
    constant = blur(torch.ones(1, 2, 8, 8), padding=1, stride=2)
    torch.testing.assert_close(constant[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert constant.shape == (1, 2, 4, 4)
    checkerboard = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1.0).expand(1, 2, 8, 8)
    assert blur(checkerboard, padding=0).abs().max() < 1e-6


def test_minibatch_deviation_is_the_brute_force_one() -> None:
    features = torch.randn(8, 3, 4, 4)
    deviation = minibatch_deviation(features, torch.arange(8), 4)
    for start in (0, 4):
        expected = features[start : start + 4].std(0, correction=0).mean()
        torch.testing.assert_close(deviation[start : start + 4], expected.expand(4), rtol=1e-5, atol=1e-6)


def test_minibatch_deviation_of_equal_images_is_zero_with_a_finite_gradient() -> None:
    features = torch.ones(4, 2, 4, 4, requires_grad=True)
    deviation = minibatch_deviation(features, torch.arange(4), 4)
    deviation.sum().backward()
    assert deviation.max() < 1e-3
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_scores_do_not_depend_on_the_order_of_the_batch_or_on_ranks() -> None:
    discriminator = _small()
    images, index = torch.rand(16, 3, 16, 16), torch.arange(32, 48)
    whole = discriminator(images, index)
    order = torch.randperm(16)
    torch.testing.assert_close(discriminator(images[order], index[order]), whole[order], rtol=1e-5, atol=1e-6)
    ranks = torch.cat([discriminator(images[rows], index[rows]) for rows in torch.arange(16).split(8)])
    torch.testing.assert_close(ranks, whole, rtol=1e-5, atol=1e-6)
    # Other neighbours, another statistic: the groups are really used.
    swapped = index.clone()
    swapped[[0, 15]] = index[[15, 0]]
    assert (discriminator(images, swapped) - whole).abs().max() > 1e-5


def test_the_minibatch_deviation_of_an_order_is_the_same_to_the_bit() -> None:
    features, index, order = torch.randn(12, 3, 4, 4), torch.arange(12), torch.randperm(12)
    shuffled = minibatch_deviation(features[order], index[order], 4)
    assert torch.equal(shuffled, minibatch_deviation(features, index, 4)[order])


def test_without_groups_images_are_scored_alone() -> None:
    discriminator = _small(minibatch_group=1)
    images = torch.rand(5, 3, 16, 16)
    scores = discriminator(images, torch.arange(5))
    torch.testing.assert_close(discriminator(images[2:3], torch.zeros(1)), scores[2:3], rtol=1e-5, atol=1e-6)


def test_classes_start_neutral_and_learn_apart() -> None:
    discriminator = _small(classes=3)
    images, index = torch.rand(4, 3, 16, 16), torch.arange(4)
    classes = torch.tensor([0, 1, 2, -1])
    unknown = discriminator(images, index, torch.full((4,), -1))
    assert torch.equal(discriminator(images, index, classes), unknown)
    discriminator(images, index, classes).sum().backward()
    assert discriminator.of_class is not None
    assert discriminator.of_class.grad is not None
    assert (discriminator.of_class.grad.abs().sum(1) > 0).all()
    with torch.no_grad():
        discriminator.of_class.normal_()
    conditional = discriminator(images, index, classes)
    assert torch.equal(conditional[3], unknown[3])
    assert (conditional[:3] != unknown[:3]).all()
