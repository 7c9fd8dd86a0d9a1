"""Pinhole cameras and their rays.

OpenCV axes: x right, y down, z forward. The world's origin is the pivot at the subject; the canonical camera sits at
(0, 0, -radius) and looks along +z, so its rotation is the identity. Pixel centres lie at +0.5.

Legend: B batch, H height_px, W width_px, N rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CAMERA_RADIUS = 3.0
FOV_RAD = math.radians(40.0)
NEAR = 1.35
FAR = 60.0


@dataclass(frozen=True)
class DepthRange:
    """The z_depths that normalised disparity s spans: `near` at s = 1, `far` at s = 0."""

    near: float = NEAR
    far: float = FAR

    @property
    def extent(self) -> float:
        """Of 1 / z_depth, a unit of s."""
        return 1.0 / self.near - 1.0 / self.far


DEPTH_RANGE = DepthRange()


@dataclass(frozen=True)
class Camera:
    """A batch of pinhole cameras that share one image size."""

    cam_to_world: Tensor  # rigid transforms `[B, 4, 4]`
    intrinsics: Tensor  # `[B, 3, 3]` in pixels, principal point with pixel centres at +0.5
    height_px: int
    width_px: int

    def __len__(self) -> int:
        """Number of cameras B."""
        return self.cam_to_world.shape[0]

    def __getitem__(self, index: int) -> Camera:
        """One of the batch, as a batch of one."""
        here = slice(index, index + 1)
        return replace(self, cam_to_world=self.cam_to_world[here], intrinsics=self.intrinsics[here])

    def at(self, cam_to_world: Tensor) -> Camera:
        """This camera, one, at other poses `[B, 4, 4]`."""
        count = cam_to_world.shape[0]
        return replace(self, cam_to_world=cam_to_world, intrinsics=self.intrinsics.expand(count, 3, 3))

    def to(self, device: torch.device) -> Camera:
        """The same on another device."""
        return replace(self, cam_to_world=self.cam_to_world.to(device), intrinsics=self.intrinsics.to(device))


@dataclass(frozen=True)
class Rays:
    """Rays whose direction has a camera-z component of 1, so that `origin + z_depth * direction` is a point."""

    origin: Tensor  # world positions `[B, N, 3]`
    direction: Tensor  # world directions `[B, N, 3]`, not unit length

    def __getitem__(self, index: slice | Tensor) -> Rays:
        """Some of the rays of every camera."""
        return Rays(self.origin[:, index], self.direction[:, index])


def intrinsics_from_fov(fov_rad: float | Tensor, height_px: int, width_px: int) -> Tensor:
    """Square-pixel intrinsics `[B, 3, 3]` from a horizontal field of view: a number (B = 1), or one a camera `[B]`."""
    fov = torch.atleast_1d(torch.as_tensor(fov_rad, dtype=torch.float32))
    focal_px = 0.5 * width_px / torch.tan(0.5 * fov)
    matrix = torch.zeros(fov.shape[0], 3, 3)
    matrix[:, 0, 0] = focal_px
    matrix[:, 1, 1] = focal_px
    matrix[:, 0, 2] = 0.5 * width_px
    matrix[:, 1, 2] = 0.5 * height_px
    matrix[:, 2, 2] = 1.0
    return matrix


def pivot_pose(yaw_rad: Tensor, pitch_rad: Tensor, radius: Tensor | float = CAMERA_RADIUS) -> Tensor:
    """Poses `cam_to_world` `[B, 4, 4]` on a sphere around the origin, looking at it, no roll.

    Positive yaw `[B]` moves the camera right (+x), positive pitch `[B]` up (-y); both zero is the canonical pose.
    """
    cos_yaw, sin_yaw = torch.cos(yaw_rad), torch.sin(yaw_rad)
    cos_pitch, sin_pitch = torch.cos(pitch_rad), torch.sin(pitch_rad)
    zero = torch.zeros_like(cos_yaw)
    right = torch.stack([cos_yaw, zero, sin_yaw], -1)
    down = torch.stack([sin_yaw * sin_pitch, cos_pitch, -cos_yaw * sin_pitch], -1)
    forward = torch.stack([-sin_yaw * cos_pitch, sin_pitch, cos_yaw * cos_pitch], -1)
    pose = torch.zeros(*yaw_rad.shape, 4, 4, dtype=yaw_rad.dtype, device=yaw_rad.device)
    pose[..., :3, 0] = right
    pose[..., :3, 1] = down
    pose[..., :3, 2] = forward
    pose[..., :3, 3] = -forward * torch.as_tensor(radius, dtype=yaw_rad.dtype, device=yaw_rad.device)[..., None]
    pose[..., 3, 3] = 1.0
    return pose


def pivot_camera(
    yaw_rad: Tensor,
    pitch_rad: Tensor,
    *,
    height_px: int,
    width_px: int,
    radius: float = CAMERA_RADIUS,
    fov_rad: float = FOV_RAD,
) -> Camera:
    """Cameras `[B]` around the pivot with a common radius and field of view."""
    intrinsics = intrinsics_from_fov(fov_rad, height_px, width_px).to(yaw_rad)
    pose = pivot_pose(yaw_rad, pitch_rad, radius)
    return Camera(pose, intrinsics.expand(yaw_rad.shape[0], 3, 3), height_px, width_px)


def canonical_camera(
    batch: int, *, height_px: int, width_px: int, radius: float = CAMERA_RADIUS, fov_rad: float = FOV_RAD
) -> Camera:
    """The camera that took the input photo, repeated `batch` times."""
    zero = torch.zeros(batch)
    return pivot_camera(zero, zero, height_px=height_px, width_px=width_px, radius=radius, fov_rad=fov_rad)


def pixel_centres(height_px: int, width_px: int, device: torch.device | None = None) -> Tensor:
    """Pixel-centre coordinates (x, y) in row-major order `[H * W, 2]`, from 0.5 to size - 0.5."""
    y, x = torch.meshgrid(
        torch.arange(height_px, device=device) + 0.5, torch.arange(width_px, device=device) + 0.5, indexing="ij"
    )
    return torch.stack([x, y], -1).reshape(-1, 2)


def rays_at_pixels(camera: Camera, pixels: Tensor) -> Rays:
    """Rays through pixel coordinates (x, y), `[N, 2]` shared by all cameras or `[B, N, 2]`."""
    focal = torch.stack([camera.intrinsics[:, 0, 0], camera.intrinsics[:, 1, 1]], -1)[:, None]
    centre = camera.intrinsics[:, None, :2, 2]
    xy = (pixels - centre) / focal
    direction_cam = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    # A sum of products instead of a matmul: each ray's bits do not depend on how many rays there are.
    rotation = camera.cam_to_world[:, None, :3, :3]
    direction = (rotation * direction_cam[..., None, :]).sum(-1)
    origin = camera.cam_to_world[:, None, :3, 3].expand_as(direction)
    return Rays(origin, direction)


def image_rays(camera: Camera) -> Rays:
    """Rays through all pixel centres in row-major order, N = H * W."""
    return rays_at_pixels(camera, pixel_centres(camera.height_px, camera.width_px, camera.cam_to_world.device))


def project(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points `[B, N, 3]` to pixels `[B, N, 2]` and `z_depth` `[B, N]`."""
    rotation = camera.cam_to_world[:, :3, :3]
    in_camera = (points - camera.cam_to_world[:, None, :3, 3]) @ rotation
    z_depth = in_camera[..., 2]
    focal = torch.stack([camera.intrinsics[:, 0, 0], camera.intrinsics[:, 1, 1]], -1)[:, None]
    pixels = in_camera[..., :2] / z_depth[..., None] * focal + camera.intrinsics[:, None, :2, 2]
    return pixels, z_depth


def s_from_z_depth(z_depth: Tensor, depth_range: DepthRange = DEPTH_RANGE) -> Tensor:
    """Normalised disparity `s = (1/z - 1/far) / (1/near - 1/far)`, clamped to [0, 1]: 1 near, 0 far and sky."""
    return ((1.0 / z_depth - 1.0 / depth_range.far) / depth_range.extent).clamp(0.0, 1.0)


def z_depth_from_s(s: Tensor, depth_range: DepthRange = DEPTH_RANGE) -> Tensor:
    """Inverse of `s_from_z_depth` for s in [0, 1]."""
    return 1.0 / (s * depth_range.extent + 1.0 / depth_range.far)
