"""Surfaces as coloured points: what the canonical camera sees, and what it misses that cameras beside it see.

Legend: N points, V views, H height_px, W width_px.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.errors import DataError
from vq3dcli.export.layers import Frustum
from vq3dcli.export.photo_layers import snap_to_surfaces
from vq3dcli.export.ply import write_ply
from vq3dcli.model.scene import Renderable
from vq3dcli.rendering.cameras import Camera, image_rays, pivot_pose, project, s_from_z_depth, z_depth_from_s

Axes = Literal["opencv", "opengl"]
"""`opencv`: x right, y down, z forward, as everywhere in vq3d. `opengl`: x right, y up, z towards the viewer."""

# How far behind the visible surface, in s, a point has to lie to count as hidden by it.
_HIDDEN_S = 0.02


class Surface(NamedTuple):
    """Points on surfaces.

    Attributes:
        points: World positions `[N, 3]`, in the axes asked for.
        rgb: uint8 `[N, 3]`.
        across: How far and where to the pixel on the right, `[N, 3]`, at most a few pixels' extent.
        down: The same for the pixel below.
        view: Which view each point is of, int64 `[N]`; 0 is the canonical one.
    """

    points: Tensor
    rgb: Tensor
    across: Tensor
    down: Tensor
    view: Tensor


def to_axes(vectors: Tensor, frustum: Frustum, axes: Axes) -> Tensor:
    """World vectors `[..., 3]` of the model in the axes of a file.

    The model sees a photo squashed to a square; y is stretched by height / width of the photo, so that pixels are
    square again.
    """
    flip = 1.0 if axes == "opencv" else -1.0
    return vectors * vectors.new_tensor([1.0, flip / frustum.aspect, flip])


@torch.no_grad()
def surface_points(
    scene: Renderable,
    frustum: Frustum,
    *,
    height_px: int,
    width_px: int,
    samples: int,
    beside_rad: float = 0.2,
    outside: bool = False,
    max_z_depth: float = float("inf"),
    axes: Axes = "opencv",
) -> Surface:
    """Points on the surfaces of a scene.

    Args:
        scene: A single one.
        frustum: Its canonical camera.
        height_px: Height of the views that points are taken from.
        width_px: Their width.
        samples: Samples a ray.
        beside_rad: How far to the sides cameras look for what is hidden from the canonical one; 0: they do not.
        outside: Also take what they see outside of the canonical picture, which the model only continues.
        max_z_depth: Leave out what is farther from its camera.
        axes: Of the result.

    Raises:
        DataError: No point is left.
    """
    camera = _cameras(frustum, height_px, width_px, beside_rad)
    view = scene.render(camera, samples=samples)
    # A pixel between two surfaces would be a point in mid air.
    s, rgb = snap_to_surfaces(view.s.cpu()), view.rgb.cpu()
    z_depth = z_depth_from_s(s, frustum.near, frustum.far)
    rays = image_rays(camera)
    points = rays.origin + z_depth.flatten(1)[..., None] * rays.direction
    unseen = _unseen(points[1:], s, frustum, outside)
    wanted = (z_depth <= max_z_depth).flatten(1) & torch.cat(
        [torch.ones_like(points[:1, :, 0], dtype=torch.bool), unseen]
    )
    across, down = _steps(points.reshape(-1, height_px, width_px, 3), z_depth, camera)
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
    columns = {name: surface.points[:, axis].numpy().astype(np.float32) for axis, name in enumerate("xyz")}
    colours = {name: surface.rgb[:, axis].numpy() for axis, name in enumerate(("red", "green", "blue"))}
    write_ply(path, columns | colours)


def _cameras(frustum: Frustum, height_px: int, width_px: int, beside_rad: float) -> Camera:
    """The canonical camera, then those to its right, left, above and below."""
    camera = frustum.camera(height_px, width_px)
    if beside_rad <= 0.0:
        return camera
    yaw_rad = torch.tensor([0.0, beside_rad, -beside_rad, 0.0, 0.0])
    pitch_rad = torch.tensor([0.0, 0.0, 0.0, beside_rad, -beside_rad])
    pose = pivot_pose(yaw_rad, pitch_rad, frustum.radius)
    return Camera(pose, camera.intrinsics.expand(len(pose), 3, 3), height_px, width_px)


def _unseen(points: Tensor, s: Tensor, frustum: Frustum, outside: bool) -> Tensor:
    """Which points of the views beside, `[V - 1, N]`, the canonical camera does not see; s is that of all V views."""
    if len(points) == 0:
        return torch.zeros(points.shape[:2], dtype=torch.bool)
    height_px, width_px = s.shape[1:]
    pixels, z_depth = project(frustum.camera(height_px, width_px), points.reshape(1, -1, 3))
    size = torch.tensor([width_px, height_px])
    inside = ((pixels >= 0.0) & (pixels <= size)).all(-1)[0] & (z_depth[0] > 0.0)
    grid = (pixels / (0.5 * size) - 1.0)[:, None]
    # The nearest texel: between two surfaces a mean of both would call the farther one hidden.
    seen = functional.grid_sample(s[:1, None], grid, mode="nearest", padding_mode="border", align_corners=False)[
        0, 0, 0
    ]
    own = s_from_z_depth(z_depth[0].clamp(min=1e-3), frustum.near, frustum.far)
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
