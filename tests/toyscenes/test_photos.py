"""Photos on surfaces: mirrored tiling, halved sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.toyscenes.photos import SIDE_PX, PhotoBank, paint_photo


def patch_of(count: int, *, photo: int = 0, frequency: float = 1.0, gain: float = 1.0) -> Tensor:
    return torch.tensor([photo, frequency, 0.0, 0.0, 1.0, 0.0, gain, gain, gain]).expand(count, -1)


def ramp() -> PhotoBank:
    """Red grows by 1 a column, green by 1 a row; the second photo is grey."""
    level = torch.arange(SIDE_PX, dtype=torch.uint8)
    red = level.expand(SIDE_PX, SIDE_PX)
    photo = torch.stack([red, red.T, torch.full_like(red, 7)])
    return PhotoBank(torch.stack([photo, torch.full_like(photo, 51)]))


def paint(bank: PhotoBank, u: Tensor, v: Tensor, width: float = 1e-4, **options: float) -> Tensor:
    colours = paint_photo(bank, patch_of(len(u), **options), u, v, torch.full_like(u, width))  # type: ignore[arg-type]
    return torch.stack(colours) * 255.0


def test_places_between_texels_are_interpolated_and_tiles_mirrored() -> None:
    u = torch.linspace(0.01, 0.99, 50)
    v = torch.linspace(0.9, 0.1, 50)
    bank = ramp()
    expected = torch.stack([u * SIDE_PX - 0.5, v * SIDE_PX - 0.5, torch.full_like(u, 7.0)])
    torch.testing.assert_close(paint(bank, u, v), expected, atol=1e-3, rtol=0.0)
    for mirrored_u, mirrored_v in ((-u, v), (2.0 - u, -v), (u + 2.0, v - 4.0)):
        torch.testing.assert_close(paint(bank, mirrored_u, mirrored_v), expected, atol=1e-2, rtol=0.0)
    torch.testing.assert_close(
        paint(bank, 4.0 * u, 4.0 * v, frequency=0.25, gain=0.5), 0.5 * expected, atol=1e-2, rtol=0.0
    )


def test_wide_rays_see_means() -> None:
    bank = ramp()
    u = torch.linspace(0.1, 0.9, 33)
    for width in (1.5 / SIDE_PX, 6.0 / SIDE_PX, 0.5):
        found = paint(bank, u, u, width)
        assert (found[0] - (u * SIDE_PX - 0.5)).abs().max() < 1.0  # halving rounds
    noise = PhotoBank(torch.randint(0, 256, (1, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8))
    assert paint(noise, u, u, 0.5).std() < 0.1 * paint(noise, u, u).std()
    torch.testing.assert_close(paint(bank, u, u, photo=1), torch.full((3, 33), 51.0))
    torch.testing.assert_close(bank.mean[1], torch.full((3,), 0.2))


def test_banks_are_named_by_their_photos() -> None:
    photos = torch.zeros(2, 3, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    assert PhotoBank(photos).sha256 == PhotoBank(photos.clone()).sha256
    assert PhotoBank(photos + 1).sha256 != PhotoBank(photos).sha256
    for wrong in (photos[:0], photos.float(), photos[..., 1:]):
        with pytest.raises(ValueError, match="photos are"):
            PhotoBank(wrong)
