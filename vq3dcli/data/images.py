"""Decoding and encoding of single images; the one place where Pillow meets bytes that we did not write.

The format is sniffed from the bytes, never taken from the name. Every image is decoded fully, so a truncated file is
an error and never half grey.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import read_error

MAX_PIXELS = 128_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALPHA_BACKGROUND = 128
JPEG_QUALITY = 95

_EXIF_ORIENTATION = 0x0112
# Orientation: whether rows and columns are swapped, then which of the axes (-2 rows, -1 columns) are mirrored.
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (-1,)),
    3: (False, (-2, -1)),
    4: (False, (-2,)),
    5: (True, ()),
    6: (True, (-1,)),
    7: (True, (-2, -1)),
    8: (True, (-2,)),
}
# A strip is converted at once: a 128-megapixel image then needs one copy beside the decoder's, 0.9 GB in all.
_STRIP_PIXELS = 1 << 22
# `warnings.catch_warnings` changes the whole process, so two threads must not be inside it at once.
_WARNINGS_LOCK = threading.Lock()


def decode_image(data: bytes, *, name: str, apply_orientation: bool = True) -> Tensor:
    """Decode one image; of an animation the first frame.

    16-bit greys are scaled to 8 bits, CMYK and palettes become RGB, transparency lies over mid grey.

    Args:
        data: The bytes of a file in one of `FORMATS`.
        name: What error messages call it.
        apply_orientation: Rotate by the EXIF orientation; broken EXIF is ignored. TIFFs are always rotated.

    Returns:
        uint8 `[3, H, W]`, contiguous.

    Raises:
        DataError: Not an image, damaged, or more than `MAX_PIXELS`, which is found before any pixel is decoded.
    """
    try:
        pixels, orientation = _decode(data)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"image too large ({name}): over the limit of {MAX_PIXELS // 10**6} megapixels", remedy="a smaller copy"
        ) from error
    except UnidentifiedImageError as error:
        reason = "the file is empty" if not data else f"its bytes are none of {', '.join(FORMATS)}"
        raise _undecodable(name, reason) from error
    except Exception as error:
        # Pillow's decoders raise almost any type on damaged bytes: OSError, SyntaxError, struct.error, IndexError...
        raise _undecodable(name, str(error) or type(error).__name__) from error
    return _oriented(pixels, orientation if apply_orientation else 1)


def read_file(path: Path) -> bytes:
    """The bytes of an input file. Raises `InputMissingError` (also for a folder) or `StorageError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputMissingError(f"no such file ({path})", remedy="check the path") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputMissingError(f"not a file ({path})", remedy="give the path of one image") from error
    except OSError as error:
        raise read_error(path, error) from error


def read_image(path: Path, *, apply_orientation: bool = True) -> Tensor:
    """Read and decode an image file, see `decode_image`. Raises `InputMissingError` where there is no such file."""
    return decode_image(read_file(path), name=str(path), apply_orientation=apply_orientation)


def centre_square(height_px: int, width_px: int) -> tuple[int, int, int]:
    """The largest centred square of an image: (top, left, side) in pixels."""
    side = min(height_px, width_px)
    return (height_px - side) // 2, (width_px - side) // 2, side


def to_square(image: Tensor, size: int, *, fit: Literal["crop", "squash"]) -> Tensor:
    """Resize to a square by antialiased bicubic interpolation.

    Args:
        image: uint8 `[3, H, W]`.
        fit: `crop` takes the centre square first, `squash` changes the aspect ratio.

    Returns:
        uint8 `[3, size, size]`.
    """
    if fit == "crop":
        top, left, side = centre_square(image.shape[1], image.shape[2])
        image = image[:, top : top + side, left : left + side]
    return resize(image, size, size)


def resize(image: Tensor, height_px: int, width_px: int) -> Tensor:
    """Antialiased bicubic resize of a uint8 image `[3, H, W]` to `[3, height_px, width_px]`."""
    if image.shape[1:] == (height_px, width_px):
        return image.contiguous()
    resized = functional.interpolate(
        image[None], size=(height_px, width_px), mode="bicubic", align_corners=False, antialias=True
    )
    return resized[0].contiguous()


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


def _undecodable(name: str, reason: str) -> DataError:
    return DataError(f"cannot decode image ({name}): {reason}", remedy="another copy, or save it again as PNG or JPEG")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes) -> Image.Image:
    with _without_warnings():
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _decode(data: bytes) -> tuple[Tensor, int]:
    """Pixels as they are stored, and their EXIF orientation; Pillow's own copy is gone when this returns."""
    with _open(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
        return _pixels(image), _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        with _without_warnings():
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises almost any type, and says nothing about the pixels
        return 1


def _oriented(pixels: Tensor, orientation: int) -> Tensor:
    swapped, mirrored = _TURNS.get(orientation, (False, ()))
    if swapped:
        pixels = pixels.transpose(-2, -1)
    return pixels.flip(mirrored) if mirrored else pixels.contiguous()


def _pixels(image: Image.Image) -> Tensor:
    """uint8 `[3, H, W]` from an image of any mode."""
    pixels = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = _rgb(image.crop((0, top, image.width, bottom)))
        pixels[:, top:bottom] = torch.from_numpy(np.array(strip)).permute(2, 0, 1)
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """An RGB image from any mode that `FORMATS` decode to."""
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, (ALPHA_BACKGROUND,) * 3)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale grey values 0..65535 to 0..255 with rounding; Pillow's own conversion clips them at 255."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey values {low}..{high} do not fit 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
