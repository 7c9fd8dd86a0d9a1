"""What all evaluations share: the shape of a result, the folder it is written to, and the page."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.data.images import encode_png
from vq3dcli.errors import OutputError
from vq3dcli.export.charts import number_text
from vq3dcli.export.page import Block, Code, Section, Table, Text, write_page
from vq3dcli.files import make_folder, write_bytes, write_json
from vq3dcli.weights_file import LoadedWeights

Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress of a part: called with its name, its total and its unit, yields what counts on."""

_CONDITIONS_TEXT = (
    "Figures compare only where all of this is equal: protocol, counts, hashes of weights and features, resize and "
    "quantisation, seeds and versions. It lies beside this page as JSON."
)


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how it is shown.

    Attributes:
        protocol: Name of the definition of the figures.
        count: Items that were measured.
        metrics: Figures by name; `conditions` has what they depend on.
        table: Rows for a reader.
        title: Of the page.
        subtitle: Of the page.
        sections: Of the page, by the path of the sheet.
        sheet: Contact sheet uint8 `[3, H, W]`.
        seed: Of the run.
        weights: That were measured.
        head: What the JSON file says before the metrics.
    """

    protocol: str
    count: int
    metrics: Mapping[str, Any]
    table: Sequence[Sequence[object]]
    title: str
    subtitle: str
    sections: Callable[[Path], Sequence[Section]]
    sheet: Tensor | None = field(default=None, repr=False)
    seed: int | None = None
    weights: LoadedWeights | None = None
    head: Mapping[str, Any] = field(default_factory=dict)


def text_tables(rows: Sequence[Sequence[object]]) -> list[Table]:
    """Rows of any values as tables of the page: an empty row begins a new one, whose next row is its heading."""
    parts: list[list[list[str]]] = [[]]
    for row in rows:
        if row:
            parts[-1].append([cell_text(value) for value in row])
        else:
            parts.append([])
    return [Table(part) for part in parts if part]


def cell_text(value: object) -> str:
    """A cell: numbers short, nothing as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return number_text(value) if isinstance(value, float) else str(value)


def versions(**more: str) -> dict[str, str]:
    """Versions of what figures depend on."""
    base = {"vq3d": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**base, "numpy": np.__version__, **more}


def evaluation_folder(folder: Path | None, name: str, *pictures: str) -> None:
    """Make the folder of `write_evaluation`, before the work; None for no folder.

    Raises:
        OutputError: It cannot be made, or holds what the page or the pictures would replace, and no `NAME.json`.
        StorageError: The disk failed.
    """
    if folder is None:
        return
    make_folder(folder)
    for path in (folder / picture for picture in (f"{name}.html", *pictures)):
        if path.exists() and not (folder / f"{name}.json").exists():
            raise OutputError(f"vq3d did not make what it would replace ({path})", remedy="another folder")


def write_evaluation(
    folder: Path, name: str, result: Evaluation, metrics: Mapping[str, Any], *, picture: str | None = None
) -> list[Path]:
    """Write `NAME.json`, the page `NAME.html` and the sheet, and return their paths.

    `metrics` are the result's in plain values, `picture` is the file name of the sheet, `NAME.png` by default.

    Raises:
        OutputError, StorageError: They cannot be written.
    """
    written = [folder / f"{name}.json", folder / f"{name}.html"]
    sheet = folder / (picture or f"{name}.png")
    if result.sheet is not None:
        write_bytes(sheet, encode_png(result.sheet))
        written.append(sheet)
    write_json(written[0], {**result.head, **metrics})
    blocks: list[Block] = [Text(_CONDITIONS_TEXT), Code(json.dumps(metrics["conditions"], indent=2, default=str))]
    sections = [*result.sections(sheet), Section("Conditions", blocks)]
    write_page(written[1], result.title, result.subtitle, sections)
    return written
