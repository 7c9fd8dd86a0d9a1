"""The visible surface as a textured mesh, GLB, OBJ or STL: a relief that is torn where depth jumps, or a closed solid.

The mesh is in glTF's axes: x right, y up, z towards the viewer; the pivot is the origin and the canonical camera stands
at z = 3. Its texture is the canonical view itself.

Legend: H height_px, W width_px, N vertices, M triangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vq3dcli.errors import DataError
from vq3dcli.export.layers import snap_to_surfaces
from vq3dcli.export.points import to_axes
from vq3dcli.files import write_bytes
from vq3dcli.rendering.cameras import image_rays, z_depth_from_s
from vq3dcli.rendering.space import Frustum

MeshKind = Literal["relief", "solid"]

# A quad is torn if it spans more of s and is steeper than a surface would be: 6 in depth to 1 across is 81 degrees.
_TORN_S = 0.02
_TORN_SLOPE = 6.0


class Mesh(NamedTuple):
    """A textured triangle mesh."""

    vertices: Tensor
    faces: Tensor  # int64 `[M, 3]`, counter-clockwise from outside
    uv: Tensor  # texture coordinates `[N, 2]`, (0, 0) at the top left of the picture
    texture: Tensor


def relief_mesh(
    rgb: Tensor, s: Tensor, frustum: Frustum, *, max_z_depth: float = float("inf"), solid: bool = False
) -> Mesh:
    """The surface that the canonical camera sees, one vertex a pixel.

    Args:
        rgb: uint8 `[3, H', W']`, the texture, of any resolution.
        s: Disparity `[H, W]`.
        max_z_depth: What is farther is left out; a solid has its flat back there.
        solid: Close the surface by walls along the picture's border and a flat back, and tear nothing.

    Raises `DataError`: nothing is near enough.
    """
    height_px, width_px = s.shape
    s = snap_to_surfaces(s.detach().cpu().float())
    z_depth = z_depth_from_s(s, frustum.depth_range)
    camera = frustum.camera(height_px, width_px)
    rays = image_rays(camera)
    back_z = min(max_z_depth, 1.02 * float(z_depth.max()))
    if solid:
        # The front stays in front of the back everywhere, so that the solid has a volume everywhere.
        z_depth = z_depth.clamp(max=0.999 * back_z)
    points = rays.origin[0] + z_depth.reshape(-1, 1) * rays.direction[0]
    index = torch.arange(height_px * width_px).reshape(height_px, width_px)
    kept = torch.ones(height_px - 1, width_px - 1, dtype=torch.bool)
    if not solid:
        kept = ~_torn(s, z_depth, float(camera.intrinsics[0, 0, 0])) & (_quads(z_depth).amax(0) <= max_z_depth)
    corners = [corner[kept] for corner in _quads(index)]
    top_left, top_right, bottom_left, bottom_right = corners
    faces = torch.cat(
        [torch.stack([top_left, bottom_left, top_right], -1), torch.stack([top_right, bottom_left, bottom_right], -1)]
    )
    if len(faces) == 0:
        raise DataError("no surface is near enough to be exported", remedy="a larger --max-depth")
    column, row = (torch.arange(width_px) + 0.5) / width_px, (torch.arange(height_px) + 0.5) / height_px
    uv = torch.stack(torch.meshgrid(column, row, indexing="xy"), -1).reshape(-1, 2)
    if solid:
        border = torch.cat([index[0], index[1:, -1], index[-1, :-1].flip(0), index[1:-1, 0].flip(0)])
        points, faces, uv = _closed(points, faces, uv, border, rays.origin[0, 0], rays.direction[0], back_z)
    return _compact(Mesh(to_axes(points, frustum, "opengl"), faces, uv, rgb.detach().cpu()))


def write_mesh(paths: Sequence[Path], mesh: Mesh) -> None:
    """Write a mesh, atomically, as the first path's ending says.

    `.glb` is binary glTF 2.0 with the texture inside; `.obj` names the other two paths, its material and texture;
    `.stl`, for printers, has the shape alone, z up.
    """
    from trimesh import Trimesh
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    vertices, faces, suffix = mesh.vertices.numpy(), mesh.faces.numpy(), paths[0].suffix.lower()
    if suffix == ".stl":
        upright = vertices[:, [0, 2, 1]] * np.array([1.0, -1.0, 1.0], np.float32)
        write_bytes(paths[0], Trimesh(upright, faces, process=False).export(file_type="stl"))
        return
    texture = Image.fromarray(mesh.texture.permute(1, 2, 0).numpy())
    # A photo carries its light in itself: no metal, no gloss, seen from both sides.
    glossless: Any = PBRMaterial(baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True)
    plain: Any = SimpleMaterial(image=texture, diffuse=[255] * 4, specular=[0, 0, 0, 255])
    material = glossless if suffix == ".glb" else plain
    # trimesh counts v from below, as OBJ does, and turns it over for glTF.
    uv: NDArray[np.float32] = mesh.uv.numpy() * np.array([1.0, -1.0], np.float32) + np.array([0.0, 1.0], np.float32)
    # As they are: merging and reordering would undo what the texture coordinates say.
    built = Trimesh(vertices, faces, visual=TextureVisuals(uv=uv, material=material), process=False)
    if suffix == ".glb":
        write_bytes(paths[0], built.export(file_type="glb", tree_postprocessor=_unlit))
        return
    _, materials, picture = paths
    material.name = picture.stem  # the texture of a material has its name
    text, more = export_obj(built, return_texture=True, mtl_name=materials.name, header=None)
    for path, data in zip((materials, picture), (more.pop(materials.name), *more.values()), strict=True):
        write_bytes(path, data)
    write_bytes(paths[0], text.encode())


def _unlit(tree: dict[str, Any]) -> None:
    """Colours as they are, whatever the light: viewers without this extension use the plain material."""
    tree["extensionsUsed"] = ["KHR_materials_unlit"]
    for material in tree["materials"]:
        material["extensions"] = {"KHR_materials_unlit": {}}


def _quads(grid: Tensor) -> Tensor:
    """The corners of each quad of a grid `[H, W]`: top left, top right, bottom left, bottom right, `[4, H-1, W-1]`."""
    return torch.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]])


def _torn(s: Tensor, z_depth: Tensor, focal_px: float) -> Tensor:
    """Quads `[H-1, W-1]` that span a jump in depth."""
    corners_s, corners_z = _quads(s), _quads(z_depth)
    step = corners_z.amax(0) - corners_z.amin(0)
    extent = corners_z.amin(0) / focal_px
    return (corners_s.amax(0) - corners_s.amin(0) > _TORN_S) & (step > _TORN_SLOPE * extent)


def _closed(
    points: Tensor, faces: Tensor, uv: Tensor, border: Tensor, origin: Tensor, direction: Tensor, back_z: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the back's border and its middle, the walls and the back. `border` runs clockwise as the camera sees it."""
    count, around = len(points), len(border)
    behind = origin + back_z * direction[border]
    middle = behind.mean(0, keepdim=True)
    back = count + torch.arange(around)
    next_front, next_back = border.roll(-1), back.roll(-1)
    walls = torch.cat([torch.stack([border, next_front, back], -1), torch.stack([next_front, next_back, back], -1)])
    fan = torch.stack([back, next_back, torch.full_like(back, count + around)], -1)
    all_points = torch.cat([points, behind, middle])
    return all_points, torch.cat([faces, walls, fan]), torch.cat([uv, uv[border], torch.full((1, 2), 0.5)])


def _compact(mesh: Mesh) -> Mesh:
    kept = torch.zeros(len(mesh.vertices), dtype=torch.bool)
    kept[mesh.faces.reshape(-1)] = True
    number = kept.long().cumsum(0) - 1
    return Mesh(mesh.vertices[kept].contiguous(), number[mesh.faces], mesh.uv[kept].contiguous(), mesh.texture)
