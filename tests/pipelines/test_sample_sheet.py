"""The contact sheet of samples: where classes begin, and how many are shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.pipelines.sampling.sample import SampleSheet, even_columns

SIZE, PITCH_X, PITCH_Y = 24, 24 + 2, 14 + 24 + 2


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
