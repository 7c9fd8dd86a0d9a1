"""Camera paths around the pivot for videos: orbit, swing, spiral, dolly and dolly zoom.

Every path is a loop: the frame after the last one is the first one again, so a video repeats without a jump. All
cameras look at the pivot. `phase = 2 pi i / frames` for frame i.

Legend: F frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import CAMERA_RADIUS, FOV_RAD, Camera, intrinsics_from_fov, pivot_pose

# The height of an orbit or spiral as a part of its width: scenes are seen from a wider range of yaws than of pitches.
PITCH_RATIO = 0.4
_SPIRAL_TURNS = 2

# How far each path goes by itself, in degrees.
PATHS = {"orbit": 20.0, "swing": 20.0, "spiral": 20.0, "dolly": 12.0, "dolly-zoom": 12.0}


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

    - `orbit`: an ellipse in yaw and pitch around the canonical view, starting above it and turning to the right.
    - `swing`: right, left and back at eye level, starting at the canonical view.
    - `spiral`: two turns that widen from the canonical view to the orbit's ellipse and narrow to it again.
    - `dolly`: from the canonical view straight towards the pivot and back, `radius * sin(amplitude_rad)` far, as a
      swing of that amplitude goes to one side.
    - `dolly-zoom`: the same with a field of view that widens, so that things at the pivot keep their size.

    The amplitude, in [0, pi / 2), is by default the path's own. Cameras are `radius` from the pivot, of the dollies the
    first one. `fov_rad` is horizontal, in (0, pi), `fov_y_rad` by default what square pixels give. Raises `ValueError`:
    an unknown name or a value out of range.
    """
    if name not in PATHS:
        raise ValueError(f"unknown camera path {name!r}, know {', '.join(PATHS)}")
    if frames < 1:
        raise ValueError(f"a video needs at least 1 frame, got {frames}")
    if amplitude_rad is not None and not 0.0 <= amplitude_rad < 0.5 * math.pi:
        raise ValueError(f"the amplitude must be in [0, pi / 2), got {amplitude_rad}")
    if not 0.0 < fov_rad < math.pi or (fov_y_rad is not None and not 0.0 < fov_y_rad < math.pi):
        raise ValueError("fields of view must be in (0, pi)")
    amplitude_rad = math.radians(PATHS[name]) if amplitude_rad is None else amplitude_rad
    phase = 2.0 * math.pi * torch.arange(frames, dtype=torch.float32) / frames
    yaw_rad = pitch_rad = torch.zeros(frames)
    distance: Tensor | float = radius
    intrinsics = intrinsics_from_fov(fov_rad, height_px, width_px).repeat(frames, 1, 1)
    if fov_y_rad is not None:
        intrinsics[:, 1, 1] = 0.5 * height_px / math.tan(0.5 * fov_y_rad)
    if name == "orbit":
        yaw_rad, pitch_rad = amplitude_rad * torch.sin(phase), PITCH_RATIO * amplitude_rad * torch.cos(phase)
    elif name == "swing":
        yaw_rad = amplitude_rad * torch.sin(phase)
    elif name == "spiral":
        reach, turn = amplitude_rad * torch.sin(0.5 * phase) ** 2, _SPIRAL_TURNS * phase
        yaw_rad, pitch_rad = reach * torch.sin(turn), PITCH_RATIO * reach * torch.cos(turn)
    else:
        # The radius at first, nearest in the middle of the loop.
        distance = radius * (1.0 - math.sin(amplitude_rad) * torch.sin(0.5 * phase) ** 2)
        if name == "dolly-zoom":
            intrinsics[:, :2, :2] *= (distance / radius)[:, None, None]
    return Camera(pivot_pose(yaw_rad, pitch_rad, distance), intrinsics, height_px, width_px)
