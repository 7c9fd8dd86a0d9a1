"""JPEGs through libjpeg-turbo by `simplejpeg`: faster than Pillow, and it tells when the data are damaged.

libjpeg fills what it cannot read with grey and only warns; Pillow drops the warnings, so a file with a hole and a whole
end would be kept half grey. `decode` takes what it is sure to decode to the pixels that Pillow would give, bit for bit
(`benchmarks/decode.py` counts them); of what it leaves to Pillow (four components, anything else that libjpeg warns
about) `check` finds the damaged ones.

Markers are those of ITU-T T.81, table B.1.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq3dcli.errors import UnavailableError

_START = b"\xff\xd8\xff"
_SEQUENTIAL = (0xC0, 0xC1)
_BASELINE_TO_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
# Of all start-of-frame codes 0xC0..0xCF these three mean something else: Huffman tables, reserved, arithmetic coding.
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_START_OF_SCAN, _APP0, _APP1, _APP2, _APP15, _COMMENT = 0xDA, 0xE0, 0xE1, 0xE2, 0xEF, 0xFE
_PROFILE_START = b"ICC_PROFILE\0"
_COMPONENTS = (1, 3)  # grey and colour; four are CMYK, which Pillow converts
_SCRATCH_BYTES = 1 << 24
_ORIENTATION = 0x0112
_SHORT = 3
# Bytes of a value by its type: TIFF 6.0, section 2.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"Exif\0\0II*\0": "little", b"Exif\0\0MM\0*": "big"}

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


class JpegHeader(NamedTuple):
    """What is known before decoding.

    Attributes:
        orientation: That of EXIF, None where Pillow should look for it.
        profile: The embedded ICC profile; empty without one.
        grey: Whether there is one component.
    """

    height_px: int
    width_px: int
    orientation: int | None
    profile: bytes = b""
    grey: bool = False


def is_jpeg(data: bytes) -> bool:
    """Whether a file starts as a JPEG does."""
    return data.startswith(_START)


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG that `decode` may take; None for any other file."""
    if not is_jpeg(data):
        return None
    size: tuple[int, int] | None = None
    grey = False
    profile: list[bytes] = []
    orientation: int | None = 1
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
            return None if size is None else JpegHeader(*size, orientation, _joined(profile), grey)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            frame = data[position + 4 : position + 10]
            if marker not in _BASELINE_TO_PROGRESSIVE or len(frame) < 6 or frame[0] != 8 or size is not None:
                return None
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            if frame[5] not in _COMPONENTS or 0 in size:
                return None
            grey = frame[5] == 1
        if length < 2 or marker < 0xC0:
            return None
        if marker == _APP1:
            orientation = None if has_app1 else _exif_orientation(data[position + 4 : position + 2 + length])
            has_app1 = True
        if marker == _APP2 and data.startswith(_PROFILE_START, position + 4):
            profile.append(data[position + 4 + len(_PROFILE_START) : position + 2 + length])
        position += 2 + length
    return None


def _joined(parts: list[bytes]) -> bytes:
    """An ICC profile from its parts, each after its number and their count (ICC.1, annex B.4); empty if one lacks."""
    parts = sorted(parts)
    whole = all(len(part) > 2 and part[:2] == bytes((i, len(parts))) for i, part in enumerate(parts[:255], start=1))
    return b"".join(part[2:] for part in parts) if whole else b""


def _exif_orientation(segment: bytes) -> int | None:
    """Orientation by the first directory of an EXIF segment (TIFF 6.0, section 2), 1 without one.

    None for XMP, which may tell it too, and for anything odd.
    """
    order = _BYTE_ORDERS.get(segment[:10])
    if order is None:
        return None

    def number(first: int, size: int) -> int:
        return int.from_bytes(tiff[first : first + size], order)

    tiff = segment[6:]
    start = number(4, 4)
    end = start + 2 + 12 * number(start, 2)
    if start < 8 or end > len(tiff):
        return None
    found: int | None = None
    for entry in range(start + 2, end, 12):
        tag, kind, count = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        size = count * _SIZES.get(kind, 0)
        if size == 0 or (size > 4 and number(entry + 8, 4) + size > len(tiff)):
            return None
        if tag == _ORIENTATION:
            if found is not None or (kind, count) != (_SHORT, 1):
                return None
            found = number(entry + 8, 2)
    return 1 if found is None else found


def decode(data: bytes, header: JpegHeader, *, scratch: bool = False) -> Tensor | None:
    """Pixels of a JPEG, not turned by its orientation, or None if Pillow should have a look, after `check`.

    Args:
        data: The file.
        header: Of this file, from `read_header`.
        scratch: The result may lie in memory that the next call in this thread writes over; saves an allocation.

    Returns:
        uint8 `[1, 3, H, W]`, channels last in memory. A batch, since an axis that torch adds in front of `[3, H, W]`
        gets a stride by which its resizing does not see that layout, and takes a slower way.
    """
    row = header.width_px * 3
    memory = _SCRATCH.get() if scratch and row * header.height_px <= _SCRATCH_BYTES else None
    try:
        pixels = _strictly(data, "RGB", None if memory is None else memory.array)
    except ValueError:
        return None
    if memory is None:
        return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    # A view of a tensor that is there already: turning an array into one takes a tenth of the time of a resize.
    shape = (1, 3, header.height_px, header.width_px)
    return memory.tensor.as_strided(shape, (row * header.height_px, 1, row, 3))


def check(data: bytes) -> None:
    """Find what Pillow would pass over in silence: compressed data that are cut, or have a hole.

    libjpeg tells its first warning only, so what is odd in the headers is left out or mended before.

    Raises:
        DamagedJpegError: Parts of the picture are missing.
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
    library = _library()
    try:
        pixels: NDArray[np.uint8] = library.decode_jpeg(data, colours, strict=True, buffer=buffer)
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


def _library() -> ModuleType:
    try:
        import simplejpeg
    except Exception as error:  # a broken installation may raise anything
        raise UnavailableError(
            f"JPEGs need a package that is not installed, or is broken (simplejpeg): {error}",
            remedy="pip install simplejpeg",
        ) from error
    return simplejpeg


class _Memory(NamedTuple):
    """The same bytes for torch and for libjpeg."""

    tensor: Tensor
    array: NDArray[np.uint8]


class _Scratch(threading.local):
    memory: _Memory | None = None

    def get(self) -> _Memory:
        if self.memory is None:
            tensor = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8)
            self.memory = _Memory(tensor, tensor.numpy())
        return self.memory


_SCRATCH = _Scratch()
