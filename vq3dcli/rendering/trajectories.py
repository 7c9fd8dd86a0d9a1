"""Camera paths around the pivot for videos: orbit, swing, spiral, dolly and dolly zoom.

Every path is a loop: the frame after the last one is the first one again, so a video repeats without a jump. All
cameras look at the pivot. `phase = 2 pi i / frames` for frame i.

Legend: F frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS, FOV_RAD, Camera, intrinsics_from_fov, pivot_pose

# The height of an orbit or spiral as a part of its width: scenes are seen from a wider range of yaws than of pitches.
PITCH_RATIO = 0.4
_SPIRAL_TURNS = 2


class CameraPath(NamedTuple):
    """A camera path.

    Attributes:
        cam_to_world: Poses `[F, 4, 4]`.
        zoom: Focal length of each frame relative to the first camera's, `[F]`.
    """

    cam_to_world: Tensor
    zoom: Tensor


def orbit(frames: int, amplitude_rad: float = math.radians(20.0), radius: float = CAMERA_RADIUS) -> CameraPath:
    """An ellipse in yaw and pitch around the canonical view, starting above it and turning to the right."""
    phase = _phase(frames)
    return _on_sphere(amplitude_rad * torch.sin(phase), PITCH_RATIO * amplitude_rad * torch.cos(phase), radius)


def swing(frames: int, amplitude_rad: float = math.radians(20.0), radius: float = CAMERA_RADIUS) -> CameraPath:
    """Right, left and back at eye level, starting at the canonical view."""
    yaw_rad = amplitude_rad * torch.sin(_phase(frames))
    return _on_sphere(yaw_rad, torch.zeros_like(yaw_rad), radius)


def spiral(frames: int, amplitude_rad: float = math.radians(20.0), radius: float = CAMERA_RADIUS) -> CameraPath:
    """Two turns that widen from the canonical view to the orbit's ellipse and narrow to it again."""
    phase = _phase(frames)
    reach = amplitude_rad * torch.sin(0.5 * phase) ** 2
    turn = _SPIRAL_TURNS * phase
    return _on_sphere(reach * torch.sin(turn), PITCH_RATIO * reach * torch.cos(turn), radius)


def dolly(frames: int, amplitude_rad: float = math.radians(12.0), radius: float = CAMERA_RADIUS) -> CameraPath:
    """From the canonical view straight towards the pivot and back.

    The way is `radius * sin(amplitude_rad)` long, as far as a swing of that amplitude goes to one side.
    """
    return _on_sphere(torch.zeros(frames), torch.zeros(frames), _dolly_radius(frames, amplitude_rad, radius))


def dolly_zoom(frames: int, amplitude_rad: float = math.radians(12.0), radius: float = CAMERA_RADIUS) -> CameraPath:
    """A dolly whose field of view widens so that things at the pivot's distance keep their size in the image."""
    distance = _dolly_radius(frames, amplitude_rad, radius)
    return CameraPath(_on_sphere(torch.zeros(frames), torch.zeros(frames), distance).cam_to_world, distance / radius)


PATHS: dict[str, Callable[..., CameraPath]] = {
    "orbit": orbit,
    "swing": swing,
    "spiral": spiral,
    "dolly": dolly,
    "dolly-zoom": dolly_zoom,
}


def trajectory(
    name: str,
    frames: int,
    *,
    height_px: int,
    width_px: int,
    amplitude_rad: float | None = None,
    radius: float = CAMERA_RADIUS,
    fov_rad: float = FOV_RAD,
    fov_y_rad: float | None = None,
) -> Camera:
    """The cameras of a video, one a frame.

    Args:
        name: A key of `PATHS`.
        frames: At least 1.
        height_px: Image height.
        width_px: Image width.
        amplitude_rad: How far the path goes, in [0, pi / 2); default: the path's own.
        radius: Distance of the first camera (all but the dollies: of every camera) from the pivot.
        fov_rad: Horizontal field of view, in (0, pi).
        fov_y_rad: Vertical field of view; default: what square pixels give.

    Raises:
        ValueError: An unknown name or a value out of range.
    """
    if name not in PATHS:
        raise ValueError(f"unknown camera path {name!r}, know {', '.join(PATHS)}")
    if frames < 1:
        raise ValueError(f"a video needs at least 1 frame, got {frames}")
    if amplitude_rad is not None and not 0.0 <= amplitude_rad < 0.5 * math.pi:
        raise ValueError(f"the amplitude must be in [0, pi / 2), got {amplitude_rad}")
    if not 0.0 < fov_rad < math.pi or (fov_y_rad is not None and not 0.0 < fov_y_rad < math.pi):
        raise ValueError("fields of view must be in (0, pi)")
    options = {} if amplitude_rad is None else {"amplitude_rad": amplitude_rad}
    path = PATHS[name](frames, radius=radius, **options)
    intrinsics = intrinsics_from_fov(fov_rad, height_px, width_px).repeat(frames, 1, 1)
    if fov_y_rad is not None:
        intrinsics[:, 1, 1] = 0.5 * height_px / math.tan(0.5 * fov_y_rad)
    intrinsics[:, 0, 0] *= path.zoom
    intrinsics[:, 1, 1] *= path.zoom
    return Camera(path.cam_to_world, intrinsics, height_px, width_px)


def _phase(frames: int) -> Tensor:
    """Phases `[F]` of one loop, in [0, 2 pi)."""
    return 2.0 * math.pi * torch.arange(frames, dtype=torch.float32) / frames


def _dolly_radius(frames: int, amplitude_rad: float, radius: float) -> Tensor:
    """Distances from the pivot `[F]`: `radius` at first, nearest in the middle of the loop."""
    return radius * (1.0 - math.sin(amplitude_rad) * torch.sin(0.5 * _phase(frames)) ** 2)


def _on_sphere(yaw_rad: Tensor, pitch_rad: Tensor, radius: float | Tensor) -> CameraPath:
    return CameraPath(pivot_pose(yaw_rad, pitch_rad, radius), torch.ones_like(yaw_rad))
