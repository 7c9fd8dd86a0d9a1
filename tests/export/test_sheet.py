"""Contact sheets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.export.sheet import BACKGROUND, SampleSheet, even_columns, grid, label_lines

SIZE, PITCH_X, PITCH_Y = 24, 24 + 2, 14 + 24 + 2


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


def laid_out(classes: int, count: int) -> list[list[int]]:
    """The class of each picture on a sheet, row by row; -1 where there is none."""
    sheet = SampleSheet(range(classes), count)
    for class_index in range(classes):
        for _ in range(count):
            picture = torch.full((3, SIZE, SIZE), 100 + class_index, dtype=torch.uint8)
            sheet.add(class_index, str(class_index), picture, torch.full_like(picture, 255))
    return read(sheet.drawn())


def read(drawn: Tensor) -> list[list[int]]:
    centres = drawn[0, 2 + 14 + SIZE // 2 :: PITCH_Y, 2 + SIZE // 2 :: PITCH_X].int()
    assert ((centres[:, 0::2] >= 100) == (centres[:, 1::2] == 255)).all()  # its disparity on the right of each
    pictures = centres[:, 0::2]
    return torch.where(pictures >= 100, pictures - 100, -1).tolist()


@pytest.mark.parametrize("count", range(2, 14))
@pytest.mark.parametrize("classes", [1, 2, 3, 12])
def test_each_class_begins_a_row_of_its_own(classes: int, count: int) -> None:
    rows = laid_out(classes, count)
    assert all(len(set(row) - {-1}) == 1 for row in rows)
    assert all(len(row) <= 4 for row in rows)
    shown = min(count, 96 // classes)
    for class_index in range(classes):
        assert sum(row.count(class_index) for row in rows) == shown
    assert [next(iter(set(row) - {-1})) for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize(("classes", "shape"), [(1, (1, 1)), (3, (1, 3)), (5, (2, 3)), (12, (3, 4)), (130, (24, 4))])
def test_classes_of_one_sample_stand_side_by_side(classes: int, shape: tuple[int, int]) -> None:
    rows = laid_out(classes, 1)
    assert (len(rows), len(rows[0])) == shape
    places = [index for row in rows for index in row]
    assert places[: min(classes, 96)] == list(range(min(classes, 96)))
    assert set(places[min(classes, 96) :]) <= {-1}


def test_many_samples_of_few_classes_show_some_of_each() -> None:
    rows = laid_out(3, 50)
    assert [sum(row.count(index) for row in rows) for index in range(3)] == [32, 32, 32]


def test_rows_of_a_class_are_about_equally_long() -> None:
    assert [even_columns(count) for count in range(1, 10)] == [1, 2, 3, 4, 3, 3, 4, 4, 3]


def test_samples_without_a_class_have_no_strip_for_names() -> None:
    sheet = SampleSheet([-1], 2)
    for _ in range(2):
        picture = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        sheet.add(-1, "", picture, picture)
    assert sheet.drawn().shape == (3, 2 + SIZE + 2, 2 + 4 * PITCH_X)


def test_the_name_of_a_sample_stands_above_its_picture() -> None:
    sheet = SampleSheet([3], 2)
    for _ in range(2):
        picture = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        sheet.add(3, "ant", picture, picture)
    strips = sheet.drawn()[0, 2 : 2 + 14, 2:].unfold(1, SIZE, PITCH_X)
    bright = (strips > 120).sum((0, 2))
    assert [count > 0 for count in bright.tolist()] == [True, False, True, False]
