"""Filters that follow a photo."""

from __future__ import annotations

import torch

from vq3dcli.editing.relief import (
    box_mean,
    fill_holes,
    guided_filter,
    local_range,
    median_filter,
    steepened,
    steps,
)


def test_box_mean_is_a_mean_and_cut_at_the_border() -> None:
    maps = torch.rand(2, 9, 13)
    means = box_mean(maps, 2)
    assert torch.allclose(means[:, 4, 6], maps[:, 2:7, 4:9].mean((1, 2)), atol=1e-6)
    assert torch.allclose(means[:, 0, 0], maps[:, :3, :3].mean((1, 2)), atol=1e-6)


def test_the_guided_filter_moves_a_blurred_edge_onto_the_photo_s() -> None:
    guide = torch.full((3, 64, 96), 0.2)
    guide[:, :, 50:] = 0.8
    coarse = torch.full((16, 24), 0.3)
    coarse[:, 13:] = 0.6  # half a texel off, at 52
    refined = guided_filter(guide, coarse, radius_px=3, epsilon=1e-4)
    assert refined.shape == (64, 96)
    assert (refined[32, 47] - refined[32, 53]).abs() > 0.2
    assert (refined[32, 47] - 0.3).abs() < 0.07 and (refined[32, 53] - 0.6).abs() < 0.07
    constant = guided_filter(torch.rand(3, 64, 96), torch.full((16, 24), 0.4), radius_px=3, epsilon=1e-4)
    assert (constant - 0.4).abs().max() < 1e-4


def test_local_range() -> None:
    low, high = local_range(torch.arange(10.0).expand(3, 10), 2)
    assert low[1].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert high[1].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_holes_are_filled_from_around_and_the_known_stays() -> None:
    values = torch.linspace(0.0, 1.0, 33).expand(3, 21, 33).clone()
    weight = torch.ones(21, 33)
    weight[6:15, 10:22] = 0.0
    broken = torch.where(weight > 0, values, torch.full_like(values, 77.0))
    filled = fill_holes(broken, weight)
    assert torch.equal(filled[:, weight > 0], values[:, weight > 0])
    assert (filled - values).abs().max() < 0.15
    assert fill_holes(broken, torch.zeros(21, 33)).abs().max() == 0.0
    several = fill_holes(torch.stack([broken, values]), torch.stack([weight, torch.ones_like(weight)]))
    assert torch.equal(several[0], filled) and torch.equal(several[1], values)


def test_a_blurred_step_becomes_steep_and_a_slope_stays() -> None:
    across = torch.arange(64.0).expand(40, 64)
    blurred = 0.2 + 0.4 * ((across - 28) / 8).clamp(0.0, 1.0)
    steep = steepened(blurred, 5, grow_px=1)
    assert steep.diff(dim=1).abs().max() > 2.5 * 0.05
    assert (steep[:, :26] - 0.2).abs().max() < 1e-6 and (steep[:, 38:] - 0.6).abs().max() < 1e-6
    # What is in front grows: the middle of the step belongs to it.
    assert (steep[:, 32] > 0.54).all()
    slope = across / 64
    assert torch.equal(steepened(slope, 5, grow_px=1), slope)
    assert float(steps(torch.full((40, 64), 0.3), 4)[0].max()) == 0.0


def test_a_median_leaves_out_specks_and_keeps_edges() -> None:
    values = torch.full((20, 30), 0.2)
    values[:, 15:] = 0.7
    speckled = values.clone()
    speckled[7, 5] = speckled[12, 22] = 1.0
    assert torch.equal(median_filter(speckled, 2), values)
