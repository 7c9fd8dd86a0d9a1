"""Textured models of other programs, ready for the z-buffer.

Reading is trimesh's; which files a model may read is ours: those below the folder of all models. A model is brought
into our axes (x right, y down, z away from the camera that looks at its front), its longest side to length 1, and the
middle of its lower face to the origin. Foundations and roots go below it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vq3dcli.compiled import compiled
from vq3dcli.data.images import MAX_PIXELS
from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.meshscenes.raster import MAX_LEVELS, NOTHING, Bytes, Floats, Ints, Singles
from vq3dcli.meshscenes.ray_mesh import decode_srgb, encode_srgb

MODEL_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".dae")
MAX_TRIANGLES = 1_000_000
TEXTURE_PX = 256  # larger textures are shrunk on reading

_CUTOFF = 128
_CREASE = 0.6  # cosine: faces that meet at less than 53 degrees are smooth across their edge
_MAX_NEIGHBOURS = 48
_BURIED = (0.01, 0.45)  # shares of the height
_GREY = 0.7
_MAX_REPEATS = 1000.0
# In glTF, colours are linear light but for those of textures.
_LINEAR = (".glb", ".gltf")
_TO_OURS = np.array([1.0, -1.0, -1.0])  # in all these formats y is up, and the front looks along +z


class Texture(NamedTuple):
    """A picture at all its sizes.

    Attributes:
        texels: uint8 `[C, 4]`: rows of the largest size, of the next one, ...
        sizes: (width, height) of each.
        cutoff: Alpha from which on a texel is there; 0 where all are.
    """

    texels: Bytes
    sizes: list[tuple[int, int]]
    cutoff: int


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
    """Read one model.

    Args:
        path: A file below `root` with one of MODEL_SUFFIXES.
        root: No file outside of it is read.

    Raises:
        DataError: It is no model of use; the message is the reason.
        UnavailableError: trimesh is not installed.
    """
    try:
        import trimesh
    except ImportError as error:
        raise UnavailableError("meshes need trimesh", remedy="pip install 'vq3d[mesh]'") from error
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it logs what `_Files` raises
    files = _Files(path, root)
    try:
        data = files.open(path, path.name)
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type=path.suffix.lower()[1:], resolver=files.resolver(trimesh.resolvers.Resolver)
        )
        parts: list[Any] = [part for part in scene.dump() if len(getattr(part, "faces", ()))]
        problem = files.problem or _problem(parts)
        model = None if problem else _joined(parts, linear=path.suffix.lower() in _LINEAR)
    except MemoryError:
        raise
    except Exception as error:
        # Its readers raise almost any type on damaged bytes.
        reason = files.problem or " ".join(str(error).split())[:200] or type(error).__name__
        if path.suffix.lower() == ".dae" and isinstance(error, (ImportError, ValueError)) and "collada" in reason:
            reason = "DAE files need pycollada (pip install pycollada)"
        raise DataError(f"cannot be read: {reason}" if not files.problem else reason, remedy="another file") from error
    if model is None:
        raise DataError(problem or "", remedy="another file")
    return ReadModel(model, files.sha256, sorted(files.read))


class _Files:
    """The files that one model reads, with their hash and what is wrong with them."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path, self._root = path, root.resolve()
        self._digest = hashlib.sha256()
        self.read: set[str] = set()
        self.problem: str | None = None

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def open(self, path: Path, name: str) -> bytes:
        """The bytes of a file that errors call `name`."""
        real = path.resolve()
        if not real.is_relative_to(self._root):
            self.problem = self.problem or f"outside of the folder: {name[:80]}"
            raise ValueError(self.problem)
        try:
            data = real.read_bytes()
        except OSError as error:
            self.problem = self.problem or f"missing file: {name[:80]}"
            raise ValueError(self.problem) from error
        self._digest.update(len(data).to_bytes(8, "little") + data)
        return data

    def resolver(self, base: Any) -> Any:
        """Trimesh's way of asking for other files by names relative to the model."""
        files = self

        class Confined(base):  # type: ignore[misc]
            def __init__(self) -> None:
                pass

            def get(self, name: str) -> bytes:
                if name.startswith(("/", "\\")) or ":" in name[:8]:
                    files.problem = files.problem or f"outside of the folder: {name[:80]}"
                    raise ValueError(files.problem)
                plain = files._path.parent / name.strip()
                path = plain if plain.exists() else files._path.parent / urllib.parse.unquote(name.strip())
                data = files.open(path, name.strip())
                files.read.add(path.resolve().relative_to(files._root).as_posix())
                return data

            def write(self, name: str, data: Any) -> None:
                raise NotImplementedError

            def namespaced(self, namespace: str) -> Any:
                return self

            def keys(self) -> list[str]:
                return []

        return Confined()


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


def _joined(parts: Sequence[Any], *, linear: bool) -> Model | None:
    corners, uv, colour, texture = [], [], [], []
    textures: list[Texture] = []
    numbers: dict[Any, int] = {}
    for part in parts:
        faces = np.asarray(part.faces)
        points = np.asarray(part.vertices, np.float64)[faces] * _TO_OURS
        surface = _surface(part, faces, linear=linear)
        number = NOTHING
        if surface.texture is not None:
            key = surface.key
            if key not in numbers:
                numbers[key] = len(textures)
                textures.append(surface.texture())
            number = numbers[key]
        corners.append(points)
        uv.append(surface.uv)
        colour.append(surface.colour)
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
        textures=textures,
    )


class _Surface(NamedTuple):
    """How one part looks: `uv` `[T, 3, 2]`, v downwards, `colour` `[T, 3, 3]`, and how to make its texture."""

    uv: Floats
    colour: Bytes
    key: Any = None
    texture: Callable[[], Texture] | None = None


def _surface(part: Any, faces: NDArray[np.int64], *, linear: bool) -> _Surface:
    shown = encode_srgb if linear else np.asarray
    visual = part.visual
    no_uv = np.zeros((len(faces), 3, 2))
    plain = np.full((len(faces), 3, 3), round(255 * _GREY), np.uint8)
    if visual.kind == "vertex":
        of_vertex = shown(np.asarray(visual.vertex_colors, np.float64)[:, :3] / 255.0)
        return _Surface(no_uv, _bytes(of_vertex[faces]))
    if visual.kind == "face":
        of_face = shown(np.asarray(visual.face_colors, np.float64)[:, :3] / 255.0)
        return _Surface(no_uv, np.repeat(_bytes(of_face)[:, None], 3, 1))
    if visual.kind != "texture":
        return _Surface(no_uv, plain)
    material = visual.material
    pbr = hasattr(material, "baseColorTexture")
    image = material.baseColorTexture if pbr else material.image
    factor = np.asarray(material.main_color, np.float64)[:3] / 255.0
    if image is None or visual.uv is None:
        return _Surface(no_uv, np.broadcast_to(_bytes(shown(factor)), plain.shape).copy())
    tinted = pbr and material.baseColorFactor is not None
    mode = (material.alphaMode or "OPAQUE") if pbr else "MASK"
    cutoff = round(255 * (material.alphaCutoff if pbr and material.alphaCutoff is not None else _CUTOFF / 255))
    cutoff = 0 if mode == "OPAQUE" else _CUTOFF if mode == "BLEND" else max(1, cutoff)

    def texture() -> Texture:
        rgba = _pixels(image)
        if tinted:
            rgba[..., :3] = _bytes(encode_srgb(decode_srgb(rgba[..., :3] / 255.0) * factor))
        holes = cutoff if (rgba[..., 3] < cutoff).any() else 0
        if not holes:
            rgba[..., 3] = 255
        return make_texture(rgba, cutoff=holes)

    uv = np.asarray(visual.uv, np.float64)[faces]
    # Pictures repeat, so that small numbers, which single precision holds well, say the same.
    uv = (uv - np.floor(uv.min(1, keepdims=True))).clip(0.0, _MAX_REPEATS)
    uv[..., 1] = 1.0 - uv[..., 1]  # trimesh counts v upwards, as OBJ does
    key = (id(image), cutoff, tuple(factor) if tinted else None)
    return _Surface(uv, np.full_like(plain, 255), key, texture)


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
    out = np.empty((len(points), 3, 3), np.float32)
    _mean_normals(area, unit, place.reshape(-1, 3), order, start, out)
    return out


@compiled
def _mean_normals(
    area: Floats,
    unit: Floats,
    place: NDArray[np.int64],
    order: NDArray[np.int64],
    start: NDArray[np.int64],
    out: Singles,
) -> None:
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
