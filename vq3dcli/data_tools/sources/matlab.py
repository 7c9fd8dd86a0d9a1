"""MATLAB files of version 5, read by scipy after their checksums: its reader can crash on damaged ones."""

from __future__ import annotations

import io
import zlib
from typing import Any

from vq3dcli.weights.third_party import import_package

_HEADER_BYTES = 128
_COMPRESSED = 15  # the type of an element that is a zlib stream


def load_mat(data: bytes) -> dict[str, Any]:
    """The variables of a file by name.

    Raises `UnavailableError`: scipy is missing; or an error of almost any type, if the file is damaged.
    """
    scipy_io = import_package("scipy.io", "a MATLAB file", "pip install 'vq3d[imagenet]'")
    _check_elements(data)
    variables: dict[str, Any] = scipy_io.loadmat(io.BytesIO(data))
    return variables


def _check_elements(data: bytes) -> None:
    """Raise `ValueError` or `zlib.error` unless the elements fill the file and compressed ones have their checksum."""
    order: Any = {b"IM": "little", b"MI": "big"}.get(data[126:128])
    if order is None:
        raise ValueError("not a MATLAB file of version 5")
    at = _HEADER_BYTES
    while at < len(data):
        kind, size = (int.from_bytes(data[at + i : at + i + 4], order) for i in (0, 4))
        element = data[at + 8 : at + 8 + size]
        if len(element) < size or size == 0:
            raise ValueError(f"cut at byte {len(data)}")
        if kind == _COMPRESSED:
            zlib.decompress(element)
        at += 8 + size
