"""Novel views without a model: baselines and ceilings that a rendered view is compared with.

Each warp looks up a source image at the places that the pixels of a novel view see, given some geometry: one flat plane
(`flat_warp`, what a painted wall could do at best) or the novel view's exact disparity (`exact_warp`, what moving the
input's own pixels could do at best; what the input does not see is filled with what hides it).

Legend: B images, H height_px, W width_px, N pixels of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.rendering.cameras import FAR, NEAR, Camera, image_rays, pivot_camera, project, z_depth_from_s

# (yaw, pitch) in degrees around the pivot at the canonical radius.
EVALUATION_VIEWS_DEG: tuple[tuple[float, float], ...] = ((10, 0), (-10, 0), (20, 0), (-20, 0), (0, 10), (0, -10))

# Rays nearly parallel to the plane, or points behind the source camera, would be divided by zero or mirrored. Within
# 50 degrees of the canonical view neither happens.
_SMALLEST_Z = 1e-3


def evaluation_cameras(batch: int, *, height_px: int, width_px: int) -> list[Camera]:
    """The cameras of `EVALUATION_VIEWS_DEG`, in that order, each repeated `batch` times."""
    return [
        pivot_camera(
            torch.full((batch,), math.radians(yaw_deg)),
            torch.full((batch,), math.radians(pitch_deg)),
            height_px=height_px,
            width_px=width_px,
        )
        for yaw_deg, pitch_deg in EVALUATION_VIEWS_DEG
    ]


def flat_warp(image: Tensor, source: Camera, target: Camera, z_depth: Tensor) -> Tensor:
    """`image` seen from `target` as if it were painted on the plane `z_depth` = constant of the source camera.

    Args:
        image: What the source camera sees, `[B, 3, H, W]`, uint8 or float in [0, 1].
        source: Camera of `image`, B of them.
        target: Camera of the result, B of them.
        z_depth: Distance of the plane along the source camera's axis in metres, `[B]`.

    Returns:
        float32 `[B, 3, H, W]` in [0, 1] at the target's size; the edges of `image` are replicated.
    """
    rays = image_rays(target)
    axis = source.cam_to_world[:, None, :3, 2]
    start_z = ((rays.origin - source.cam_to_world[:, None, :3, 3]) * axis).sum(-1)
    step_z = (rays.direction * axis).sum(-1).clamp(min=_SMALLEST_Z)
    distance = (z_depth[:, None].to(start_z) - start_z) / step_z
    return _look_up(image, source, target, rays.origin + distance[..., None] * rays.direction)


def exact_warp(image: Tensor, source: Camera, target: Camera, s_target: Tensor) -> Tensor:
    """`image` seen from `target`, whose geometry `s_target` is known.

    Args:
        image: What the source camera sees, `[B, 3, H, W]`, uint8 or float in [0, 1].
        source: Camera of `image`, B of them.
        target: Camera of the result, B of them.
        s_target: Normalised disparity in the target camera, `[B, H, W]` at its size.

    Returns:
        float32 `[B, 3, H, W]` in [0, 1]; places outside `image` show its nearest edge.
    """
    rays = image_rays(target)
    z_depth = z_depth_from_s(s_target.flatten(1))
    return _look_up(image, source, target, rays.origin + z_depth[..., None] * rays.direction)


def plane_z_depth(s_true: Tensor) -> Tensor:
    """The plane that stands for a scene in `flat_warp`: 1 / mean(d), `[B]`, from exact s `[B, H, W]`."""
    disparity = s_true * (1.0 / NEAR - 1.0 / FAR) + 1.0 / FAR
    return 1.0 / disparity.flatten(1).mean(-1)


def _look_up(image: Tensor, source: Camera, target: Camera, points: Tensor) -> Tensor:
    """Bilinear samples of `image` where the source camera sees the world points `[B, N, 3]`."""
    pixels, z_depth = project(source, points)
    # A point behind the source camera has mirrored pixel coordinates; it shows the image's first pixel instead.
    pixels = torch.where((z_depth > _SMALLEST_Z)[..., None], pixels, torch.zeros_like(pixels))
    size = torch.tensor([source.width_px, source.height_px], dtype=pixels.dtype, device=pixels.device)
    grid = (2.0 * pixels / size - 1.0).reshape(-1, target.height_px, target.width_px, 2)
    values = image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
