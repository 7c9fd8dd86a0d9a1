"""Decoding and encoding of single images.

Every image is decoded fully, so a file that is cut or has a hole is an error and never half grey. JPEGs go through
`jpeg_damage`, which tells of damage and is faster than Pillow; the others through `pillow`. Embedded profiles are
applied: what comes out is sRGB.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vq3dcli.data import jpeg_damage
from vq3dcli.data.pillow import (
    TooManyPixelsError,
    change_colours,
    check_pixels,
    load_picture,
    open_header,
    orientation_of,
    oriented,
    pixels_of,
)
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import read_error

# How files in `FORMATS` are called, where a folder holds others too.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
JPEG_QUALITY = 95
# No picture within `MAX_PIXELS` of 8 bits is larger, however badly it is compressed.
MAX_FILE_BYTES = 1 << 29


def decode_image(data: bytes, *, name: str, apply_orientation: bool = True) -> Tensor:
    """Decode one image; of an animation the first frame: uint8 `[3, H, W]`, contiguous.

    16-bit greys are scaled to 8 bits, CMYK and palettes become RGB, transparency lies over mid grey. It is turned by
    its EXIF orientation if asked for; broken EXIF is ignored, and TIFFs are always turned.

    Raises `DataError`: not an image, damaged, or more than `MAX_PIXELS`, which is found before any pixel is decoded;
    `MemoryError`: there is no room for its pixels, which says nothing about the image.
    """
    return _decoded(data, name=name, apply_orientation=apply_orientation, scratch=False)[0].contiguous()


class Square(NamedTuple):
    """A square that was cut out of an image and resized."""

    image: Tensor  # uint8 `[3, size, size]`, in either memory layout
    height_px: int  # of the whole image, as it is turned
    width_px: int
    window: tuple[int, int, int]  # top, left and side of the square in it


def centre_square(height_px: int, width_px: int) -> tuple[int, int, int]:
    """The largest centred square of an image: (top, left, side) in pixels."""
    side = min(height_px, width_px)
    return (height_px - side) // 2, (width_px - side) // 2, side


def decode_square(
    data: bytes,
    size: int,
    *,
    name: str,
    apply_orientation: bool = True,
    window: Callable[[int, int], tuple[int, int, int]] = centre_square,
) -> Square:
    """Decode an image, cut a square out of it and resize that: `decode_image` and `resize`, faster.

    The pixels are those of the two, to the bit. JPEGs are not decoded at a lower scale, which would be faster still for
    large ones: what the discrete cosine transform averages differs from an antialiased bicubic filter by 39 to 59 dB.

    `window` makes of height and width in pixels, as the image is turned, top, left and side of a square inside.
    """
    pixels = _decoded(data, name=name, apply_orientation=apply_orientation, scratch=True)
    height_px, width_px = pixels.shape[2:]
    top, left, side = window(height_px, width_px)
    resized = _resize(pixels[:, :, top : top + side, left : left + side], size, size)
    if side == size:  # still in the decoder's memory, which the next image needs
        resized = resized.clone()
    return Square(resized[0], height_px, width_px, (top, left, side))


def _decoded(data: bytes, *, name: str, apply_orientation: bool, scratch: bool) -> Tensor:
    """Pixels `[1, 3, H, W]` in any layout; `scratch`: in memory that the next call may use. Raises `DataError`."""
    try:
        return _decode(data, apply_orientation, scratch)
    except MemoryError:
        raise
    except TooManyPixelsError as error:
        raise DataError(f"image too large ({name}): {error}", remedy="a smaller copy") from error
    except Exception as error:
        if "allocate memory" in str(error):  # torch's own exception for it is a RuntimeError
            raise MemoryError(str(error)) from error
        # Pillow's decoders raise almost any type on damaged bytes: OSError, SyntaxError, struct.error, IndexError...
        reason = str(error) or type(error).__name__
        raise DataError(
            f"cannot decode image ({name}): {reason}", remedy="another copy, or save it again as PNG or JPEG"
        ) from error


def read_file(path: Path) -> bytes:
    """The bytes of an input file.

    Raises `InputMissingError`: there is none, or it is a folder; `DataError`: more than `MAX_FILE_BYTES`; of a device
    that has no end no more is read.
    """
    try:
        with path.open("rb") as file:
            step = min(max(os.fstat(file.fileno()).st_size, 1 << 20), MAX_FILE_BYTES) + 1
            parts: list[bytes] = []
            while sum(map(len, parts)) <= MAX_FILE_BYTES and (part := file.read(step)):
                parts.append(part)
        if sum(map(len, parts)) > MAX_FILE_BYTES:
            raise DataError(f"more than {MAX_FILE_BYTES >> 20} MiB ({path})", remedy="a single image or map")
        return parts[0] if len(parts) == 1 else b"".join(parts)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputMissingError(f"not a file ({path})", remedy="give the path of one image") from error
    except OSError as error:
        raise read_error(path, error) from error


def read_image(path: Path | str) -> Tensor:
    """Read and decode an image file, see `decode_image`. Raises `InputMissingError` where there is no such file."""
    if not isinstance(path, str | Path):
        raise TypeError(f"read_image takes a path, not {type(path).__name__}")
    return decode_image(read_file(Path(path)), name=str(path))


def to_square(image: Tensor, size: int, *, fit: Literal["crop", "squash"]) -> Tensor:
    """A uint8 image `[3, H, W]` as a square `[3, size, size]`, by antialiased bicubic interpolation.

    `crop` takes the centre square first, `squash` changes the aspect ratio. Raises `ValueError`: what is no such image.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"an image is a uint8 tensor [3, H, W], not {got}: read_image(path) gives one, and of an array [H, W, 3] "
            "torch.from_numpy(array).permute(2, 0, 1) does"
        )
    if fit == "crop":
        top, left, side = centre_square(image.shape[1], image.shape[2])
        image = image[:, top : top + side, left : left + side]
    return resize(image, size, size)


def resize(image: Tensor, height_px: int, width_px: int) -> Tensor:
    """Antialiased bicubic resize of a uint8 image `[3, H, W]` to `[3, height_px, width_px]`, contiguous."""
    return _resize(image[None], height_px, width_px)[0].contiguous()


def _resize(batch: Tensor, height_px: int, width_px: int) -> Tensor:
    """`[1, 3, height_px, width_px]` in the memory layout that was fastest to make; the batch itself if it fits."""
    size = (height_px, width_px)
    if batch.shape[2:] == size:
        return batch
    return functional.interpolate(batch, size=size, mode="bicubic", align_corners=False, antialias=True)


def encode_png(image: Tensor) -> bytes:
    """PNG bytes of a uint8 image `[3, H, W]`."""
    return _encode(image, "PNG")


def encode_jpeg(image: Tensor) -> bytes:
    """JPEG bytes (quality 95, full chroma: small images suffer visibly from halved colour) of uint8 `[3, H, W]`."""
    return _encode(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _encode(image: Tensor, image_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, image_format, **options)
    return buffer.getvalue()


def _decode(data: bytes, apply_orientation: bool, scratch: bool) -> Tensor:
    """Pixels `[1, 3, H, W]`; Pillow's own copy is gone when this returns."""
    if jpeg_damage.is_jpeg(data):
        with open_header(data) as image:
            check_pixels(image)
            plain = image.mode in ("L", "RGB")
            pixels = jpeg_damage.decode(data, image.height, image.width, scratch=scratch) if plain else None
            if pixels is not None:
                change_colours(pixels, image.info.get("icc_profile") or b"", grey=image.mode == "L")
                return oriented(pixels, orientation_of(image) if apply_orientation else 1)
    with load_picture(data) as image:
        return oriented(pixels_of(image), orientation_of(image) if apply_orientation else 1)
