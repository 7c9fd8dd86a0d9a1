"""Where a scene's geometry comes from: its NeRF, a depth network, or a disparity map of the user's.

```
NeRF -----------> disparity --------------+
                                          +-> editing.relief, by the edges of the photo -> s
embedded network -> map (fitted to NeRF) -+
the user's map or network -> map -> to the statistics of training, as sharp as it is ----> s
```
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vq3dcli.data.arrays import read_array
from vq3dcli.data.images import centre_square, decode_image, read_file, resize
from vq3dcli.data.pillow import MAX_PIXELS, load_picture, orientation_of, oriented
from vq3dcli.data_tools.depth.models import DepthModel, find_model, open_model
from vq3dcli.editing.cutout import FirstView
from vq3dcli.editing.refined import refined_disparity
from vq3dcli.editing.relief import RELIEF_PX, fitted, moved_to, quiet, resized
from vq3dcli.errors import DataError, UnavailableError, UsageError
from vq3dcli.losses.depth import align_canonical
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.scene import SceneView
from vq3dcli.scene_file import SceneCamera
from vq3dcli.weights_file import EMBEDDED, embedded_path

GeometryName = Literal["nerf", "teacher", "both"]

# Side of the NeRF's disparity: no planes hold more than this of a photo; and samples a ray.
DISPARITY_PX = 128
SAMPLES = 64
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


@dataclass(frozen=True)
class Geometry:
    """What gives scenes their geometry."""

    # `nerf`; `teacher` or `both`, photos by the embedded depth network, at the statistics of training or at the NeRF's
    # scale; `network` or `map`, one of the user's, whose map is kept as sharp as it is
    kind: Literal["nerf", "teacher", "both", "network", "map"] = "nerf"
    network: DepthModel | None = None
    disparity: Tensor | None = None  # the user's map `[h, w]`, larger is nearer
    name: str = ""

    @property
    def is_given(self) -> bool:
        """Whether it is the user's own."""
        return self.kind in ("network", "map")


NERF = Geometry()


def open_geometry(name: GeometryName | None, device: torch.device) -> Geometry:
    """The geometry of photos in detail; None is `both` where this installation has a depth network, else `nerf`.

    Raises `UnavailableError`: there is no embedded depth network.
    """
    if name is None:
        name = "both" if embedded_path("depth").exists() else "nerf"
    if name == "nerf":
        return NERF
    try:
        return Geometry(name, open_model(find_model(EMBEDDED), device, flip=True))
    except UnavailableError as error:
        raise UnavailableError(error.message, remedy="--geometry nerf, or --depth-model") from error


def geometry_of_map(path: Path) -> Geometry:
    """The geometry of a file; raises what `read_disparity` does."""
    return Geometry("map", disparity=read_disparity(path), name=str(path))


def geometry_of_network(model: str, device: torch.device) -> Geometry:
    """The geometry of a depth network of the user's: a folder, an `.onnx` file, or a name of the Hub.

    Raises:
        InputMissingError, DataError, UnsafeFileError: There is no such network, or it is damaged or a pickle.
        UnavailableError: It is not on this machine, or what it needs is not installed.
        UsageError: Nobody knows what its numbers mean.
    """
    try:
        return Geometry("network", open_model(find_model(model), device))
    except UsageError as error:
        raise UsageError(error.message, remedy="another network, or --depth FILE with its map") from error
    except UnavailableError as error:
        # Only `vq3d depth-labels` downloads.
        remedy = (error.remedy or "").removeprefix("--download; or ").replace("--model", "--depth-model")
        raise UnavailableError(error.message, remedy=remedy or "--depth FILE") from error


def given_s(opened: OpenedScene, geometry: Geometry) -> Tensor | None:
    """The user's own geometry, s `[h, w]` of what the canonical camera sees; None where there is none.

    Raises:
        UsageError: A depth network for a scene without a photo.
        DataError: A map of another shape or without relief; a network that fails on this photo.
    """
    if geometry.kind == "network":
        if opened.photo is None:
            raise UsageError(f"there is no photo for a depth network ({opened.stem})", remedy="--depth FILE")
        # The network may have squashed the photo, so its map has a shape of its own.
        return user_s(_predicted(opened, geometry).to(opened.device), opened.camera, name=opened.stem)
    if (disparity := geometry.disparity) is None:
        return None
    # A map of what is shown, or of all of a photo that was cropped.
    shown = opened.camera.aspect
    aspects = [shown] if opened.whole_aspect is None else [shown, opened.whole_aspect]
    if check_shape(disparity, aspects, name=geometry.name) != shown:
        top, left, side = centre_square(*disparity.shape)
        disparity = disparity[top : top + side, left : left + side]
    return user_s(disparity.to(opened.device), opened.camera, name=geometry.name)


@torch.no_grad()
def photo_relief(opened: OpenedScene, photo: Tensor, geometry: Geometry = NERF) -> Tensor:
    """Normalised disparity of each pixel of a photo uint8 `[3, H, W]`: float32 `[H, W]`, on the scene's device.

    Raises `UsageError` or `DataError`: see `given_s`.
    """
    given = given_s(opened, geometry)
    if given is not None:
        return resized(given, photo.shape[1:]).clamp(0.0, 1.0)
    if geometry.kind == "nerf":
        return refined_disparity(quiet(canonical_view(opened).s[0]), photo)
    disparity = _predicted(opened, geometry).to(opened.device)
    if geometry.kind == "teacher":
        return refined_disparity(user_s(disparity, opened.camera, name=opened.stem), photo)
    return refined_disparity(fitted(disparity, canonical_view(opened).s[0], std_s=opened.camera.std_s), photo)


def with_relief(opened: OpenedScene, geometry: Geometry) -> OpenedScene:
    """A photo's scene with the network's relief, for what shall stand in it; as it is without network or photo."""
    if geometry.network is None or opened.photo is None or not opened.has_detail:
        return opened
    factor = min(1.0, RELIEF_PX / max(opened.photo.shape[1:]))
    photo = resize(opened.photo, *(max(1, round(side * factor)) for side in opened.photo.shape[1:]))
    texture = None if geometry.network.texture is None else geometry.network.texture(opened.photo[None].cpu())[0]
    return replace(opened, relief=photo_relief(opened, photo, geometry), texture=texture)


def canonical_view(opened: OpenedScene) -> SceneView:
    """The NeRF from the camera of the photo, squashed to a square."""
    side_px = min(DISPARITY_PX, opened.scene.planes.shape[2])
    return opened.scene.render(opened.frustum.camera(side_px, side_px), samples=SAMPLES)


def first_view(opened: OpenedScene) -> FirstView:
    """A scene as its canonical camera sees it, for masks and the ground under things."""
    side_px = min(DISPARITY_PX, 2 * opened.scene.planes.shape[2])
    view = opened.scene.render(opened.frustum.camera(side_px, side_px), samples=SAMPLES)
    s = view.s[0] if opened.relief is None else resized(opened.relief.to(view.s), (side_px, side_px))
    return FirstView(view.rgb[0].float() / 255.0, s)


def photo_view(opened: OpenedScene) -> FirstView:
    """The same with the colours and the edges of the scene's photo, if it has one."""
    if opened.photo is None or not opened.has_detail:
        return first_view(opened)
    side_px = min(RELIEF_PX, max(opened.photo.shape[1:]))
    photo = resize(opened.photo, side_px, side_px).to(opened.device)
    s = refined_disparity(quiet(canonical_view(opened).s[0]), photo) if opened.relief is None else opened.relief
    return FirstView(photo.float() / 255.0, resized(s, (side_px, side_px)))


def field_of(opened: OpenedScene) -> Field:
    """The field of a scene, its surfaces at its relief if it has one."""
    if opened.relief is None:
        return opened.field
    return moved_to(opened.field, canonical_view(opened).s[0], opened.relief, opened.frustum)


def _predicted(opened: OpenedScene, geometry: Geometry) -> Tensor:
    """The disparity of a photo by the network, float32 `[h, w]`, larger is nearer. Raises `DataError`."""
    assert geometry.network is not None and opened.photo is not None
    disparity = geometry.network.disparity(opened.photo[None].cpu())[0].float().cpu()
    if not torch.isfinite(disparity).all():
        raise DataError(f"the depth network gives values that are not finite ({opened.stem})", remedy="--depth FILE")
    return disparity


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
    data, suffix = read_file(path), path.suffix.lower()
    try:
        values: Any = _read_pfm(data) if suffix == ".pfm" else None
        if values is None:
            values = read_array(io.BytesIO(data), len(data)) if suffix == ".npy" else _read_picture(data, path)
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
    """A relative disparity map `[h, w]` as s, with the statistics of an average scene in training.

    Returns:
        `[h', w']` in [0, 1], at most 2048 pixels a side.

    Raises `DataError`: all of it, but for single pixels, is equally far.
    """
    factor = min(1.0, _MOST_PX / max(disparity.shape))
    smaller = resized(disparity[None], [max(1, round(side * factor)) for side in disparity.shape])
    s = align_canonical(smaller, mean=facts.mean_s, std=facts.std_s)[0]
    if float(s.max() - s.min()) < _LEAST_RELIEF:
        raise DataError(f"a disparity map without any relief ({name})", remedy=_NO_RELIEF)
    return s


def _read_picture(data: bytes, path: Path) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Values of a picture, turned by its EXIF orientation; a grey PNG or TIFF of more than 8 bits keeps them.

    Raises `DataError`: it cannot be decoded, or its colours differ: which of them is near, only its maker knows.
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
