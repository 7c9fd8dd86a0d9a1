"""JPEGs through libjpeg-turbo by `simplejpeg`: faster than Pillow, and it tells when the data are damaged.

libjpeg fills what it cannot read with grey and only warns; Pillow drops the warnings, so a file with a hole and a whole
end would be kept half grey. `decode` takes what it is sure to decode to the pixels that Pillow would give, bit for bit;
of what it leaves to Pillow (four components, anything else that libjpeg warns about) `check` finds the damaged ones.

Markers are those of ITU-T T.81, table B.1.
"""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

_START = b"\xff\xd8\xff"
_SEQUENTIAL = (0xC0, 0xC1)
# Of all start-of-frame codes 0xC0..0xCF these three mean something else: Huffman tables, reserved, arithmetic coding.
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_START_OF_SCAN, _APP0, _APP15, _COMMENT = 0xDA, 0xE0, 0xEF, 0xFE
_SCRATCH_BYTES = 1 << 24

# What libjpeg says of compressed data that it could not read to their end: blocks were made up.
_DAMAGE = (
    "premature end of data segment",
    "bad Huffman code",
    "bad arithmetic code",
    "instead of RST",
    "Inconsistent progression",
    "extraneous bytes before marker",
)
# All blocks were there, then something followed: some cameras pad their files so.
_AFTER_THE_LAST_BLOCK = "extraneous bytes before marker 0xd9"


class DamagedJpegError(ValueError):
    """Parts of the picture are missing in the compressed data."""


def is_jpeg(data: bytes) -> bool:
    """Whether a file starts as a JPEG does."""
    return data.startswith(_START)


def decode(data: bytes, height_px: int, width_px: int, *, scratch: bool = False) -> Tensor | None:
    """Pixels of a grey or colour JPEG as they are stored; None if Pillow should have a look, after `check`.

    Height and width are those that Pillow reads in the header. With `scratch` the result may lie in memory that the
    next call in this thread writes over, which saves an allocation.

    Returns:
        uint8 `[1, 3, H, W]`, channels last in memory. A batch, since an axis that torch adds in front of `[3, H, W]`
        gets a stride by which its resizing does not see that layout, and takes a slower way.
    """
    row = width_px * 3
    memory = _SCRATCH.memory() if scratch and row * height_px <= _SCRATCH_BYTES else None
    try:
        pixels = _strictly(data, "RGB", None if memory is None else memory.numpy())
    except ValueError:
        return None
    if pixels.shape[:2] != (height_px, width_px):
        return None
    if memory is None:
        return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    # A view of a tensor that is there already: turning an array into one takes a tenth of the time of a resize.
    return memory.as_strided((1, 3, height_px, width_px), (row * height_px, 1, row, 3))


def check(data: bytes) -> None:
    """Find what Pillow would pass over in silence: compressed data that are cut, or have a hole.

    libjpeg tells its first warning only, so what is odd in the headers is left out or mended before.

    Raises `DamagedJpegError`: parts of the picture are missing.
    """
    plain, components = _without_oddities(data)
    try:
        _strictly(plain, "CMYK" if components == 4 else "RGB", None)
    except ValueError as error:
        reason = str(error)
        if any(text in reason for text in _DAMAGE) and _AFTER_THE_LAST_BLOCK not in reason:
            raise DamagedJpegError(reason) from error


def _strictly(data: bytes, colours: str, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Pixels `[H, W, C]`. Raises `ValueError` with the first warning or error of libjpeg."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True, buffer=buffer)
        return pixels
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(str(error)) from error
        raise


def _without_oddities(data: bytes) -> tuple[bytes, int]:
    """A JPEG with headers about which libjpeg has nothing to warn, and its number of components.

    Application data, comments and bytes between the segments are left out; they say nothing about where blocks lie. A
    sequential scan gets the one range of coefficients that it can have.
    """
    parts = [_START[:2]]
    sequential, components = False, 0
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in (0x00, 0xFF):
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position:end]
        if marker == _START_OF_SCAN:
            if sequential and len(segment) > 8:
                segment = segment[:-3] + b"\0\x3f\0"
            return b"".join([*parts, segment, data[end:]]), components
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            sequential, components = marker in _SEQUENTIAL, data[position + 9] if len(segment) > 9 else 0
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            parts.append(segment)
        position = end
    return data, components


class _Scratch(threading.local):
    _tensor: Tensor | None = None

    def memory(self) -> Tensor:
        if self._tensor is None:
            self._tensor = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8)
        return self._tensor


_SCRATCH = _Scratch()
