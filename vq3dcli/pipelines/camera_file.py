"""Camera paths as JSON: what `--path FILE` reads, and what is written beside a video.

A list of cameras, or an object whose `cameras` is one. Each camera has a pose, either `cam_to_world` (rows of a rigid
3 x 4 or 4 x 4 matrix, axes as in docs/conventions.md) or `yaw_deg`, `pitch_deg` and `distance` from the pivot, and
perhaps a field of view.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from vq3dcli.data.images import read_file
from vq3dcli.errors import DataError
from vq3dcli.rendering.cameras import Camera, pivot_pose
from vq3dcli.sealed import JSON, check_seal, first_problem, json_value, write_sealed_json

FORMAT_VERSION = 1
AXES = "cam_to_world, x right, y down, z forward; the pivot at the origin, the first camera on -z"
MOST_CAMERAS = 10_000
_RIGID = 1e-3
_Coordinate = Annotated[float, Field(ge=-1e4, le=1e4)]


class GivenCamera(BaseModel):
    """One camera of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)  # no booleans

    cam_to_world: list[list[_Coordinate]] | None = None  # rows of a rigid matrix, if the pose is given so
    yaw_deg: float = Field(default=0.0, ge=-180, le=180)  # to the right around the pivot, otherwise
    pitch_deg: float = Field(default=0.0, ge=-89, le=89)
    distance: float | None = Field(default=None, ge=1e-3, le=1e4)  # from the pivot; default: the model's radius
    fov_x_deg: float | None = Field(default=None, ge=1, le=170)  # horizontal field of view; default: that of the shot
    # vertical; default: that of the shot, or as `fov_x_deg` with square pixels
    fov_y_deg: float | None = Field(default=None, ge=1, le=170)

    @model_validator(mode="after")
    def _one_pose(self) -> GivenCamera:
        if self.cam_to_world is not None and self.model_fields_set & {"yaw_deg", "pitch_deg", "distance"}:
            raise ValueError("a pose is cam_to_world, or yaw_deg, pitch_deg and distance")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format_version: int = Field(default=FORMAT_VERSION, le=FORMAT_VERSION)
    cameras: list[GivenCamera] = Field(min_length=1, max_length=MOST_CAMERAS)


def read_cameras(path: Path) -> tuple[GivenCamera, ...]:
    """Read a path of cameras.

    Raises `InputMissingError`: there is no such file; `DataError`: it is no list of cameras, or a pose is not rigid.
    """
    data = read_file(path)
    if data.startswith(JSON.mark):  # ours: who edits it takes that line out
        remedy = 'delete the line "file_sha256" if the edit is yours, or another copy'
        check_seal(io.BytesIO(data), JSON, name=f"cameras ({path})", remedy=remedy)
    try:
        value: Any = json_value(data)
        cameras = _File.model_validate({"cameras": value} if isinstance(value, list) else value).cameras
    except ValidationError as error:
        raise DataError(
            f"not a list of cameras ({path}): {first_problem(error)}", remedy="docs/rendering.md shows one"
        ) from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError, too
        raise DataError(f"not JSON ({path}): {error}", remedy="docs/rendering.md shows one") from error
    for index, camera in enumerate(cameras):
        if camera.cam_to_world is not None and not _is_rigid(camera.cam_to_world):
            raise DataError(
                f"camera {index} is no rigid 3x4 or 4x4 matrix ({path})", remedy="a rotation and a translation"
            )
    return tuple(cameras)


def given_camera(
    given: tuple[GivenCamera, ...], *, height_px: int, width_px: int, radius: float, fov_rad: float
) -> Camera:
    """The cameras of a file, one a frame; `radius` and `fov_rad`, on both axes, are for those that say none."""
    poses = torch.stack([_pose(camera, radius) for camera in given])
    intrinsics = torch.zeros(len(given), 3, 3)
    for matrix, camera in zip(intrinsics, given, strict=True):
        x_rad, y_rad = (
            None if fov_deg is None else math.radians(fov_deg) for fov_deg in (camera.fov_x_deg, camera.fov_y_deg)
        )
        focal_x = 0.5 * width_px / math.tan(0.5 * (x_rad or fov_rad))
        focal_y = focal_x
        if y_rad is not None or x_rad is None:
            focal_y = 0.5 * height_px / math.tan(0.5 * (y_rad or fov_rad))
        matrix[:] = torch.tensor([[focal_x, 0.0, 0.5 * width_px], [0.0, focal_y, 0.5 * height_px], [0.0, 0.0, 1.0]])
    return Camera(poses, intrinsics, height_px, width_px)


def write_cameras(path: Path, camera: Camera, *, fps: float) -> None:
    """Write the cameras of a video; `read_cameras` and `given_camera` give them again."""
    fov_deg = [
        [math.degrees(2.0 * math.atan2(0.5 * side, float(focal))) for focal in camera.intrinsics[:, axis, axis]]
        for axis, side in ((0, camera.width_px), (1, camera.height_px))
    ]
    rows = [
        {
            "cam_to_world": [[round(value, 7) for value in row] for row in pose.tolist()],
            "fov_x_deg": round(x_deg, 6),
            "fov_y_deg": round(y_deg, 6),
        }
        for pose, x_deg, y_deg in zip(camera.cam_to_world.cpu(), *fov_deg, strict=True)
    ]
    size = {"height_px": camera.height_px, "width_px": camera.width_px}
    write_sealed_json(path, {"format_version": FORMAT_VERSION, "axes": AXES, "fps": fps, **size, "cameras": rows})


def _pose(camera: GivenCamera, radius: float) -> Tensor:
    if camera.cam_to_world is None:
        angles = torch.tensor([math.radians(camera.yaw_deg)]), torch.tensor([math.radians(camera.pitch_deg)])
        return pivot_pose(*angles, camera.distance or radius)[0]
    pose = torch.eye(4)
    pose[:3] = torch.tensor(camera.cam_to_world[:3])
    return pose


def _is_rigid(rows: list[list[float]]) -> bool:
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        return False
    if len(rows) == 4 and any(abs(a - b) > _RIGID for a, b in zip(rows[3], (0.0, 0.0, 0.0, 1.0), strict=True)):
        return False
    rotation = torch.tensor(rows, dtype=torch.float64)[:3, :3]
    straight = (rotation @ rotation.T - torch.eye(3)).abs().max() < _RIGID
    return bool(straight) and bool(torch.linalg.det(rotation) > 0)
