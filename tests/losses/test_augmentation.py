"""Augmentation: identity, gradients, counters, ranges, and the controller's rule."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.losses.augmentation import (
    LARGEST_ADAPTIVE_PROBABILITY,
    AdaptiveState,
    _cut_out,
    _recolour,
    _translate,
    augment,
    update_probability,
)


def test_probability_zero_is_the_identity() -> None:
    images = torch.rand(4, 4, 16, 16)
    assert augment(images, torch.arange(4), 0.0, seed=0, purpose="x") is images


def test_gradients_flow_and_match_finite_differences() -> None:
    images = torch.rand(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, torch.arange(2), 1.0, seed=3, purpose="x"), images)


def test_an_image_is_changed_alike_in_any_batch() -> None:
    images, index = torch.rand(8, 3, 16, 16), torch.arange(100, 108)
    whole = augment(images, index, 0.7, seed=0, purpose="x")
    order = torch.randperm(8)
    assert torch.equal(augment(images[order], index[order], 0.7, seed=0, purpose="x"), whole[order])
    assert torch.equal(augment(images[5:6], index[5:6], 0.7, seed=0, purpose="x"), whole[5:6])
    assert not torch.equal(augment(images, index, 0.7, seed=0, purpose="y"), whole)
    assert not torch.equal(augment(images, index, 0.7, seed=1, purpose="x"), whole)


def test_disparity_is_moved_with_the_colours_but_never_coloured() -> None:
    grey = torch.ones(200, 1, 16, 16)
    s = augment(torch.cat([grey * 0.3, grey * 0.3, grey * 0.3, grey], 1), torch.arange(200), 1.0, seed=0, purpose="x")[
        :, 3
    ]
    assert set(s.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("probability", [0.2, 0.6])
def test_each_change_is_as_frequent_as_asked(probability: float) -> None:
    # On a constant, saturation and contrast do nothing: what is left is brightness, translation and cutout.
    images = torch.full((4000, 3, 16, 16), 0.25)
    changed = augment(images, torch.arange(4000), probability, seed=0, purpose="x")
    untouched = (changed - images).abs().flatten(1).max(1).values < 1e-6
    # A translation by (0, 0), one in 25, cannot be seen.
    expected = (1 - probability) ** 2 * (1 - probability * 24 / 25)
    assert untouched.float().mean().item() == pytest.approx(expected, abs=0.03)


def test_colours_change_within_their_ranges() -> None:
    """Each change alone, at both ends: brightness is added, saturation is about grey, contrast about the mean."""
    rgb = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    grey, mean = rgb.mean(1, keepdim=True), rgb.mean()
    for change, low, high in (
        (0, rgb - 0.5, rgb + 0.5),
        (1, grey.expand_as(rgb), 2.0 * rgb - grey),
        (2, mean + 0.5 * (rgb - mean), mean + 1.5 * (rgb - mean)),
    ):
        for amount, expected in ((0.0, low), (1.0, high)):
            changed = _recolour(rgb, torch.arange(3)[None] == change, torch.full((1, 3), amount))
            torch.testing.assert_close(changed, expected)


def test_translation_moves_by_whole_pixels_and_fills_with_zero() -> None:
    images = torch.rand(64, 3, 16, 16) + 0.5
    amount = torch.rand(64, 2)
    moved = _translate(images, torch.ones(64, dtype=torch.bool), amount)
    for image, result, (down, right) in zip(images, moved, ((amount * 5).long() - 2).tolist(), strict=True):
        expected = torch.zeros(3, 20, 20)
        expected[:, 2 + down : 18 + down, 2 + right : 18 + right] = image
        assert torch.equal(result, expected[:, 2:18, 2:18])


def test_a_cutout_is_half_as_wide_or_less() -> None:
    left = _cut_out(torch.ones(500, 1, 16, 16), torch.ones(500, dtype=torch.bool), torch.rand(500, 2))
    hidden = 256 - left.sum((1, 2, 3))
    assert hidden.max() == 64
    assert hidden.min() == 16


def test_the_controller_raises_p_while_the_discriminator_overfits_and_lowers_it_after() -> None:
    state = AdaptiveState()
    for _ in range(100):
        state = update_probability(state, 0.9, target=0.6, images=16, images_to_full=16 * 1000)
    assert state.sign == pytest.approx(0.9, abs=1e-6)
    # Three steps until the running mean passes the target: 0.225, 0.394, 0.520, 0.615.
    assert state.probability == pytest.approx((100 - 3) / 1000)
    for _ in range(1000):
        state = update_probability(state, 0.1, target=0.6, images=16, images_to_full=16 * 1000)
    assert state.probability == 0.0
    for _ in range(2000):
        state = update_probability(state, 1.0, target=0.6, images=16, images_to_full=16 * 1000)
    assert state.probability == LARGEST_ADAPTIVE_PROBABILITY


def test_at_the_target_p_stays() -> None:
    assert (
        update_probability(AdaptiveState(0.3, 0.6), 0.6, target=0.6, images=16, images_to_full=100.0).probability == 0.3
    )
