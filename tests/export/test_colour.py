"""The disparity colour map."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.export.colour import colour_map, colour_table, display_range


def luminance(rgb: torch.Tensor) -> torch.Tensor:
    """Relative luminance of sRGB bytes `[..., 3]`."""
    value = rgb.double() / 255.0
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)


def test_brighter_means_nearer() -> None:
    steps = luminance(colour_table()).diff()
    # Rounding to bytes may cost a step a hair of its rise, never its direction over two steps.
    assert float(steps.min()) > -2e-4
    assert bool((luminance(colour_table())[2:] > luminance(colour_table())[:-2]).all())
    assert float(luminance(colour_table())[0]) < 0.02
    assert float(luminance(colour_table())[-1]) > 0.8


def test_far_is_violet_and_near_is_yellow() -> None:
    dark, middle, bright = colour_table().double()[[25, 128, 240]]
    assert dark[2] > 1.5 * dark[1] and middle[0] > 1.5 * middle[1] and bright[2] < 0.8 * bright[:2].min()


def test_a_few_odd_pixels_do_not_take_the_range() -> None:
    s = torch.linspace(0.4, 0.6, 10_000)
    s[:50], s[-50:] = 0.0, 1.0
    low, high = display_range(s)
    assert 0.39 < low < 0.41 and 0.59 < high < 0.61


def test_shape_type_and_clamping() -> None:
    s = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")]).expand(2, 4, 6)
    coloured = colour_map(s)
    assert coloured.shape == (2, 3, 4, 6)
    assert coloured.dtype == torch.uint8
    assert torch.equal(coloured[..., 0], coloured[..., 1])
    assert torch.equal(coloured[..., 3], coloured[..., 4])
    assert torch.equal(coloured[..., 5], coloured[..., 1])


def test_a_fixed_range_gives_a_value_the_same_colour_in_every_frame() -> None:
    first, second = torch.rand(8, 8), torch.rand(8, 8)
    second[0, 0] = first[0, 0]
    low, high = display_range(first)
    assert torch.equal(colour_map(first, low, high)[:, 0, 0], colour_map(second, low, high)[:, 0, 0])


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_flat_map_still_has_a_range(value: float) -> None:
    low, high = display_range(torch.full((5, 7), value))
    assert 0.0 <= low < high <= 1.0


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="below"):
        colour_map(torch.zeros(2, 2), 0.5, 0.5)
