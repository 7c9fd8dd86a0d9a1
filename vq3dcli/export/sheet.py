"""Contact sheets: images in a grid, with small gaps and optional labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND = 24
_LABEL_HEIGHT_PX = 14
_FONT_PX = _LABEL_HEIGHT_PX - 4
_LABEL_GREY = 220
# More would make a sheet that no viewer opens.
_MOST_SAMPLES = 96
_MOST_COLUMNS = 4


def grid(
    images: Sequence[Tensor] | Tensor,
    columns: int | None = None,
    gap_px: int = 2,
    *,
    labels: Sequence[str] | None = None,
) -> Tensor:
    """Lay images out row by row on a dark ground.

    Args:
        images: uint8 `[3, H, W]` each, or `[N, 3, H, W]`; sizes may differ, the largest sets the cell and smaller
            ones are centred in it.
        columns: Images a row; the default is about as many columns as rows.
        gap_px: Space between cells and around the sheet, at least 0.
        labels: One text an image, written above it in as many lines as its width takes.

    Returns:
        uint8 `[3, H_sheet, W_sheet]` on the CPU.

    Raises `ValueError`: no images, images that are not uint8 `[3, H, W]`, or a different number of labels.
    """
    cells = [image.detach().cpu() for image in images]
    if not cells:
        raise ValueError("a contact sheet needs at least one image")
    if any(cell.ndim != 3 or cell.shape[0] != 3 or cell.dtype != torch.uint8 for cell in cells):
        raise ValueError("images must be uint8 [3, H, W]")
    if labels is not None and len(labels) != len(cells):
        raise ValueError(f"{len(labels)} labels for {len(cells)} images")
    if columns is None:
        columns = math.ceil(math.sqrt(len(cells)))
    columns = max(1, min(columns, len(cells)))
    rows = math.ceil(len(cells) / columns)
    height_px = max(cell.shape[1] for cell in cells)
    width_px = max(cell.shape[2] for cell in cells)
    lines = [] if labels is None else [label_lines(text, width_px) for text in labels]
    # Above each row, as many lines as the longest of its labels takes.
    strips_px = [
        _LABEL_HEIGHT_PX * max(map(len, lines[row * columns : (row + 1) * columns]), default=0) for row in range(rows)
    ]
    tops = [gap_px + sum(strips_px[:row]) + row * (height_px + gap_px) for row in range(rows + 1)]
    pitch_x = width_px + gap_px
    sheet = torch.full((3, tops[-1], gap_px + columns * pitch_x), BACKGROUND, dtype=torch.uint8)
    for position, cell in enumerate(cells):
        row, column = divmod(position, columns)
        top, left = tops[row], gap_px + column * pitch_x
        for number, line in enumerate(lines[position] if lines else []):
            start = top + number * _LABEL_HEIGHT_PX
            sheet[:, start : start + _LABEL_HEIGHT_PX, left : left + width_px] = label_strip(line, width_px)
        top += strips_px[row] + (height_px - cell.shape[1]) // 2
        left += (width_px - cell.shape[2]) // 2
        sheet[:, top : top + cell.shape[1], left : left + cell.shape[2]] = cell
    return sheet


class SampleSheet:
    """A contact sheet of classes: each class begins a row of its own; classes of one sample stand side by side.

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


def label_lines(text: str, width_px: int) -> list[str]:
    """A text in lines that fit a width, broken between words where they fit; at least one line."""
    font = ImageFont.load_default(size=_FONT_PX)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) < width_px:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) >= width_px:
                lines.append("")
            lines[-1] += character
    return lines


def label_strip(text: str, width_px: int) -> Tensor:
    """One line of light text on the dark ground, uint8 `[3, 14, width_px]`."""
    canvas = Image.new("L", (width_px, _LABEL_HEIGHT_PX), BACKGROUND)
    font = ImageFont.load_default(size=_FONT_PX)
    ImageDraw.Draw(canvas).text((1, _LABEL_HEIGHT_PX // 2), text, fill=_LABEL_GREY, font=font, anchor="lm")
    return torch.from_numpy(np.array(canvas))[None].expand(3, -1, -1)
