"""Binary PLY files of one element, `vertex`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vq3dcli.files import write_bytes

_TYPES = {"f4": "float", "u1": "uchar"}


def write_ply(path: Path, columns: Mapping[str, NDArray[np.generic]], comments: tuple[str, ...] = ()) -> None:
    """Write a little-endian PLY file atomically.

    Args:
        path: The file.
        columns: Properties of the vertices in order, float32 or uint8 `[N]` each.
        comments: Lines of plain ASCII for the header.
    """
    layout = [(name, values.dtype.newbyteorder("<")) for name, values in columns.items()]
    count = len(next(iter(columns.values())))
    table = np.empty(count, layout)
    for name, values in columns.items():
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    header += [f"element vertex {count}"]
    header += [f"property {_TYPES[kind.str[1:]]} {name}" for name, kind in layout]
    write_bytes(path, "\n".join([*header, "end_header", ""]).encode("ascii") + table.tobytes())
