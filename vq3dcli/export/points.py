"""Surfaces as coloured points and as 3D Gaussian splats, in binary PLY and SPZ files.

Points lie on what the canonical camera sees, and on what it misses that cameras beside it see. Splats are in the plain
layout that viewers read (Kerbl et al., SIGGRAPH 2023): one flat Gaussian a point, with x y z, unused normals, colour as
the constant spherical harmonic, opacity before the sigmoid, logarithms of three standard deviations, and a rotation
quaternion w x y z. Nothing else: viewers choke on extra elements. The same in a sixth of the bytes is `.spz` (Niantic's
format, version 2): fixed-point numbers of 8 and 24 bits, column by column, gzipped, in OpenGL's axes.

Legend: N points, V views, H height_px, W width_px.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq3dcli.errors import DataError
from vq3dcli.export.layers import snap_to_surfaces
from vq3dcli.files import write_bytes
from vq3dcli.rendering.cameras import Camera, image_rays, pivot_pose, project, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.scene import ViewOf
from vq3dcli.rendering.space import Frustum

Axes = Literal["opencv", "opengl"]
"""`opencv`: x right, y down, z forward, as everywhere in vq3d. `opengl`: x right, y up, z towards the viewer."""

# How far behind the visible surface, in s, a point has to lie to count as hidden by it.
_HIDDEN_S = 0.02
# The constant spherical harmonic: colour = 0.5 + SH_0 f_dc.
SH_0 = 0.5 / math.sqrt(math.pi)
OPACITY = 0.98
# Standard deviation in pixels. At 0.6 the middle between four splats is 94 % opaque, and little blur is added.
_SIGMA_PX = 0.6
_THICKNESS = 0.1


class Surface(NamedTuple):
    """Points on surfaces."""

    points: Tensor  # world positions `[N, 3]`, in the axes asked for
    rgb: Tensor  # uint8 `[N, 3]`
    across: Tensor  # how far and where to the pixel on the right, `[N, 3]`, at most a few pixels' extent
    down: Tensor  # the same for the pixel below
    view: Tensor  # which view each point is of, int64 `[N]`; 0 is the canonical one


def to_axes(vectors: Tensor, frustum: Frustum, axes: Axes) -> Tensor:
    """World vectors `[..., 3]` of the model in the axes of a file.

    The model sees a photo squashed to a square; y is stretched by height / width of the photo, so that pixels are
    square again.
    """
    flip = 1.0 if axes == "opencv" else -1.0
    return vectors * vectors.new_tensor([1.0, flip / frustum.aspect, flip])


@torch.no_grad()
def surface_points(
    view_of: ViewOf,
    frustum: Frustum,
    size: tuple[int, int],
    *,
    beside_rad: float = 0.2,
    outside: bool = False,
    max_z_depth: float = float("inf"),
    axes: Axes = "opencv",
) -> Surface:
    """Points on the surfaces of a scene.

    Args:
        beside_rad: How far to the sides cameras look for what is hidden from the canonical one; 0: they do not.
        outside: Also take what they see outside of the canonical picture, which the model only continues.
        max_z_depth: Leave out what is farther from its camera.

    Raises `DataError`: no point is left.
    """
    camera = _cameras(frustum, size, beside_rad)
    view = view_of(camera)
    # A pixel between two surfaces would be a point in mid air.
    s, rgb = snap_to_surfaces(view.s.cpu()), view.rgb.cpu()
    z_depth = z_depth_from_s(s, frustum.depth_range)
    rays = image_rays(camera)
    points = rays.origin + z_depth.flatten(1)[..., None] * rays.direction
    unseen = _unseen(points[1:], s, frustum, outside)
    wanted = (z_depth <= max_z_depth).flatten(1) & torch.cat(
        [torch.ones_like(points[:1, :, 0], dtype=torch.bool), unseen]
    )
    across, down = _steps(points.reshape(-1, *size, 3), z_depth, camera)
    count = wanted.sum()
    if count == 0:
        raise DataError("no surface is near enough to be exported", remedy="a larger --max-depth")
    number = torch.arange(points.shape[0])[:, None].expand_as(wanted)
    return Surface(
        to_axes(points[wanted], frustum, axes),
        rgb.flatten(2).transpose(1, 2)[wanted],
        to_axes(across.flatten(1, 2)[wanted], frustum, axes),
        to_axes(down.flatten(1, 2)[wanted], frustum, axes),
        number[wanted],
    )


def write_points(path: Path, surface: Surface) -> None:
    """Write a PLY file of points with x y z and red green blue, atomically."""
    colours = dict(zip(("red", "green", "blue"), surface.rgb.T, strict=True))
    write_ply(path, dict(zip("xyz", surface.points.T.float(), strict=True)) | colours)


def write_splats(path: Path, surface: Surface) -> None:
    """Write the splats of a surface, atomically."""
    scale, rotation = gaussians(surface)
    count = len(surface.points)
    logit = math.log(OPACITY / (1.0 - OPACITY))
    columns: dict[str, Tensor] = {name: surface.points[:, axis] for axis, name in enumerate("xyz")}
    columns |= {name: torch.zeros(count) for name in ("nx", "ny", "nz")}
    columns |= {f"f_dc_{i}": (surface.rgb[:, i].float() / 255.0 - 0.5) / SH_0 for i in range(3)}
    columns |= {"opacity": torch.full((count,), logit)}
    columns |= {f"scale_{i}": scale[:, i].log() for i in range(3)}
    columns |= {f"rot_{i}": rotation[:, i] for i in range(4)}
    write_ply(path, {name: values.float() for name, values in columns.items()})


def write_spz(path: Path, surface: Surface) -> None:
    """Write the splats of a surface, whose axes are OpenGL's, compressed, atomically."""
    scale, rotation = gaussians(surface)
    points = surface.points.double()
    # As many bits behind the point as leave room for the farthest splat.
    bits = min(16, 23 - math.frexp(float(points.abs().max()))[1])
    fixed = (points * 2.0**bits).round().clamp(1 - 2**23, 2**23 - 1).to(torch.int32).numpy()
    # Of a quaternion and its opposite the one whose w, which is left out, is positive.
    turned = rotation[:, 1:] * torch.where(rotation[:, :1] < 0.0, -1.0, 1.0)
    columns = [
        fixed.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3],
        _levels(torch.full((len(points),), 255.0 * OPACITY)),
        _levels(0.15 * 255.0 * (surface.rgb.float() / 255.0 - 0.5) / SH_0 + 127.5),
        _levels(16.0 * (scale.log() + 10.0)),
        _levels(127.5 * turned + 127.5),
    ]
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, len(points), 0, bits, 0, 0)
    data = header + b"".join(column.tobytes() for column in columns)
    write_bytes(path, gzip.compress(data, mtime=0))


def _levels(values: Tensor) -> NDArray[np.uint8]:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def gaussians(surface: Surface) -> tuple[Tensor, Tensor]:
    """Shapes that cover the surface between neighbouring points.

    Returns:
        Standard deviations `[N, 3]`, and quaternions (w, x, y, z) `[N, 4]` that turn their axes into the world's.
    """
    across, down = surface.across.double(), surface.down.double()
    extent = torch.minimum(across.norm(dim=-1), down.norm(dim=-1)).clamp(min=1e-6)
    normal = torch.nn.functional.normalize(torch.linalg.cross(across, down), dim=-1)
    spread = _SIGMA_PX**2 * (across[:, :, None] * across[:, None] + down[:, :, None] * down[:, None])
    flat = (_THICKNESS * _SIGMA_PX * extent)[:, None, None] ** 2
    covariance = spread + flat * (normal[:, :, None] * normal[:, None] + 1e-3 * torch.eye(3, dtype=torch.float64))
    variance, axes = torch.linalg.eigh(covariance)
    # Axes of a rotation, not of a mirror image.
    axes = torch.cat([axes[..., :2], axes[..., 2:] * torch.linalg.det(axes)[:, None, None].sign()], -1)
    return variance.clamp(min=1e-12).sqrt().float(), quaternions(axes).float()


def quaternions(rotation: Tensor) -> Tensor:
    """Rotation matrices `[N, 3, 3]` to unit quaternions (w, x, y, z) `[N, 4]`, by the largest of the four squares."""
    m = rotation
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    # Row i is 4 q_i q: each is a multiple of the quaternion, and the one with the largest q_i is well conditioned.
    w = torch.stack([1 + trace, m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1)
    rows = [w]
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        row = torch.empty_like(w)
        row[:, 0] = m[:, k, j] - m[:, j, k]
        row[:, 1 + i] = 1 + 2 * m[:, i, i] - trace
        row[:, 1 + j] = m[:, j, i] + m[:, i, j]
        row[:, 1 + k] = m[:, k, i] + m[:, i, k]
        rows.append(row)
    candidates = torch.stack(rows, 1)
    squares = torch.stack([candidates[:, i, i] for i in range(4)], -1)
    best = squares.argmax(-1)
    return torch.nn.functional.normalize(candidates[torch.arange(len(m)), best], dim=-1)


def write_ply(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Write a little-endian PLY file of one element, `vertex`, with float32 or uint8 properties `[N]`, atomically."""
    arrays = {name: values.numpy() for name, values in columns.items()}
    layout = [(name, values.dtype.newbyteorder("<")) for name, values in arrays.items()]
    table = np.empty(len(next(iter(arrays.values()))), layout)
    for name, values in arrays.items():
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property {'uchar' if kind.itemsize == 1 else 'float'} {name}" for name, kind in layout]
    write_bytes(path, "\n".join([*header, "end_header", ""]).encode("ascii") + table.tobytes())


def _cameras(frustum: Frustum, size: tuple[int, int], beside_rad: float) -> Camera:
    """The canonical camera, then those to its right, left, above and below."""
    camera = frustum.camera(*size)
    if beside_rad <= 0.0:
        return camera
    yaw_rad = torch.tensor([0.0, beside_rad, -beside_rad, 0.0, 0.0])
    pitch_rad = torch.tensor([0.0, 0.0, 0.0, beside_rad, -beside_rad])
    return camera.at(pivot_pose(yaw_rad, pitch_rad, frustum.radius))


def _unseen(points: Tensor, s: Tensor, frustum: Frustum, outside: bool) -> Tensor:
    """Which points of the views beside, `[V - 1, N]`, the canonical camera does not see; s is that of all V views."""
    if len(points) == 0:
        return torch.zeros(points.shape[:2], dtype=torch.bool)
    height_px, width_px = s.shape[1:]
    pixels, z_depth = project(frustum.camera(height_px, width_px), points.reshape(1, -1, 3))
    inside = ((pixels >= 0.0) & (pixels <= torch.tensor([width_px, height_px]))).all(-1)[0] & (z_depth[0] > 0.0)
    # The nearest texel: between two surfaces a mean of both would call the farther one hidden.
    seen = look_up_px(s[:1], pixels[0], mode="nearest")[0]
    own = s_from_z_depth(z_depth[0].clamp(min=1e-3), frustum.depth_range)
    hidden = inside & (own < seen - _HIDDEN_S)
    return (hidden | ~inside if outside else hidden).reshape(len(points), -1)


def _steps(points: Tensor, z_depth: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """From each point `[V, H, W, 3]` to its neighbours on the right and below, no longer than four pixels' extent."""
    focal = torch.stack([camera.intrinsics[:, 0, 0], camera.intrinsics[:, 1, 1]], -1)
    steps = []
    for axis, dimension in ((0, 2), (1, 1)):
        count = points.shape[dimension]
        index = torch.arange(count)
        forward = points.index_select(dimension, (index + 1).clamp(max=count - 1)) - points
        backward = points - points.index_select(dimension, (index - 1).clamp(min=0))
        # At a step in depth the shorter difference stays on the surface; at the border one of them is nothing.
        lengths = forward.norm(dim=-1, keepdim=True), backward.norm(dim=-1, keepdim=True)
        shorter = (lengths[0] <= lengths[1]) & (lengths[0] > 0.0) | (lengths[1] == 0.0)
        step = torch.where(shorter, forward, backward)
        extent = (z_depth / focal[:, axis, None, None])[..., None]
        steps.append(step * (4.0 * extent / step.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0))
    return steps[0], steps[1]
