"""Where Pillow meets bytes that we did not write: what is refused, which limits hold, what pixels of any kind become.

Colours go from an embedded ICC profile to sRGB, by LittleCMS. A profile that is damaged, of another kind than the
pixels, or that says nothing but sRGB changes nothing; which that is is found out once a profile: a folder has few.

The format is sniffed from the bytes, never taken from the name, and the header is judged before any pixel is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import mmap
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from vq3dcli.data import jpeg_damage

MAX_PIXELS = 128_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
ALPHA_BACKGROUND = 128

_PILLOWS_FORMATS = [name for name in FORMATS if name != "HEIC"]

# These decoders take 16 bytes a pixel, the others 4: none takes more than 1 GB.
_MOST_PIXELS = {"WEBP": 48_000_000, "AVIF": 48_000_000, "HEIF": 48_000_000}
# A strip is converted at once: a 128-megapixel image then needs one copy beside the decoder's, 0.9 GB in all.
_STRIP_PIXELS = 1 << 22
# Freed blocks of this size go back to the system; others stay with the process (`vq3dcli.allocator`).
_OWN_MAPPING_BYTES = 1 << 26
# `warnings.catch_warnings` changes the whole process, so two threads must not be inside it at once.
_WARNINGS_LOCK = threading.Lock()

_PNG_START = b"\x89PNG\r\n\x1a\n"
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_TAG_NEW_SUBFILE_TYPE, _TAG_PHOTOMETRIC, _TAG_SUB_IFDS, _TAG_DNG_VERSION = 254, 262, 330, 50706
_COLOUR_FILTER_ARRAY, _LINEAR_RAW = 32803, 34892
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_EXIF_ORIENTATION = 0x0112
_EXIF_PHOTO, _EXIF_FOCAL_35MM = 0x8769, 0xA405
# Of lenses whose photos are pictures of a plane: no fisheyes, and no zeros of editors.
_FOCAL_MM = (12.0, 600.0)
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

# Tables for printers take some megabytes; what is larger is no profile.
MAX_PROFILE_BYTES = 16 << 20
# Profiles of sRGB differ in the rounding of their curves. Nobody sees a level or two.
_SAME_LEVELS = 2
_GRID = 17
_log = logging.getLogger(__name__)


class ColourChange(NamedTuple):
    """Changes pixels of `mode` (`L`, `RGB` or `CMYK`) to sRGB."""

    transform: ImageCms.ImageCmsTransform
    mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of one of `mode`."""
        return ImageCms.applyTransform(image, self.transform) or image


def colour_change(profile: bytes, mode: str) -> ColourChange | None:
    """What turns pixels with a profile into sRGB; None where nothing has to be done, or can be."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return None
    grey = mode in ("1", "L", "LA") or mode.startswith("I")
    return _change(profile, "CMYK" if mode == "CMYK" else "L" if grey else "" if mode == "LAB" else "RGB")


@functools.lru_cache(maxsize=8)
def _change(profile: bytes, mode: str) -> ColourChange | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        # A grey picture with a profile of three colours is one whose three colours are equal.
        mode = "RGB" if (space, mode) == ("RGB", "L") else mode
        if {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space) != mode:
            return None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        change = ColourChange(transform, mode)
        return None if mode != "CMYK" and _changes_nothing(change) else change
    except ImportError:
        _log.warning("this Pillow has no LittleCMS: colour profiles are ignored")
        return None
    except Exception:  # damaged profiles raise almost any type, and say nothing about the pixels
        return None


def _changes_nothing(change: ColourChange) -> bool:
    steps = np.linspace(0, 255, 256 if change.mode == "L" else _GRID).round().astype(np.uint8)
    if change.mode == "L":
        before = np.repeat(steps[None, :, None], 3, axis=2)
        after = change(Image.fromarray(steps[None]))
    else:
        before = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        after = change(Image.fromarray(before))
    return bool(np.abs(np.asarray(after).astype(int) - before).max() <= _SAME_LEVELS)


class TooManyPixelsError(ValueError):
    """Found before any pixel was decoded."""


def load_picture(data: bytes) -> Image.Image:
    """An image with its pixels, to be closed by the caller.

    Raises `TooManyPixelsError`: more than `MAX_PIXELS`, or than its format's decoder can take in a gigabyte;
    `ValueError`: camera raw, or a format that needs what is not installed; or whatever Pillow raises on damaged bytes.
    """
    try:
        return _load(data)
    except ValueError:
        # Pillow's limits for texts and profiles would end the decoding of whole pixels.
        plain, profile = _without_texts(data)
        if len(plain) == len(data):
            raise
        image = _load(plain)
        image.info["icc_profile"] = profile
        return image


def _load(data: bytes) -> Image.Image:
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(open_header(data))
        check_pixels(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _refuse_raw(image, data)
        if jpeg_damage.is_jpeg(data):
            jpeg_damage.check(data)
        image.load()
        stack.pop_all()
        return image


def open_header(data: bytes) -> Image.Image:
    """An image whose header is read. Raises as `load_picture`."""
    _limit_pixels("WEBP", _webp_pixels(data))
    with _without_warnings():
        try:
            if (brands := _brands(data)) & _HEIC_BRANDS and b"avif" not in brands:
                try:
                    from pillow_heif import HeifImageFile
                except ImportError as error:
                    raise ValueError("HEIC needs pillow-heif: pip install 'vq3d[heic]', or save it as JPEG") from error
                return cast(Image.Image, HeifImageFile(io.BytesIO(data)))
            return Image.open(io.BytesIO(data), formats=_PILLOWS_FORMATS)
        except Image.DecompressionBombError as error:
            raise TooManyPixelsError(f"over the limit of {MAX_PIXELS // 10**6} megapixels") from error
        except UnidentifiedImageError as error:
            raise ValueError(_unknown(data)) from error


def orientation_of(image: Image.Image) -> int:
    """The orientation by EXIF, from 1 to 8; 1 where it is damaged or says nothing."""
    try:
        with _without_warnings():
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises almost any type, and says nothing about the pixels
        return 1


def focal_length_mm(image: Image.Image) -> float | None:
    """The focal length by EXIF, as on film of 36 x 24 mm; None where it is damaged or says nothing."""
    try:
        with _without_warnings():
            focal_mm = float(image.getexif().get_ifd(_EXIF_PHOTO).get(_EXIF_FOCAL_35MM, 0.0))
    except Exception:  # as above
        return None
    return focal_mm if _FOCAL_MM[0] <= focal_mm <= _FOCAL_MM[1] else None


def oriented(pixels: Tensor, orientation: int) -> Tensor:
    """Pixels `[..., H, W]`, turned by an orientation."""
    swapped, mirrored = _TURNS.get(orientation, (False, ()))
    if swapped:
        pixels = pixels.transpose(-2, -1)
    return pixels.flip(mirrored) if mirrored else pixels


def pixels_of(image: Image.Image) -> Tensor:
    """Pixels of an image of any mode as sRGB: uint8 `[1, 3, H, W]`, channels last in memory."""
    size = image.height * image.width * 3
    mapped = size > _OWN_MAPPING_BYTES
    memory = (
        torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8) if mapped else torch.empty(size, dtype=torch.uint8)
    )
    pixels = memory.view(image.height, image.width, 3)
    profile = image.info.get("icc_profile") or b""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = _rgb(image.crop((0, top, image.width, bottom)), profile)
        pixels[top:bottom] = torch.from_numpy(np.array(strip))
    return pixels[None].permute(0, 3, 1, 2)


def change_colours(pixels: Tensor, profile: bytes, *, grey: bool) -> None:
    """Turn pixels `[1, 3, H, W]`, channels last in memory, into sRGB where they lie."""
    change = colour_change(profile, "L" if grey else "RGB")
    if change is None:
        return
    array = pixels[0].permute(1, 2, 0).numpy()
    rows = max(1, _STRIP_PIXELS // array.shape[1])
    for top in range(0, len(array), rows):
        strip = array[top : top + rows]
        image = Image.fromarray(np.ascontiguousarray(strip[..., 0]) if change.mode == "L" else strip)
        strip[:] = np.asarray(change(image))


def check_pixels(image: Image.Image) -> None:
    """Raise `TooManyPixelsError` for an opened image that is too large."""
    _limit_pixels(image.format or "", image.width * image.height)


def _limit_pixels(image_format: str, count: int) -> None:
    limit = _MOST_PIXELS.get(image_format, MAX_PIXELS)
    if count > limit:
        raise TooManyPixelsError(f"over the limit of {limit // 10**6} megapixels")


def _webp_pixels(data: bytes) -> int:
    """Pixels of a WebP's canvas (RFC 9649), for which Pillow takes memory as it opens it; 0 for other files."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0
    if data[12:16] == b"VP8X":
        return (1 + int.from_bytes(data[24:27], "little")) * (1 + int.from_bytes(data[27:30], "little"))
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    return int.from_bytes(data[26:28], "little") * int.from_bytes(data[28:30], "little")


def _rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image from any mode that `FORMATS` decode to."""
    change = colour_change(profile, image.mode)
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    mode = "RGB" if change is None else change.mode
    if not image.has_transparency_data:
        plain = image.convert(mode)
        return change(plain) if change else plain
    rgba = image.convert("RGBA")
    plain = rgba.convert("RGB").convert(mode)
    canvas = Image.new("RGB", image.size, (ALPHA_BACKGROUND,) * 3)
    canvas.paste(change(plain) if change else plain, mask=rgba.getchannel("A"))
    return canvas


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale grey values 0..65535 to 0..255 with rounding; Pillow's own conversion clips them at 255."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey values {low}..{high} do not fit 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _refuse_raw(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Raise `ValueError` for a TIFF whose first page is the thumbnail of something else."""
    tags = image.tag_v2
    raw = _TAG_DNG_VERSION in tags or tags.get(_TAG_PHOTOMETRIC) in (_COLOUR_FILTER_ARRAY, _LINEAR_RAW)
    reduced = bool(tags.get(_TAG_NEW_SUBFILE_TYPE, 0) & 1)
    if raw or data[8:10] == b"CR" or (reduced and _TAG_SUB_IFDS in tags):
        raise ValueError("camera raw, of which only a thumbnail would be read: develop it to JPEG first")
    if reduced:
        raise ValueError("its first page is a reduced copy of another")


def _without_texts(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without texts and profile, and its profile; other files as they are."""
    if not data.startswith(_PNG_START):
        return data, b""
    parts, profile, at = [_PNG_START], b"", len(_PNG_START)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"iCCP":
            _, _, rest = data[at + 8 : end - 4].partition(b"\0")
            with contextlib.suppress(zlib.error):
                profile = zlib.decompressobj().decompress(rest[1:], MAX_PROFILE_BYTES)
        elif kind not in (b"tEXt", b"zTXt", b"iTXt"):
            parts.append(data[at:end])
        at = end
    return b"".join(parts), profile


def _brands(data: bytes) -> set[bytes]:
    """Of a file in the ISO base media format (ISO/IEC 14496-12, 4.3); nothing for others."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _unknown(data: bytes) -> str:
    """Why Pillow knows nothing about some bytes."""
    if not data:
        return "the file is empty"
    if b"avif" in _brands(data):
        return "damaged AVIF, or this Pillow was built without it"
    if data[:4] in _TIFF_STARTS:
        return "a TIFF that is damaged, or of numbers that Pillow does not read, as 64-bit ones"
    return f"its bytes are none of {', '.join(FORMATS)}"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
