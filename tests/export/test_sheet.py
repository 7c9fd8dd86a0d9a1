"""Contact sheets."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.export.sheet import BACKGROUND, grid, label_lines


def test_layout() -> None:
    images = torch.stack([torch.full((3, 4, 5), 10 * value, dtype=torch.uint8) for value in range(1, 6)])
    sheet = grid(images, columns=3, gap_px=2)
    assert sheet.shape == (3, 2 + 2 * (4 + 2), 2 + 3 * (5 + 2))
    for position in range(5):
        row, column = divmod(position, 3)
        top, left = 2 + row * 6, 2 + column * 7
        assert bool((sheet[:, top : top + 4, left : left + 5] == 10 * (position + 1)).all())
    gaps = sheet.clone()
    gaps[gaps == BACKGROUND] = 0
    assert int(gaps.count_nonzero()) == 5 * 3 * 4 * 5


def test_no_gap_is_plain_tiling() -> None:
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    whole = torch.cat([torch.cat(list(images[:2]), 2), torch.cat(list(images[2:]), 2)], 1)
    assert torch.equal(grid(images, columns=2, gap_px=0), whole)


def test_labels_sit_above_their_image() -> None:
    images = torch.zeros(2, 3, 30, 60, dtype=torch.uint8)
    plain, labelled = grid(images, 2), grid(images, 2, labels=["input", "novel view +10\u00b0, much too long for it"])
    assert labelled.shape[1] > plain.shape[1]
    assert labelled.shape[2] == plain.shape[2]
    strip = labelled[:, 2 : labelled.shape[1] - 32]
    assert int((strip[:, :, 2:62] > 120).sum()) > 20
    assert int((strip[:, :, 64:124] > 120).sum()) > 20
    assert torch.equal(labelled[:, -32:], plain[:, -32:])


def test_labels_are_never_cut() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=10)
    for text in ("input", "novel view +10\u00b0, much too long for it", "Rhamphorhynchoidea", "a  b", ""):
        for width_px in (16, 40, 300):
            lines = label_lines(text, width_px)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
            assert all(font.getlength(line) < width_px for line in lines)
    assert label_lines("novel view", 300) == ["novel view"]
    assert label_lines("novel view", 40) == ["novel", "view"]
    images = torch.zeros(2, 3, 30, 40, dtype=torch.uint8)
    sheet = grid(images, 2, labels=["input", "novel view"])
    assert sheet.shape[1] == grid(images, 2).shape[1] + 2 * 14
    strip = sheet[0, 2:30, 44:84]
    assert int((strip[:14] > 120).sum()) > 20
    assert int((strip[14:] > 120).sum()) > 20


def test_images_of_different_sizes_are_centred() -> None:
    large, small = torch.full((3, 10, 8), 200, dtype=torch.uint8), torch.full((3, 4, 2), 100, dtype=torch.uint8)
    sheet = grid([large, small], columns=2, gap_px=0)
    assert sheet.shape == (3, 10, 16)
    assert bool((sheet[:, 3:7, 11:13] == 100).all())
    assert int((sheet == 100).sum()) == 3 * 4 * 2


def test_wrong_arguments_are_refused() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one"):
        grid([])
    with pytest.raises(ValueError, match="uint8"):
        grid([image.float()])
    with pytest.raises(ValueError, match="labels"):
        grid([image], labels=["a", "b"])
