"""Textured models of other programs, ready for the z-buffer.

Reading is trimesh's; which files a model may read is ours: those below the folder of all models. A model is brought
into our axes (x right, y down, z away from the camera that looks at its front), its longest side to length 1, and the
middle of its lower face to the origin. Foundations and roots go below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vq3dcli.compiled import compiled
from vq3dcli.data.pillow import MAX_PIXELS
from vq3dcli.errors import DataError
from vq3dcli.meshscenes.files import FilesBeside, Look, decode_srgb, encode_srgb, load_parts, look_of
from vq3dcli.meshscenes.raster import MAX_LEVELS, NOTHING, Bytes, Floats, Ints, Singles

MODEL_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".dae")
MAX_TRIANGLES = 1_000_000
TEXTURE_PX = 256  # larger textures are shrunk on reading

_CUTOFF = 128
_CREASE = 0.6  # cosine: faces that meet at less than 53 degrees are smooth across their edge
_MAX_NEIGHBOURS = 48
_BURIED = (0.01, 0.45)  # shares of the height
_MAX_REPEATS = 1000.0
_TO_OURS = np.array([1.0, -1.0, -1.0])  # in all these formats y is up, and the front looks along +z


class Texture(NamedTuple):
    """A picture at all its sizes."""

    texels: Bytes  # uint8 `[C, 4]`: rows of the largest size, of the next one, ...
    sizes: list[tuple[int, int]]  # (width, height) of each
    cutoff: int  # alpha from which on a texel is there; 0 where all are


class Model(NamedTuple):
    """T triangles of a model; `corners` to `texture` as in `raster.Triangles`, its textures by its own numbers."""

    corners: Singles
    normals: Singles
    uv: Singles
    colour: Bytes
    texture: Ints
    textures: list[Texture]

    @property
    def size(self) -> Singles:
        """Width, height and length `[3]`; the longest is 1."""
        flat = self.corners.reshape(-1, 3)
        return flat.max(0) - flat.min(0)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        arrays = (self.corners, self.normals, self.uv, self.colour, self.texture)
        return sum(a.nbytes for a in arrays) + sum(t.texels.nbytes for t in self.textures)


class ReadModel(NamedTuple):
    """A model, the hash of all bytes that it was read from, and the other files among those, below the root."""

    model: Model
    sha256: str
    files: list[str]


def make_texture(rgba: Bytes, *, cutoff: int = 0, largest_px: int = TEXTURE_PX) -> Texture:
    """A picture `[H, W, 4]` at all sizes from `largest_px` down, each the mean of two by two texels of the last."""
    level = rgba.astype(np.float32)
    level[..., :3] *= level[..., 3:] / 255.0  # what is cut out must not colour what is not
    sizes: list[tuple[int, int]] = []
    rows: list[Bytes] = []
    while True:
        height, width = level.shape[:2]
        if max(height, width) <= largest_px and len(sizes) < MAX_LEVELS:
            alpha = np.maximum(level[..., 3:], 1e-3)
            plain = np.concatenate([level[..., :3] * (255.0 / alpha), level[..., 3:]], -1)
            rows.append((plain + 0.5).clip(0, 255).astype(np.uint8).reshape(-1, 4))
            sizes.append((width, height))
        if height == 1 and width == 1:
            return Texture(np.concatenate(rows), sizes, cutoff)
        level = _halved(_halved(level, 0), 1)


def _halved(level: Singles, axis: int) -> Singles:
    """Means of two neighbours; of an odd number the last one stays, and so does a single one."""
    count = level.shape[axis]
    if count == 1:
        return level
    first = np.take(level, np.arange(0, count, 2), axis)
    second = np.take(level, np.minimum(np.arange(1, count + 1, 2), count - 1), axis)
    return (first + second) * np.float32(0.5)


def read_model(path: Path, root: Path) -> ReadModel:
    """Read one model, a file below `root` with one of MODEL_SUFFIXES; no file outside of that is read.

    Raises `DataError`: it is no model of use; the message is the reason.
    """
    files, suffix, problem, model = FilesBeside(path, root), path.suffix.lower(), None, None
    try:
        parts, _ = load_parts(files.get(path.name), suffix, files)
        problem = _problem(parts)
        model = None if problem else _joined(parts, suffix)
    except MemoryError:
        raise
    except Exception as error:
        # Its readers raise almost any type on damaged bytes.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if suffix == ".dae" and isinstance(error, (ImportError, ValueError)) and "collada" in reason:
            reason = "DAE files need pycollada (pip install pycollada)"
        problem = f"cannot be read: {reason}"
    if files.missing:
        problem = f"a file that is missing, or outside of the folder: {files.missing[0][:80]}"
    if model is None or problem:
        raise DataError(problem or "", remedy="another file")
    digest = hashlib.sha256()
    for data in files.read.values():
        digest.update(len(data).to_bytes(8, "little") + data)
    return ReadModel(model, digest.hexdigest(), sorted(list(files.read)[1:]))


def _problem(parts: Sequence[Any]) -> str | None:
    if not parts:
        return "no triangles"
    total = sum(len(part.faces) for part in parts)
    if total > MAX_TRIANGLES:
        return f"too many triangles: {total}, at most {MAX_TRIANGLES}"
    for part in parts:
        uv = getattr(part.visual, "uv", None)
        if not np.isfinite(part.vertices).all() or (uv is not None and not np.isfinite(uv).all()):
            return "points that are no numbers"
    if not any(_has_colour(part.visual) for part in parts):
        return "no texture and no colour"
    return None


def _has_colour(visual: Any) -> bool:
    if visual.kind in ("vertex", "face"):
        return True
    if visual.kind != "texture":
        return False
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is not None:
        return visual.uv is not None
    return getattr(material, "baseColorFactor", None) is not None or getattr(material, "diffuse", None) is not None


def _joined(parts: Sequence[Any], suffix: str) -> Model:
    corners, uv, colour, texture = [], [], [], []
    textures: dict[Any, Texture] = {}
    for part in parts:
        look, faces = look_of(part, suffix), np.asarray(part.faces)
        number = NOTHING
        if look.uv is not None:
            cutoff = _cutoff(look.material)
            key = (id(look.image), cutoff, None if look.factor is None else tuple(look.factor))
            if key not in textures:
                textures[key] = _texture(look, cutoff)
            number = list(textures).index(key)
        corners.append(np.asarray(part.vertices, np.float64)[faces] * _TO_OURS)
        uv.append(_repeated(look.uv) if look.uv is not None else np.zeros((len(faces), 3, 2)))
        colour.append(_bytes(look.shown(look.colours)))
        texture.append(np.full(len(faces), number, np.int32))
    points = np.concatenate(corners)
    flat = points.reshape(-1, 3)
    lower, upper = flat.min(0), flat.max(0)
    longest = float((upper - lower).max())
    if longest <= 0.0:
        raise ValueError("without extent")
    base = 0.0 if _is_buried(points) else upper[1]
    foot = np.array([0.5 * (lower[0] + upper[0]), base, 0.5 * (lower[2] + upper[2])])
    points = (points - foot) / longest
    return Model(
        corners=points.astype(np.float32),
        normals=_smooth(points),
        uv=np.concatenate(uv).astype(np.float32),
        colour=np.concatenate(colour),
        texture=np.concatenate(texture),
        textures=list(textures.values()),
    )


def _repeated(uv: Floats) -> Floats:
    # Pictures repeat, so that small numbers, which single precision holds well, say the same.
    uv = (uv - np.floor(uv.min(1, keepdims=True))).clip(0.0, _MAX_REPEATS)
    uv[..., 1] = 1.0 - uv[..., 1]  # trimesh counts v upwards, as OBJ does
    return uv


def _cutoff(material: Any) -> int:
    pbr = hasattr(material, "baseColorTexture")
    mode = (material.alphaMode or "OPAQUE") if pbr else "MASK"
    cutoff = round(255 * (material.alphaCutoff if pbr and material.alphaCutoff is not None else _CUTOFF / 255))
    return 0 if mode == "OPAQUE" else _CUTOFF if mode == "BLEND" else max(1, cutoff)


def _texture(look: Look, cutoff: int) -> Texture:
    rgba = _pixels(look.image)
    if look.factor is not None:
        rgba[..., :3] = _bytes(encode_srgb(decode_srgb(rgba[..., :3] / 255.0) * look.factor))
    holes = cutoff if (rgba[..., 3] < cutoff).any() else 0
    if not holes:
        rgba[..., 3] = 255
    return make_texture(rgba, cutoff=holes)


def _pixels(image: Image.Image) -> Bytes:
    """uint8 `[H, W, 4]`, at most about twice as large as needed."""
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise ValueError(f"a texture of {image.size[0]} x {image.size[1]} pixels")
    most = 2 * TEXTURE_PX
    if max(image.size) > most:
        image = image.convert("RGBA").reduce(-(-max(image.size) // most))
    return np.array(image.convert("RGBA"))


def _is_buried(points: Floats) -> bool:
    """Whether a model has foundations or roots below the ground at y = 0: then no face of it looks down there."""
    heights = points[..., 1]  # downwards
    top, bottom = float(heights.min()), float(heights.max())
    if not _BURIED[0] < bottom / max(bottom - top, 1e-12) < _BURIED[1]:
        return False
    area = _areas(points)
    below = (heights.min(1) > -0.02 * (bottom - top)) & (area[:, 1] > 0.7 * np.sqrt((area * area).sum(1)))
    size = np.ptp(points.reshape(-1, 3), 0)
    return bool(0.5 * area[below, 1].sum() < 0.02 * size[0] * size[2])


def _areas(points: Floats) -> Floats:
    """Normals of triangles, twice as long as their area `[T, 3]`."""
    return np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])


def _bytes(values: Floats) -> Bytes:
    return (values * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def _smooth(points: Floats) -> Singles:
    """Unit normals at corners `[T, 3, 3]`: of the face and of those beside it that it meets at a shallow angle."""
    grid = np.round(points.reshape(-1, 3) * 20000.0).astype(np.int64)
    _, place = np.unique((grid[:, 0] * 100003 + grid[:, 1]) * 100003 + grid[:, 2], return_inverse=True)
    place = place.reshape(-1)
    order = np.argsort(place, kind="stable")
    start = np.searchsorted(place[order], np.arange(place.max() + 2))
    area = _areas(points)
    unit = area / np.maximum(np.sqrt((area * area).sum(1, keepdims=True)), 1e-20)
    return _mean_normals(area, unit, place.reshape(-1, 3), order, start)


@compiled
def _mean_normals(
    area: Floats, unit: Floats, place: NDArray[np.int64], order: NDArray[np.int64], start: NDArray[np.int64]
) -> Singles:
    out = np.empty((len(area), 3, 3), np.float32)
    for t in range(len(area)):
        for k in range(3):
            p = place[t, k]
            x, y, z = area[t, 0], area[t, 1], area[t, 2]
            for i in range(start[p], min(start[p + 1], start[p] + _MAX_NEIGHBOURS)):
                other = order[i] // 3
                cosine = unit[t, 0] * unit[other, 0] + unit[t, 1] * unit[other, 1] + unit[t, 2] * unit[other, 2]
                if other != t and cosine > _CREASE:
                    x += area[other, 0]
                    y += area[other, 1]
                    z += area[other, 2]
            length = max((x * x + y * y + z * z) ** 0.5, 1e-20)
            out[t, k, 0], out[t, k, 1], out[t, k, 2] = x / length, y / length, z / length
    return out
