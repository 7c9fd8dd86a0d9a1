"""Labels keep a map's order and range in 16 bits, and say what is wrong with it."""

from __future__ import annotations

import math

import pytest
import torch

from vq3dcli.data_tools.depth.models import to_disparity
from vq3dcli.data_tools.depth.quality import CLIPPED, CONSTANT, NOISY, NOT_FINITE, make_label


def scene(height: int = 64, width: int = 64) -> torch.Tensor:
    """A ground that recedes, with a ball on it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    ball = 1 - ((y - 0.5) * 2) ** 2 - x**2
    return torch.where(ball > 0.7, 1.5 + ball, y)


def test_sixteen_bits_keep_the_map():
    values = 3.0 * scene() - 1.0
    label = make_label(values, 64)
    assert label.flags == []
    back = label.lo + (label.hi - label.lo) * label.levels.double() / 65535
    assert (back - values).abs().max() <= (label.hi - label.lo) / 65535
    assert (label.levels.min(), label.levels.max()) == (0, 65535)


@pytest.mark.parametrize(("shape", "side", "expected"), [((64, 64), 16, 16), ((64, 48), 128, 48), ((10, 10), 128, 10)])
def test_labels_are_squares_of_at_most_the_size(shape, side, expected):
    assert make_label(scene(*shape), side).levels.shape == (expected, expected)


def test_a_reduced_map_has_only_values_of_the_map():
    values = scene()
    label = make_label(values, 16)
    back = label.lo + (label.hi - label.lo) * label.levels.double() / 65535
    assert (back[:, :, None] - values.double().flatten()).abs().min(-1).values.max() < 1e-4


def test_far_outliers_do_not_use_up_the_levels():
    values = scene()
    values[0, 0], values[0, 1] = 1000.0, -1000.0
    label = make_label(values, 64)
    assert -10 < label.lo < label.hi < 10
    assert label.levels[0, :2].tolist() == [65535, 0]


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        (torch.full((32, 32), 7.0), [CONSTANT]),
        (torch.zeros(32, 32), [CONSTANT]),
        (7.0 + 1e-5 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), [CONSTANT]),
        (7.0 + 0.03 * scene(), [CONSTANT]),  # a deviation of a thousandth: what bfloat16 makes of a constant
        (7.0 + scene(), []),
        (scene().clamp(min=0.95), [CLIPPED]),
        (scene().clamp(max=0.8), [CLIPPED]),
        (torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), [NOISY]),
        (torch.full((32, 32), math.nan), [CONSTANT, NOT_FINITE]),
        (scene().where(scene() > 0.1, math.inf), [NOT_FINITE]),
        (scene().where(scene() > 0.4, 0.4), []),  # a sky
    ],
)
def test_what_is_wrong_is_named(values, flags):
    label = make_label(values, 64)
    assert label.flags == flags
    assert math.isfinite(label.lo)
    assert math.isfinite(label.hi)


def test_depth_becomes_disparity():
    # What is nearer than a fiftieth of the median, 2, is taken to be there.
    depth = torch.tensor([[[0.0, 0.01, 2.0, 4.0, math.inf]]])
    assert torch.allclose(to_disparity(depth, "depth"), torch.tensor([25.0, 25.0, 0.5, 0.25, 0.0]))
    assert to_disparity(depth, "disparity") is depth
