"""Meshes of other programs, as surfaces that rays meet.

Reading and ray casting are trimesh's, with embree if it is there.

A mesh is brought into our axes (x right, y down, z away from the camera that looks at its front), its longest side to
length 1, and the middle of its lower face to the origin.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq3dcli.data.images import read_file
from vq3dcli.editing.placement import Surface, Vector
from vq3dcli.errors import DataError, InputMissingError, UnavailableError
from vq3dcli.meshscenes.files import MOST_BYTES, FilesBeside, UnreadExtensionError, as_utf8, check_gltf, silent_trimesh
from vq3dcli.rendering.cameras import Rays

_log = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".ply", ".obj", ".stl")
Up = Literal["y", "z"]
Floats = NDArray[np.float64]
_Colour = Callable[[NDArray[np.int64], Floats], Floats]

# A file's axes to ours. glTF: y is up and the front looks along +z; with z up, the front looks along -y.
_AXES = {"y": np.diag([1.0, -1.0, -1.0]), "z": np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])}
# In glTF, colours are linear light but for those of textures.
_LINEAR = (".glb", ".gltf")
_GREY = 0.7
_AMBIENT = 0.55


@dataclass(frozen=True)
class Mesh:
    """A mesh in our axes.

    Attributes:
        triangles: trimesh's mesh.
        colour: Colours `[M, 3]` in [0, 1] of points by triangle `[M]` and barycentric coordinates `[M, 3]`.
        lower: Corner of its bounding box.
        upper: The other corner.
    """

    triangles: Any
    colour: _Colour
    lower: Vector
    upper: Vector

    def surface(self, light: Vector) -> Surface:
        """What rays in the mesh's own coordinates see of it, lit from the direction `light` (of any length)."""
        to_light = np.asarray(light) / np.linalg.norm(light)

        def seen(rays: Rays) -> tuple[Tensor, Tensor]:
            origin = rays.origin[0].double().cpu().numpy()
            direction = rays.direction[0].double().cpu().numpy()
            z_depth = np.full(len(origin), np.inf)
            rgb = np.zeros((len(origin), 3))
            triangle, ray, place = self.triangles.ray.intersects_id(
                origin, direction, multiple_hits=False, return_locations=True
            )
            if len(ray):
                z_depth[ray] = ((place - origin[ray]) * direction[ray]).sum(1) / (direction[ray] ** 2).sum(1)
                normal = self.triangles.face_normals[triangle]
                # A side that looks away is lit as if it were turned round: many files have no inside.
                towards = -np.sign((normal * direction[ray]).sum(1, keepdims=True))
                lit = np.clip((towards * normal * to_light).sum(1, keepdims=True), 0.0, 1.0)
                corners = self.triangles.triangles[triangle]
                rgb[ray] = self.colour(triangle, _barycentric(corners, place)) * (_AMBIENT + (1.0 - _AMBIENT) * lit)
            return torch.from_numpy(z_depth).to(rays.origin), torch.from_numpy(rgb).to(rays.origin)

        return seen


def is_mesh(text: str) -> bool:
    """Whether a name is that of a mesh."""
    return Path(text).suffix.lower() in SUFFIXES


def read_mesh(path: Path, *, up: Up = "y") -> Mesh:
    """Read a GLB, glTF, PLY, OBJ or STL file.

    Args:
        path: The file.
        up: Which of the file's axes points up.

    Raises:
        InputMissingError: There is no such file, or none of those that it cannot do without.
        UnavailableError: trimesh is not installed.
        DataError: It is damaged, has no triangles, or needs what cannot be read, such as compression.
    """
    try:
        import trimesh
    except ImportError as error:
        raise UnavailableError("meshes need trimesh", remedy="pip install 'vq3d[mesh]'") from error
    if not path.is_file():
        raise InputMissingError(f"no such file ({path})", remedy="check the path")
    data, suffix, beside = read_file(path), path.suffix.lower(), FilesBeside(path)
    resolver: Any = beside  # trimesh's type of it is a class, and what it calls are two methods
    try:
        unseen = check_gltf(data) if suffix in _LINEAR else []
        if suffix not in _LINEAR and len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        data = as_utf8(data) if suffix == ".obj" else data
        with silent_trimesh():
            loaded = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], resolver=resolver)
            # Part by part: one mesh of all has no colours where some parts have a texture and others have none.
            parts: list[Any] = [part for part in loaded.dump() if len(getattr(part, "faces", ()))]
        if not parts or not all(np.isfinite(part.vertices).all() for part in parts):
            raise ValueError("it has no triangles, or points that are no numbers")
        vertices = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts]) @ _AXES[up].T
        first = np.cumsum([0, *(len(part.vertices) for part in parts)])
        faces = np.concatenate([part.faces + start for part, start in zip(parts, first, strict=False)])
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError("triangles of points that it does not have")
        colour = _joined(parts, linear=suffix in _LINEAR)
    except UnreadExtensionError as error:
        raise DataError(f"cannot read the mesh ({path}): {error}", remedy="export it without compression") from error
    except FileNotFoundError as error:
        missing = f"no such file beside the mesh ({beside.missing[-1]}), which {path} names"
        raise InputMissingError(missing, remedy="put it into the folder of the mesh") from error
    except Exception as error:
        # Its readers raise almost any type on damaged bytes.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot read the mesh ({path}): {reason}", remedy="GLB, PLY, OBJ or STL") from error
    unseen += [f"there is no {name} beside it, which it names" for name in beside.missing]
    for text in dict.fromkeys(unseen):
        _log.warning("the mesh may look wrong (%s): %s", path, text)
    lower, upper = vertices.min(0), vertices.max(0)
    size = float((upper - lower).max())
    if size <= 0.0:
        raise DataError(f"a mesh without extent ({path})", remedy="another file")
    foot = np.array([0.5 * (lower[0] + upper[0]), upper[1], 0.5 * (lower[2] + upper[2])])
    triangles = trimesh.Trimesh((vertices - foot) / size, faces, process=False)
    first, last = triangles.bounds.tolist()
    return Mesh(triangles, colour, (first[0], first[1], first[2]), (last[0], last[1], last[2]))


def _barycentric(corners: Floats, points: Floats) -> Floats:
    """Barycentric coordinates `[M, 3]` of points in triangles `[M, 3, 3]`."""
    a, b, p = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], points - corners[:, 0]
    aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
    pa, pb = (p * a).sum(1), (p * b).sum(1)
    # Rays do not meet a triangle without area; the floor only keeps rounding from dividing by zero.
    area = np.maximum(aa * bb - ab * ab, 1e-30)
    v, w = (bb * pa - ab * pb) / area, (aa * pb - ab * pa) / area
    return np.stack([1.0 - v - w, v, w], 1)


def _joined(parts: Sequence[Any], *, linear: bool) -> _Colour:
    """Colours of several meshes, whose triangles are numbered one after the other."""
    colours = [_colours(part, linear=linear) for part in parts]
    last = np.cumsum([len(part.faces) for part in parts])

    def colour(triangle: NDArray[np.int64], barycentric: Floats) -> Floats:
        rgb = np.empty((len(triangle), 3))
        part_of = np.searchsorted(last, triangle, side="right")
        for index in np.unique(part_of):
            mine = part_of == index
            start = last[index] - len(parts[index].faces)
            rgb[mine] = colours[index](triangle[mine] - start, barycentric[mine])
        return rgb

    return colour


def _colours(mesh: Any, *, linear: bool) -> _Colour:
    """Colours by triangle and barycentric coordinates: of a texture, of corners, of faces, or grey.

    Args:
        mesh: trimesh's.
        linear: Whether colours that are not a texture's are linear light, to be encoded as sRGB.
    """
    from trimesh.visual.color import uv_to_interpolated_color
    from trimesh.visual.material import PBRMaterial

    shown = encode_srgb if linear else np.asarray
    faces, visual = np.asarray(mesh.faces), mesh.visual
    if visual.kind == "texture":
        material = visual.material
        pbr = isinstance(material, PBRMaterial)
        image = material.baseColorTexture if pbr else material.image
        factor = np.asarray(material.main_color, np.float64)[:3] / 255.0
        if image is None or visual.uv is None:
            plain = shown(factor)
            return lambda triangle, barycentric: np.broadcast_to(plain, (len(triangle), 3))
        uv = np.asarray(visual.uv)

        def textured(triangle: NDArray[np.int64], barycentric: Floats) -> Floats:
            at = (uv[faces[triangle]] * barycentric[..., None]).sum(1)
            rgb = np.asarray(uv_to_interpolated_color(at, image), np.float64)[:, :3] / 255.0
            # Other formats' diffuse colour beside a texture is a placeholder more often than a tint.
            return encode_srgb(decode_srgb(rgb) * factor) if pbr and material.baseColorFactor is not None else rgb

        return textured
    if visual.kind == "vertex":
        of_vertex = np.asarray(visual.vertex_colors, np.float64)[:, :3] / 255.0
        return lambda triangle, barycentric: shown((of_vertex[faces[triangle]] * barycentric[..., None]).sum(1))
    if visual.kind == "face":
        of_face = shown(np.asarray(visual.face_colors, np.float64)[:, :3] / 255.0)
        return lambda triangle, barycentric: of_face[triangle]
    return lambda triangle, barycentric: np.full((len(triangle), 3), _GREY)


def encode_srgb(rgb: Floats) -> Floats:
    """Linear light in [0, 1] as sRGB (IEC 61966-2-1)."""
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb.clip(min=0.0031308) ** (1.0 / 2.4) - 0.055)


def decode_srgb(rgb: Floats) -> Floats:
    """The sRGB values in [0, 1] as linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
