"""What all evaluations share: the shape of a result, the folder it is written to, and the page."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.data.images import encode_png
from vq3dcli.errors import OutputError
from vq3dcli.export.page import Html, Section, code, media, paragraph, row, tables, write_page
from vq3dcli.files import make_folder, write_bytes, write_json
from vq3dcli.weights_file import LoadedWeights

_CONDITIONS_TEXT = (
    "Figures compare only where all of this is equal: protocol, counts, hashes of weights and features, resize and "
    "quantisation, seeds and versions. It lies beside this page as JSON."
)


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how it is shown.

    `metrics` are figures by name, and under `conditions` what they depend on. The page shows `texts`, the rows of
    `table`, `charts` (SVG), further sections, and the sheet, uint8 `[3, H, W]`, with its text.
    """

    protocol: str
    count: int
    metrics: Mapping[str, Any]
    table: Sequence[Sequence[object]]
    title: str
    subtitle: str
    texts: Sequence[str] = ()
    charts: Sequence[Html] = ()
    sections: Sequence[Section] = ()
    sheet: Tensor | None = field(default=None, repr=False)
    sheet_text: str = ""
    seed: int | None = None
    weights: LoadedWeights | None = None


def versions(**more: str) -> dict[str, str]:
    """Versions of what figures depend on."""
    base = {"vq3d": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**base, "numpy": np.__version__, **more}


def evaluation_folder(folder: Path | None, name: str, *pictures: str) -> None:
    """Make the folder of `write_evaluation`, before the work; None for no folder.

    Raises `OutputError`: it cannot be made, or holds what the page or the pictures would replace, and no `NAME.json`.
    """
    if folder is None:
        return
    make_folder(folder)
    for path in (folder / picture for picture in (f"{name}.html", *pictures)):
        if path.exists() and not (folder / f"{name}.json").exists():
            raise OutputError(f"vq3d did not make what it would replace ({path})", remedy="another folder")


def write_evaluation(
    folder: Path, name: str, result: Evaluation, metrics: Mapping[str, Any], picture: str
) -> list[Path]:
    """Write `NAME.json`, the page `NAME.html` and the sheet `picture`, and return their paths.

    `metrics` are the result's in plain values.
    """
    written = [folder / f"{name}.json", folder / f"{name}.html"]
    charts = [row(result.charts)] if result.charts else []
    sections = [
        Section("Figures", [*map(paragraph, result.texts), *tables(result.table), *charts]),
        *result.sections,
    ]
    if result.sheet is not None:
        written.append(folder / picture)
        write_bytes(written[-1], encode_png(result.sheet))
        sections.append(Section("Pictures", [paragraph(result.sheet_text), media(written[-1], name, width_px=1040)]))
    conditions = json.dumps(metrics["conditions"], indent=2, default=str)
    sections.append(Section("Conditions", [paragraph(_CONDITIONS_TEXT), code(conditions)]))
    head = {"protocol": result.protocol, "count": result.count, "seed": result.seed}
    head["weights"] = None if result.weights is None else result.weights.sha256
    write_json(written[0], {**head, **metrics})
    write_page(written[1], result.title, result.subtitle, sections)
    return written
