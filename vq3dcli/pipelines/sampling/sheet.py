"""The contact sheet of samples.

Legend: S side of a picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vq3dcli.export.sheet import BACKGROUND, grid

# More would make a sheet that no viewer opens.
_MOST_SAMPLES = 96
_MOST_COLUMNS = 4


class SampleSheet:
    """The contact sheet: each class begins a row of its own; classes of one sample stand side by side.

    It shows as many classes, in their order, as it holds, and as many of the `count` samples of each.
    """

    def __init__(self, classes: Iterable[int], count: int) -> None:
        chosen = list(dict.fromkeys(classes))
        self._each = min(count, max(_MOST_SAMPLES // len(chosen), 1))
        self._rows: dict[int, list[tuple[Tensor, Tensor, str]]] = {
            index: [] for index in chosen[: _MOST_SAMPLES // self._each]
        }

    def shows(self, class_index: int, number: int) -> bool:
        """Whether it has a place for a sample of a class."""
        return class_index in self._rows and number < self._each

    def add(self, class_index: int, label: str, rgb: Tensor, disparity: Tensor) -> None:
        """Take the next picture of a class and its disparity in colour, uint8 `[3, S, S]`."""
        if self.shows(class_index, len(self._rows.get(class_index, ()))):
            self._rows[class_index].append((rgb, disparity, label))

    def drawn(self) -> Tensor:
        """The sheet, uint8 `[3, H, W]`: pictures, each with its disparity on its right."""
        rows: list[Sequence[tuple[Tensor, Tensor, str]]] = [row for row in self._rows.values() if row]
        if self._each == 1:
            rows = [[sample for row in rows for sample in row]]
        columns = even_columns(max(map(len, rows)))
        tiles: list[Tensor] = []
        labels: list[str] = []
        for position, row in enumerate(rows):
            for rgb, disparity, label in row:
                tiles += [rgb, disparity]
                labels += [label, ""]
            missing = 0 if position == len(rows) - 1 else 2 * (-len(row) % columns)
            tiles += [torch.full((3, 1, 1), BACKGROUND, dtype=torch.uint8)] * missing
            labels += [""] * missing
        return grid(tiles, columns=2 * columns, labels=labels if any(labels) else None)


def even_columns(count: int) -> int:
    """Columns for so many samples of a class: at most four, and its rows about equally long."""
    return math.ceil(count / math.ceil(count / _MOST_COLUMNS))
