"""The fast way to decode a JPEG: libjpeg-turbo through `simplejpeg`, without Pillow between.

It takes what it is sure to decode to the pixels that Pillow would give, bit for bit (`benchmarks/decode.py` counts
them), and leaves the rest to Pillow: four components, other precisions, anything that libjpeg warns about. So no file
has another outcome because this package is installed.

Markers are those of ITU-T T.81, table B.1.
"""

from __future__ import annotations

import functools
import importlib
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_START = b"\xff\xd8\xff"
_BASELINE_TO_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
# Of all start-of-frame codes 0xC0..0xCF these three mean something else: Huffman tables, reserved, arithmetic coding.
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_COMPONENTS = (1, 3)  # grey and colour; four are CMYK, which Pillow converts
_SCRATCH_BYTES = 1 << 24


class JpegHeader(NamedTuple):
    """What is known before decoding; `has_app1`: there may be EXIF or XMP, so an orientation."""

    height_px: int
    width_px: int
    has_app1: bool


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG that `decode` may take; None for any other file."""
    if not data.startswith(_START) or _library() is None:
        return None
    size: tuple[int, int] | None = None
    has_app1 = False
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # markers may be padded with any number of these
            position += 1
            continue
        if marker == _START_OF_SCAN:
            return None if size is None else JpegHeader(*size, has_app1)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            frame = data[position + 4 : position + 10]
            if marker not in _BASELINE_TO_PROGRESSIVE or len(frame) < 6 or frame[0] != 8 or size is not None:
                return None
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            if frame[5] not in _COMPONENTS or 0 in size:
                return None
        has_app1 |= marker == _APP1
        if length < 2 or marker < 0xC0:
            return None
        position += 2 + length
    return None


def decode(data: bytes, header: JpegHeader, *, scratch: bool = False) -> Tensor | None:
    """Pixels of a JPEG, not turned by its orientation, or None if Pillow should have a look.

    Args:
        data: The file.
        header: Of this file, from `read_header`.
        scratch: The result may lie in memory that the next call in this thread writes over; saves an allocation.

    Returns:
        uint8 `[3, H, W]`, the channels of a pixel beside each other in memory.
    """
    library = _library()
    size = header.height_px * header.width_px * 3
    buffer = _scratch() if scratch and size <= _SCRATCH_BYTES else None
    try:
        # Strict: what libjpeg only warns about, such as a missing end, is an error, and Pillow decides what it means.
        pixels = library.decode_jpeg(data, "RGB", strict=True, buffer=buffer)
    except (ValueError, MemoryError):
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


@functools.cache
def _library() -> Any:
    """The module `simplejpeg`, or None where it is not installed or broken."""
    try:
        return importlib.import_module("simplejpeg")
    except Exception:  # a broken installation may raise anything; Pillow reads all that this would
        return None


class _Scratch(threading.local):
    buffer: NDArray[np.uint8] | None = None


_SCRATCH = _Scratch()


def _scratch() -> NDArray[np.uint8]:
    if _SCRATCH.buffer is None:
        _SCRATCH.buffer = np.empty(_SCRATCH_BYTES, np.uint8)
    return _SCRATCH.buffer
