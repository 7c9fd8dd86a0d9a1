"""Geometry from outside: a disparity map of the user's, or one by a monocular depth network."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.arrays import read_array
from vq3dcli.data.images import MAX_PIXELS, decode_image, read_file
from vq3dcli.data.pillow import load_picture, orientation_of, oriented
from vq3dcli.data_tools.depth.models import DepthModel, find_model, open_model
from vq3dcli.errors import DataError, UnavailableError, UsageError
from vq3dcli.losses.depth import align_canonical
from vq3dcli.scene_file import SceneCamera

_PFM = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)\s")
_ASPECT_ERROR = 0.03
# No video has more pixels a side.
_MOST_PX = 2048
_LEAST_RELIEF = 1e-3
# JPEG shifts the colours of a grey picture by a few levels, and a logo is no colour map.
_COLOUR_LEVELS = 24
_COLOURED = 0.01
_NO_RELIEF = "no --depth: the NeRF has its own"
_REMEDY = "a PNG, .npy or .pfm of two axes, all of it finite"


def read_disparity(path: Path) -> Tensor:
    """A disparity map, larger is nearer, in any unit.

    Args:
        path: `.npy` (two axes, and any of length 1), `.pfm`, or an image; a 16-bit PNG keeps its 16 bits, colours
            must be equal.

    Returns:
        float32 `[H, W]`.

    Raises:
        InputMissingError: There is no such file.
        DataError: It cannot be read, holds values that are not finite, or the same value everywhere.
    """
    suffix = path.suffix.lower()
    data = read_file(path)
    values: Any
    try:
        if suffix == ".npy":
            values = read_array(io.BytesIO(data), len(data))
        elif suffix == ".pfm":
            values = _read_pfm(data)
        else:
            values = _read_picture(data, path)
        if values.dtype.kind not in "buif" or values.size > MAX_PIXELS:
            raise ValueError(f"its values are {values.size} of {values.dtype}")
        with np.errstate(over="ignore"):  # what overflows is not finite
            values = np.squeeze(values.astype(np.float32))
    except (ValueError, TypeError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"not a disparity map ({path}): {error}", remedy=_REMEDY) from error
    if values.ndim != 2 or not values.size:
        raise DataError(f"not a disparity map ({path}): its shape is {list(values.shape)}", remedy=_REMEDY)
    if not np.isfinite(values).all():
        raise DataError(f"a disparity map with values that are not finite ({path})", remedy=_REMEDY)
    if values.min() == values.max():
        raise DataError(f"a disparity map without any relief ({path})", remedy=_NO_RELIEF)
    return torch.from_numpy(np.ascontiguousarray(values))


def open_depth_model(model: str, device: torch.device) -> DepthModel:
    """Open a depth network.

    Args:
        model: As `vq3d depth-labels --model` takes it: a folder, an `.onnx` file, or a name of the Hub.
        device: Where it computes.

    Raises:
        InputMissingError, DataError, UnsafeFileError: There is no such network, or it is damaged or a pickle.
        UnavailableError: It is not on this machine, or what it needs is not installed.
        UsageError: Nobody knows what its numbers mean.
    """
    try:
        return open_model(find_model(model), device)
    except UsageError as error:
        raise UsageError(error.message, remedy="another network, or --depth FILE with its map") from error
    except UnavailableError as error:
        # Only `vq3d depth-labels` downloads.
        remedy = (error.remedy or "").removeprefix("--download; or ").replace("--model", "--depth-model")
        raise UnavailableError(error.message, remedy=remedy or "--depth FILE") from error


def predict_disparity(network: DepthModel, photo: Tensor, *, name: str) -> Tensor:
    """The disparity of a photo by a network, float32 `[h, w]`, larger is nearer.

    Args:
        network: From `open_depth_model`.
        photo: uint8 `[3, H, W]`.
        name: What error messages call the photo.

    Raises:
        DataError: The network fails on this photo.
    """
    disparity = network.disparity(photo[None].cpu())[0].float().cpu()
    if not torch.isfinite(disparity).all():
        raise DataError(f"the depth network gives values that are not finite ({name})", remedy="--depth FILE")
    return disparity


def check_shape(disparity: Tensor, aspects: Sequence[float], *, name: str) -> float:
    """The one of some aspects (width / height) that a map `[h, w]` has. Raises `DataError`."""
    height_px, width_px = disparity.shape
    # A map of few pixels cannot have the photo's shape to the last percent.
    error = _ASPECT_ERROR + 1.0 / min(height_px, width_px)
    for aspect in aspects:
        if abs(width_px / height_px / aspect - 1.0) <= error:
            return aspect
    raise DataError(
        f"a disparity map of another shape than the photo ({name}): {width_px}x{height_px}, width / height should be "
        f"{aspects[-1]:.3g}",
        remedy="a map of the whole photo, of any size",
    )


def user_s(disparity: Tensor, facts: SceneCamera, *, name: str) -> Tensor:
    """A relative disparity map as normalised disparity, with the statistics of an average scene in training.

    Args:
        disparity: `[h, w]`, larger is nearer.
        facts: Of the scene.
        name: What error messages call the map.

    Returns:
        `[h', w']` in [0, 1], at most 2048 pixels a side.

    Raises:
        DataError: All of it, but for single pixels, is equally far.
    """
    factor = min(1.0, _MOST_PX / max(disparity.shape))
    size = [max(1, round(side * factor)) for side in disparity.shape]
    smaller = functional.interpolate(disparity[None, None], size=size, mode="bilinear", antialias=True)[0]
    s = align_canonical(smaller, mean=facts.mean_s, std=facts.std_s)[0]
    if float(s.max() - s.min()) < _LEAST_RELIEF:
        raise DataError(f"a disparity map without any relief ({name})", remedy=_NO_RELIEF)
    return s


def _read_picture(data: bytes, path: Path) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Values of a picture, turned by its EXIF orientation; a grey PNG or TIFF of more than 8 bits keeps them.

    Raises:
        DataError: It cannot be decoded, or its colours differ: which of them is near, only its maker knows.
    """
    with contextlib.suppress(Exception), load_picture(data) as image:  # `decode_image` says what is wrong with it
        if image.mode.startswith("I") or image.mode == "F":
            values = torch.from_numpy(np.asarray(image).astype(np.float32))
            return oriented(values, orientation_of(image)).numpy()
    try:
        picture = decode_image(data, name=str(path))
    except DataError as error:
        raise DataError(error.message, remedy=_REMEDY) from error
    spread = (picture.amax(0) - picture.amin(0)) > _COLOUR_LEVELS
    if spread.float().mean() > _COLOURED:
        raise DataError(f"a coloured picture of a map ({path})", remedy="its grey or 16-bit version")
    return picture.float().mean(0).numpy()


def _read_pfm(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Portable float map: text header, then rows from the bottom to the top; a negative scale is little endian."""
    header = _PFM.match(data)
    if header is None:
        raise ValueError("no header of a portable float map")
    kind, width_px, height_px, scale = header.groups()
    channels = 3 if kind == b"PF" else 1
    order = "<f4" if float(scale) < 0 else ">f4"
    count = int(width_px) * int(height_px) * channels
    values = np.frombuffer(data, order, count, header.end()).reshape(int(height_px), int(width_px), channels)
    return values[::-1].mean(-1).astype(np.float32)
