"""What the pages of all evaluations have in common: the conditions of the figures, tables, and the page itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.errors import OutputError
from vq3dcli.export.chart import number_text
from vq3dcli.export.page import Block, Code, Section, Table, Text, write_page
from vq3dcli.files import make_folder, write_json

_CONDITIONS_TEXT = (
    "Figures compare only where all of this is equal: protocol, counts, hashes of weights and features, resize and "
    "quantisation, seeds and versions. It lies beside this page as JSON."
)


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
    if isinstance(value, float):
        return number_text(value)
    return str(value)


def evaluation_folder(folder: Path, name: str, *pictures: str) -> None:
    """Make the folder of `write_evaluation`, before the work.

    Raises:
        OutputError: It cannot be made, or holds what the page or the pictures would replace, and no `NAME.json`.
        StorageError: The disk failed.
    """
    make_folder(folder)
    for path in (folder / picture for picture in (f"{name}.html", *pictures)):
        if path.exists() and not (folder / f"{name}.json").exists():
            raise OutputError(f"vq3d did not make what it would replace ({path})", remedy="another folder")


def write_evaluation(
    folder: Path,
    name: str,
    *,
    title: str,
    subtitle: str,
    record: Mapping[str, Any],
    conditions: Mapping[str, Any],
    sections: Sequence[Section],
) -> list[Path]:
    """Write `NAME.json` and the page `NAME.html`, and return their paths.

    Args:
        folder: Where.
        name: Of both files.
        title: Of the page.
        subtitle: Of the page.
        record: What the JSON file holds; conditions included, plain values.
        conditions: What the figures depend on, shown last.
        sections: What the page shows before that.

    Raises:
        OutputError, StorageError: They cannot be written.
    """
    written = [folder / f"{name}.json", folder / f"{name}.html"]
    write_json(written[0], dict(record))
    blocks: list[Block] = [Text(_CONDITIONS_TEXT), Code(json.dumps(conditions, indent=2, default=str))]
    write_page(written[1], title, subtitle, [*sections, Section("Conditions", blocks)])
    return written
