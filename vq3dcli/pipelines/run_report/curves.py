"""Figures of a run's folder as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.export.charts import line_chart
from vq3dcli.export.page import Svg
from vq3dcli.sealed import json_value

Record = Mapping[str, Any]

# Curves whose early values dwarf the rest.
_LOG_SCALE = ("loss", "l1", "l2", "depth", "commitment", "codebook", "auxiliary", "gradient_norm")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`.

    Half a line that a crash left is passed over; a missing or unreadable file is empty.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json_value(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "images_seen" in record:
            records.append(record)
    return records


def curve_names(records: Sequence[Record]) -> list[str]:
    """Names of figures that are numbers in every record that has them, in the order in which they appear."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name != "images_seen" and _is_curve(name, records)]


def curve(name: str, records: Sequence[Record], title: str | None = None) -> Svg:
    """One figure over images seen, on a logarithmic axis if its early values dwarf the rest.

    Args:
        name: Its key in the records; gaps where it is missing.
    """
    x = [float(record["images_seen"]) for record in records]
    y = [math.nan if record.get(name) is None else float(record[name]) for record in records]
    return Svg(line_chart(title or name, x, y, x_label="images", log_y=name in _LOG_SCALE))


def _is_curve(name: str, records: Sequence[Record]) -> bool:
    values = [record.get(name) for record in records]
    return any(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )
