"""Photos of a caller, in whatever form they are at hand, as pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vq3dcli.data.pillow import check_pixels, focal_length_mm, orientation_of, oriented, pixels_of
from vq3dcli.errors import DataError, UsageError

Photo = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A path (or another input of the commands, as `toyscene:CLASS`), a PIL image of any mode, or pixels of uint8: an array
`[H, W, 3]`, also `[H, W]` of grey or `[H, W, 4]` with alpha, or a tensor `[3, H, W]`."""

_KINDS = "a path, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]"


def photo_pixels(photo: object) -> Tensor:
    """Pixels uint8 `[3, H, W]` of a photo that is at hand; PIL images are turned by EXIF and brought to sRGB.

    Raises:
        UsageError: It is none of the kinds of `Photo`, or has another shape or type of numbers.
        DataError: A PIL image that cannot be decoded or is too large.
    """
    if isinstance(photo, Tensor):
        if photo.dtype != torch.uint8:
            raise UsageError(f"a photo's tensor is uint8, not {photo.dtype}", remedy=_of_floats(photo, "torch.uint8"))
        _check_shape(photo, channels_last=False)
        return photo.detach().cpu().contiguous()
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8:
            raise UsageError(f"a photo's array is uint8, not {photo.dtype}", remedy=_of_floats(photo, "np.uint8"))
        _check_shape(photo, channels_last=True)
        photo = Image.fromarray(np.ascontiguousarray(photo))
    if not isinstance(photo, Image.Image):
        raise UsageError(f"a photo is no {type(photo).__name__}", remedy=_KINDS)
    name = Path(str(getattr(photo, "filename", ""))).name or "image"
    try:
        check_pixels(photo)
        return oriented(pixels_of(photo), orientation_of(photo))[0].contiguous()
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # Pillow's decoders raise almost any type on damaged bytes
        raise DataError(f"cannot decode image ({name}): {error}", remedy="another copy, or a smaller one") from error


def photo_focal_mm(photo: object) -> float | None:
    """The focal length of a PIL image by its EXIF, as on film of 36 x 24 mm."""
    return focal_length_mm(photo) if isinstance(photo, Image.Image) else None


def _check_shape(pixels: Any, *, channels_last: bool) -> None:
    """Raise `UsageError` unless pixels have the shape of one photo."""
    shape = tuple(pixels.shape)
    if channels_last:
        sound = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    else:
        sound = len(shape) == 3 and shape[0] == 3
    if sound and min(shape) > 0:
        return
    wanted = "array is [H, W, 3]" if channels_last else "tensor is [3, H, W]"
    remedy = _KINDS
    if len(shape) == 4:
        remedy = "a list of single photos, list(photos)"
    elif len(shape) == 3 and channels_last and shape[0] == 3:
        remedy = "photo.transpose(1, 2, 0)"
    elif len(shape) == 3 and not channels_last and shape[2] == 3:
        remedy = "photo.permute(2, 0, 1)"
    raise UsageError(f"a photo's {wanted}, not {list(shape)}", remedy=remedy)


def _of_floats(photo: Any, wanted: str) -> str:
    cast = f"to({wanted})" if isinstance(photo, Tensor) else f"astype({wanted})"
    return f"(photo * 255).round().{cast} for values in [0, 1]"
