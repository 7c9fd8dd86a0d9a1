"""Geometry from outside: a disparity map of the user's, or one by a monocular depth network."""

from __future__ import annotations

import importlib
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vq3dcli.data.images import centre_square, read_file, read_image
from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.losses.depth import align_canonical
from vq3dcli.pipelines.inputs import Fit

# The statistics of s in an average scene, as relative labels are brought to in training (docs/training.md).
_MEAN_S, _STD_S = 0.40, 0.18
_PFM = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)\s")
_ASPECT_ERROR = 0.03


def read_disparity(path: Path) -> Tensor:
    """A disparity map, larger is nearer, in any unit.

    Args:
        path: `.npy` (two axes), `.pfm`, or an image; a 16-bit PNG keeps its 16 bits, of colours the mean counts.

    Returns:
        float32 `[H, W]`.

    Raises:
        InputMissingError: There is no such file.
        DataError: It cannot be read, or holds values that are not finite.
    """
    suffix = path.suffix.lower()
    data = read_file(path)
    try:
        if suffix == ".npy":
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif suffix == ".pfm":
            values = _read_pfm(data)
        elif _is_16_bit(data):
            values = np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "TIFF")))
        else:
            return read_image(path).float().mean(0)
        disparity = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    except (ValueError, TypeError, OSError, EOFError, SyntaxError) as error:
        raise DataError(f"not a disparity map ({path}): {error}", remedy="a PNG, .npy or .pfm of two axes") from error
    if disparity.ndim != 2 or not disparity.numel() or not torch.isfinite(disparity).all():
        raise DataError(
            f"not a disparity map ({path}): {list(disparity.shape)}, or values that are not finite",
            remedy="a PNG, .npy or .pfm of two axes",
        )
    return disparity


def predict_disparity(model: str, photo: Tensor, device: torch.device) -> Tensor:
    """The disparity of a photo by a network, float32 `[h, w]`, larger is nearer.

    Args:
        model: As `vq3d depth-labels --model` takes it: a folder, an `.onnx` file, or a name of the Hub.
        photo: uint8 `[3, H, W]`.
        device: Where it computes.

    Raises:
        UnavailableError: The network, or what it needs, is not here.
    """
    try:
        networks = importlib.import_module("data_tools.depth_models")
    except ImportError as error:
        raise UnavailableError("this version knows no depth networks", remedy="--depth FILE") from error
    opened = networks.open_model(networks.find_model(model), device)
    disparity: Tensor = networks.to_disparity(opened.predict(photo[None]), opened.meaning)[0].float().cpu()
    return disparity


def user_s(disparity: Tensor, aspect: float, *, fit: Fit, name: str) -> Tensor:
    """A relative disparity map of a whole photo as normalised disparity of what is kept of it.

    Args:
        disparity: `[h, w]`, larger is nearer.
        aspect: Width / height of what is kept of the photo.
        fit: What is kept, see `inputs.read_picture`.
        name: What error messages call the map.

    Returns:
        `[h', w']` in [0, 1].

    Raises:
        DataError: The map's shape is not the photo's.
    """
    height_px, width_px = disparity.shape
    if fit == "crop":
        top, left, side = centre_square(height_px, width_px)
        disparity = disparity[top : top + side, left : left + side]
    # A map of few pixels cannot have the photo's shape to the last percent.
    elif abs(width_px / height_px / aspect - 1.0) > _ASPECT_ERROR + 1.0 / min(height_px, width_px):
        raise DataError(
            f"a disparity map of another shape than the photo ({name}): {width_px}x{height_px}, width / height should "
            f"be {aspect:.3g}",
            remedy="a map of the whole photo, of any size",
        )
    return align_canonical(disparity[None], mean=_MEAN_S, std=_STD_S)[0]


def _is_16_bit(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as image:
            return image.mode.startswith("I") or image.mode == "F"
    except OSError:
        return False


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
