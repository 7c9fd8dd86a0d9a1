"""Meshes of other programs, as surfaces that rays meet.

Reading and ray casting are trimesh's, with embree if it is there.

A mesh is brought into our axes (x right, y down, z away from the camera that looks at its front), its longest side to
length 1, and the middle of its lower face to the origin.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq3dcli.data.images import read_file
from vq3dcli.editing.placement import Surface, Vector
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.meshscenes.files import (
    FilesBeside,
    Floats,
    Look,
    UnreadExtensionError,
    decode_srgb,
    encode_srgb,
    load_parts,
    look_of,
)
from vq3dcli.rendering.cameras import Rays

_log = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".ply", ".obj", ".stl")
Up = Literal["y", "z"]

# A file's axes to ours. glTF: y is up and the front looks along +z; with z up, the front looks along -y.
_AXES = {"y": np.diag([1.0, -1.0, -1.0]), "z": np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])}
_AMBIENT = 0.55


@dataclass(frozen=True)
class Mesh:
    """A mesh in our axes."""

    triangles: Any  # trimesh's mesh
    looks: Sequence[Look]  # of its parts, whose triangles are numbered one after the other
    lower: Vector  # corner of its bounding box
    upper: Vector  # the other corner

    def surface(self, light: Vector) -> Surface:
        """What rays in the mesh's own coordinates see of it, lit from the direction `light` (of any length)."""
        from trimesh.triangles import points_to_barycentric

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
                with np.errstate(divide="ignore", invalid="ignore"):  # slivers without an area
                    shares = points_to_barycentric(corners, place, method="cramer")
                colour = _colours(self.looks, triangle, np.nan_to_num(shares, posinf=0.0, neginf=0.0))
                rgb[ray] = colour * (_AMBIENT + (1.0 - _AMBIENT) * lit)
            return torch.from_numpy(z_depth).to(rays.origin), torch.from_numpy(rgb).to(rays.origin)

        return seen


def is_mesh(text: str) -> bool:
    """Whether a name is that of a mesh."""
    return Path(text).suffix.lower() in SUFFIXES


def read_mesh(path: Path, *, up: Up = "y") -> Mesh:
    """Read a GLB, glTF, PLY, OBJ or STL file.

    Raises `InputMissingError`: there is no such file, or none of those that it cannot do without; `DataError`: it is
    damaged, has no triangles, or needs what cannot be read, such as compression.
    """
    import trimesh

    if not path.is_file():
        raise InputMissingError(f"no such file ({path})", remedy="check the path")
    data, suffix, beside = read_file(path), path.suffix.lower(), FilesBeside(path, path.parent, links=True)
    try:
        # Part by part: one mesh of all has no colours where some parts have a texture and others have none.
        parts, unseen = load_parts(data, suffix, beside)
        if not parts or not all(np.isfinite(part.vertices).all() for part in parts):
            raise ValueError("it has no triangles, or points that are no numbers")
        vertices = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts]) @ _AXES[up].T
        first = np.cumsum([0, *(len(part.vertices) for part in parts)])
        faces = np.concatenate([part.faces + start for part, start in zip(parts, first, strict=False)])
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError("triangles of points that it does not have")
        looks = [look_of(part, suffix) for part in parts]
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
    return Mesh(triangles, looks, (first[0], first[1], first[2]), (last[0], last[1], last[2]))


def _colours(looks: Sequence[Look], triangle: NDArray[np.int64], barycentric: Floats) -> Floats:
    """Colours `[M, 3]` in [0, 1] of points by triangle `[M]` and barycentric coordinates `[M, 3]`."""
    from trimesh.visual.color import uv_to_interpolated_color

    rgb = np.empty((len(triangle), 3))
    last = np.cumsum([len(look.colours) for look in looks])
    part_of = np.searchsorted(last, triangle, side="right")
    for index in np.unique(part_of):
        mine, look = part_of == index, looks[index]
        number, weights = triangle[mine] - (last[index] - len(look.colours)), barycentric[mine][..., None]
        if look.uv is None:
            rgb[mine] = look.shown((look.colours[number] * weights).sum(1))
            continue
        at = (look.uv[number] * weights).sum(1)
        texel = np.asarray(uv_to_interpolated_color(at, look.image), np.float64)[:, :3] / 255.0
        rgb[mine] = texel if look.factor is None else encode_srgb(decode_srgb(texel) * look.factor)
    return rgb
