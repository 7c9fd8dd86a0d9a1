"""Reliefs: edges of the photo, steps, slopes, and a network's map at the scale of the NeRF."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.editing.refined import pinned, refined_disparity
from vq3dcli.editing.relief import fitted

STD_S = 0.145  # of s in a typical scene


def card_photo(height_px: int = 96, width_px: int = 128) -> Tensor:
    """A light card before a dark wall."""
    photo = torch.full((3, height_px, width_px), 40, dtype=torch.uint8)
    photo[:, height_px // 4 : 3 * height_px // 4, width_px // 4 : 3 * width_px // 4] = 200
    return photo


def test_a_step_at_an_edge_of_the_photo_stays_a_step() -> None:
    photo = card_photo()
    exact = torch.where(photo[0] > 100, 0.6, 0.2)
    blurred = torch.nn.functional.interpolate(exact[None, None], size=(24, 32), mode="area")[0, 0]
    s = refined_disparity(blurred, photo)
    # Flat to within 3 pixels of the edge on both sides, where the map had 4 pixels to each of its own.
    for near, far in ((s[48, 34:94], s[48, :28]), (s[26:70, 64], s[:20, 64])):
        assert (near - 0.6).abs().max() < 0.04
        assert (far - 0.2).abs().max() < 0.04


def test_a_step_is_made_steep_where_the_photo_hardly_shows_it() -> None:
    photo = torch.full((3, 192, 256), 100, dtype=torch.uint8)
    photo[:, :, 128:] = 110
    blurred = torch.sigmoid((torch.arange(256.0) - 127.5) / 2.0).expand(192, 256) * 0.4 + 0.2
    refined = refined_disparity(blurred, photo)
    assert refined[96].diff().max() > 1.7 * blurred[96].diff().max()
    assert refined[96].diff().min() > -0.01  # and nothing overshoots


def test_a_small_thing_keeps_its_depth() -> None:
    """A post of 6 pixels of 128, which a smoothed map would have made a dome."""
    photo = torch.full((3, 96, 128), 40, dtype=torch.uint8)
    photo[:, :, 61:67] = 200
    exact = torch.where(photo[0] > 100, 0.6, 0.2)
    coarse = torch.nn.functional.interpolate(exact[None, None], size=(72, 96), mode="area")[0, 0]
    s = refined_disparity(coarse, photo)
    assert s[10:-10, 62:66].min() > 0.5
    assert s[:, :56].max() < 0.22 and s[:, 72:].max() < 0.22


def test_a_slope_stays_a_slope() -> None:
    slope = torch.linspace(0.1, 0.7, 128).expand(96, 128)
    photo = (slope * 255).to(torch.uint8).expand(3, 96, 128)
    assert (refined_disparity(slope, photo) - slope).abs()[:, 6:-6].max() < 0.02


def test_a_thin_part_before_an_even_background_moves_with_its_thing() -> None:
    """A stalk above a fruit, which the map leaves with the wall, and a stain on the wall apart from both."""
    photo = torch.full((3, 96, 128), 230, dtype=torch.uint8)
    photo[0, 40:80, 40:90] = 200
    photo[1:, 40:80, 40:90] = 20
    photo[:, 36:40, 62:66] = torch.tensor([30, 120, 30], dtype=torch.uint8)[:, None, None]
    photo[:, 10:14, 62:66] = 100
    coarse = torch.full((96, 128), 0.2)
    coarse[40:80, 40:90] = 0.6
    s = refined_disparity(coarse, photo)
    assert (s[37:40, 63:65] > 0.55).all()
    assert (s[10:14, 62:66] < 0.25).all() and (s[36:39, 40:58] < 0.25).all()


def test_what_reaches_far_from_a_thing_is_left_whole() -> None:
    """A pole that stands on a box: no half of it may be torn off."""
    photo = torch.full((3, 96, 128), 230, dtype=torch.uint8)
    photo[:, 60:90, 40:90] = torch.tensor([200, 20, 20], dtype=torch.uint8)[:, None, None]
    photo[:, 40:60, 62:66] = torch.tensor([30, 120, 30], dtype=torch.uint8)[:, None, None]
    coarse = torch.full((96, 128), 0.2)
    coarse[60:90, 40:90] = 0.6
    assert (refined_disparity(coarse, photo)[40:58, 62:66] < 0.25).all()


def pictures(*, bordered: bool) -> list[Tensor]:
    """A noisy picture in a white mat on black, and between black bars; or sky over sea, and a thing before white."""
    noise = torch.randint(60, 160, (3, 96, 128), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    first, second = noise.clone(), noise.clone()
    if bordered:
        first[:] = 0
        first[:, 4:-4, 4:-4] = 250
        first[:, 9:-9, 9:-9] = noise[:, 9:-9, 9:-9]
        second[:, :8], second[:, -8:] = 0, 0
    else:
        first[:, :40], first[:, 40:] = 200, 90
        second[:] = 250
        second[:, 5:80, 30:100] = noise[:, 5:80, 30:100]
    return [first, second]


def test_a_printed_border_lies_in_one_plane() -> None:
    s = torch.rand(96, 128, generator=torch.Generator().manual_seed(4))
    mat, bars = (pinned(s, photo) for photo in pictures(bordered=True))
    border = torch.ones(96, 128, dtype=torch.bool)
    border[9:-9, 9:-9] = False
    for relief, flat in ((mat, border), (bars, torch.cat([torch.arange(8), torch.arange(88, 96)]))):
        assert torch.equal(relief[flat], s.median().expand_as(relief[flat]))
        assert torch.equal(relief[48, 64], s[48, 64]) and float(relief[30:66, 40:88].std()) > 0.2
    assert float(mat[48, 11] - s.median()) == pytest.approx(0.0, abs=0.02)  # it rises from there
    for photo in pictures(bordered=False):
        assert pinned(s, photo) is s


def test_a_teachers_map_is_fitted_to_the_nerf() -> None:
    near = torch.rand(40, 60, generator=torch.Generator().manual_seed(0))
    near = torch.nn.functional.interpolate(near[None, None, ::8, ::8], size=(40, 60), mode="bilinear")[0, 0]
    nerf_s = (0.5 * near + 0.1).clone()
    nerf_s[:10, :20] = 0.9  # a twelfth of it is wrong
    s = fitted(70.0 * near - 3.0, nerf_s, std_s=STD_S)
    within = (near > near.quantile(0.02)) & (near < near.quantile(0.98))
    assert (s - (0.5 * near + 0.1)).abs()[within].max() < 0.01
    # A NeRF that saw nothing, or the contrary, does not flatten or turn it.
    for blind in (torch.full((40, 60), 0.3), 0.6 - 0.5 * near):
        s = fitted(70.0 * near - 3.0, blind, std_s=STD_S)
        order = torch.stack([s[within], near[within]])
        assert torch.corrcoef(order)[0, 1] > 0.99
        assert s.std() > 0.4 * STD_S
