"""Files of meshes, which trimesh reads: what they claim, the files that they name, and how their parts look."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GREY = 0.7
_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
# Of values that no bytes stand for: all zero, or a few of them given.
_MOST_ZEROS = 1 << 24
# trimesh takes a gigabyte for as many points and triangles, or for a file of that size without textures.
_MOST_ELEMENTS = 10_000_000
MOST_BYTES = 1 << 27
# What a file may require and still be read as it is meant.
_READ = {"KHR_mesh_quantization", "EXT_texture_webp"}
# What changes colours alone: such a file is read, with a warning where the change is one that is not made.
_LOOKS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_", "KHR_lights_")
_UNSEEN_LOOKS = {
    "KHR_texture_transform": "its textures are not repeated, moved or turned",
    "KHR_materials_pbrSpecularGlossiness": "its colours may be missing",
    "KHR_texture_basisu": "its textures are missing",
    "MSFT_texture_dds": "its textures are missing",
}


class UnreadExtensionError(ValueError):
    """A glTF file needs something that nobody here can read."""


class FilesBeside:
    """The files of a mesh below a folder, by the names that it has for them: what trimesh calls a resolver.

    `links` in the folder may lead out of it: to a cache, or an annex.
    """

    def __init__(self, path: Path, root: Path, *, links: bool = False) -> None:
        self.file_name = path.name  # of the mesh
        self.read: dict[str, bytes] = {}  # what was read, by paths below the root, in that order
        self.missing: list[str] = []  # names that were asked for and are not there, or not below the root
        self._place = os.path.abspath if links else os.path.realpath
        self._folder, self._root = path.parent, Path(self._place(root))

    def get(self, name: str) -> bytes:
        """The bytes of a file; text is made UTF-8. Raises `FileNotFoundError`."""
        plain = name.strip()
        # Names are those of a web address in glTF, of Windows in many OBJ files, and of another computer in some.
        for text in (plain, unquote(plain), plain.replace("\\", "/"), PureWindowsPath(plain).name):
            path = Path(self._place(self._folder / text))
            if text and path.is_relative_to(self._root) and path.is_file():
                data = self.read[path.relative_to(self._root).as_posix()] = path.read_bytes()
                return as_utf8(data) if path.suffix.lower() == ".mtl" else data
        self.missing.append(plain)
        raise FileNotFoundError(f"no such file below the folder: {plain[:80]}")

    __getitem__ = get


def as_utf8(data: bytes) -> bytes:
    """Text as UTF-8; what is not is taken for Latin-1, in which any bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1").encode()
    return data


def load_parts(data: bytes, suffix: str, resolver: FilesBeside) -> tuple[list[Any], list[str]]:
    """The parts of a mesh that have triangles, and what of it will not look as meant, a line each.

    trimesh reads them; it raises almost any type on damaged bytes. Raises as `check_gltf`, and `ValueError`: the file
    is too large.
    """
    import trimesh

    is_gltf = suffix in (".glb", ".gltf")
    if not is_gltf and len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    unseen = check_gltf(data) if is_gltf else []
    with _silent_trimesh():
        file = io.BytesIO(as_utf8(data) if suffix == ".obj" else data)
        scene = trimesh.load_scene(file, file_type=suffix[1:], resolver=resolver)
        return [part for part in scene.dump() if len(getattr(part, "faces", ()))], unseen


@contextlib.contextmanager
def _silent_trimesh() -> Iterator[None]:
    """Keep what trimesh logs, tracebacks included, away from the user: we say what matters."""
    logger, nobody = logging.getLogger("trimesh"), logging.NullHandler()
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(nobody)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(nobody)


class Look(NamedTuple):
    """How the T triangles of a part look."""

    colours: Floats  # of their corners in [0, 1], `[T, 3, 3]`
    linear: bool = False  # these are linear light, to be shown as sRGB
    image: Any = None  # the texture, or None
    uv: Floats | None = None  # of the corners on it, v upwards, `[T, 3, 2]`, or None
    factor: Floats | None = None  # what the texture is multiplied by in linear light `[3]`, or None
    material: Any = None  # trimesh's, where there is one

    def shown(self, colours: Floats) -> Floats:
        """Colours of triangles as sRGB."""
        return encode_srgb(colours) if self.linear else colours


def look_of(part: Any, suffix: str) -> Look:
    """The look of a part of a file: of a texture, of corners, of faces, or grey."""
    # In glTF, colours are linear light but for those of textures.
    faces, visual, linear = np.asarray(part.faces), part.visual, suffix in (".glb", ".gltf")
    shape = (len(faces), 3, 3)
    if visual.kind == "vertex":
        return Look(np.asarray(visual.vertex_colors, np.float64)[faces][..., :3] / 255.0, linear)
    if visual.kind == "face":
        of_face = np.asarray(visual.face_colors, np.float64)[:, None, :3] / 255.0
        return Look(np.broadcast_to(of_face, shape), linear)
    if visual.kind != "texture":
        return Look(np.full(shape, _GREY))
    material = visual.material
    pbr = hasattr(material, "baseColorTexture")
    image = material.baseColorTexture if pbr else material.image
    factor = np.asarray(material.main_color, np.float64)[:3] / 255.0
    if image is None or visual.uv is None:
        return Look(np.broadcast_to(factor, shape), linear)
    # Beside a texture, the diffuse colour of other formats is seldom meant to tint it.
    tinted = pbr and material.baseColorFactor is not None
    uv = np.asarray(visual.uv, np.float64)[faces]
    return Look(np.ones(shape), False, image, uv, factor if tinted else None, material)


def encode_srgb(rgb: Floats) -> Floats:
    """Linear light in [0, 1] as sRGB (IEC 61966-2-1)."""
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb.clip(min=0.0031308) ** (1.0 / 2.4) - 0.055)


def decode_srgb(rgb: Floats) -> Floats:
    """The sRGB values in [0, 1] as linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def check_gltf(data: bytes) -> list[str]:
    """Look at what a glTF or GLB file claims before memory is taken for it; what will not look as meant, a line each.

    Raises `UnreadExtensionError`: it requires an extension that changes more than looks; `ValueError`: it is damaged,
    or claims more values than it has bytes for.
    """
    try:
        tree = _tree(data)
        required = list(tree.get("extensionsRequired", []))
        for name in required:
            if name not in _READ and not name.startswith(_LOOKS):
                raise UnreadExtensionError(f"it needs the glTF extension {name}")
        for accessor in tree.get("accessors", []):
            _check_accessor(accessor, tree.get("bufferViews", []))
        _check_elements(tree)
        used = {*required, *tree.get("extensionsUsed", [])}
    except (KeyError, IndexError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise ValueError(f"damaged glTF ({type(error).__name__}: {error})") from error
    return [f"{text} ({name})" for name, text in _UNSEEN_LOOKS.items() if name in used]


def _tree(data: bytes) -> Mapping[str, Any]:
    if data[:4] == b"glTF":
        (length,) = struct.unpack_from("<I", data, 12)
        data = data[20 : 20 + length]
    tree = json.loads(data)
    if not isinstance(tree, dict):
        raise ValueError("damaged glTF: its JSON is no object")
    return tree


def _check_accessor(accessor: Mapping[str, Any], views: list[Mapping[str, Any]]) -> None:
    count = accessor["count"]
    if type(count) is not int or count < 0:
        raise ValueError(f"damaged glTF: {count!r} values")
    size = _COMPONENT_BYTES[accessor["componentType"]] * _COMPONENTS[accessor["type"]]
    if "bufferView" not in accessor:
        most = _MOST_ZEROS
    else:
        view = views[accessor["bufferView"]]
        stride = max(size, view.get("byteStride") or 0)
        most = (view["byteLength"] - accessor.get("byteOffset", 0) - size) // stride + 1
    if count > max(0, most):
        raise ValueError(f"damaged glTF: it claims {count} values and has bytes for {max(0, most)}")


def _check_elements(tree: Mapping[str, Any]) -> None:
    def elements(primitive: Mapping[str, Any]) -> int:
        accessors = primitive["attributes"].get("POSITION"), primitive.get("indices")
        return sum(tree["accessors"][i]["count"] // n for i, n in zip(accessors, (1, 3), strict=True) if i is not None)

    each = [sum(map(elements, mesh["primitives"])) for mesh in tree.get("meshes", [])]
    # A mesh is copied for each node that it stands at.
    if sum(each[node["mesh"]] for node in tree.get("nodes", []) if "mesh" in node) > _MOST_ELEMENTS:
        raise ValueError(f"more than {_MOST_ELEMENTS // 10**6} million points and triangles")
