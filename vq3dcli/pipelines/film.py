"""Filming a scene: the cameras of a shot, stereo, and frames that stream to the encoder.

Legend: F frames, H height_px, W width_px.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_FRAMES, VIDEO_SAMPLES, VIDEO_SIZE_PX
from vq3dcli.errors import UsageError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.video import MAX_GIF_FPS, Quality, VideoFormat, check_quality, video_writer
from vq3dcli.pipelines.camera_file import GivenCamera, given_camera, read_cameras
from vq3dcli.pipelines.targets import Target
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import SceneView, ViewOf
from vq3dcli.rendering.space import Frustum
from vq3dcli.rendering.trajectories import PATHS, trajectory

StereoKind = Literal["sbs", "anaglyph"]
_ASPECT = re.compile(r"(\d{1,4}(?:\.\d{1,4})?):(\d{1,4}(?:\.\d{1,4})?)")

MAX_SIZE_PX = 2048
_MIN_SIDE_PX = 16


@dataclass(frozen=True)
class Shot:
    """How a scene is filmed."""

    path: str = "orbit"
    frames: int = VIDEO_FRAMES
    fps: float = VIDEO_FPS
    # the longer side of the output; None is `VIDEO_SIZE_PX`, or the photo's own with photo detail
    size_px: int | None = None
    fov_deg: float | None = None  # field of view of the output; None is the model's own
    # how far the path goes; None is the path's own, or what suits the scene with photo detail
    amplitude_deg: float | None = None
    samples: int = VIDEO_SAMPLES
    given: tuple[GivenCamera, ...] = ()  # cameras of a file instead of a path
    view_deg: tuple[float, float] | None = None  # a single view instead of a path: yaw and pitch
    aspect: float | None = None  # width / height of the output, cut out of the middle; None is all of the scene's
    quality: Quality = "good"  # of a compressed video

    @property
    def name(self) -> str:
        """What videos of it are called."""
        if self.view_deg is not None:
            return "view"
        return "path" if self.given else "still" if self.still else self.path

    @property
    def still(self) -> bool:
        """Whether its camera does not move."""
        return self.amplitude_deg == 0.0

    @property
    def length(self) -> int:
        """Frames that come out."""
        return len(self.given) or (self.frames if self.view_deg is None else 1)


def shot_of(
    camera: str,
    amplitude_deg: float | None = None,
    *,
    frames: int | None = None,
    seconds: float | None = None,
    fps: float = VIDEO_FPS,
    aspect: str | None = None,
    view_deg: tuple[float, float] | None = None,
    **options: Any,
) -> Shot:
    """The shot of `--camera`: a path by name, `still`, which does not move, or a file of cameras.

    `seconds` say the same as `frames`; `aspect` is a text such as 16:9; `view_deg` is a single view instead.

    Raises:
        UsageError: There is no such path, or an amplitude for what has none; a value that says nothing, or twice.
        DataError: See `camera_file.read_cameras`.
    """
    known = camera in PATHS or camera == "still"
    if not known and not os.path.exists(camera) and not camera.endswith(".json"):
        raise UsageError(f"no camera path {camera!r}", remedy=f"{', '.join(PATHS)}, still, or a JSON file of cameras")
    what = "a camera that stands still has" if known else "the cameras of a file have"
    what = what if view_deg is None else "a single view has"
    if amplitude_deg is not None and (view_deg is not None or camera not in PATHS):
        raise UsageError(f"{what} no amplitude", remedy="--camera orbit")
    if (view_deg is not None or not known) and (frames is not None or seconds is not None):
        raise UsageError(f"{what} its own number of frames", remedy="no --frames and no --seconds")
    if seconds is not None:
        if frames is not None:
            raise UsageError("--frames and --seconds both say how long a video is", remedy="one of them")
        check_limits((("--seconds", seconds, 0.01, 1000.0), ("--fps", fps, 0.1, 240.0)))
        frames = max(1, round(seconds * fps))
    return Shot(
        camera if camera in PATHS else "orbit",
        frames=VIDEO_FRAMES if frames is None else frames,
        fps=fps,
        amplitude_deg=0.0 if camera == "still" else amplitude_deg,
        given=() if known else read_cameras(Path(camera)),
        view_deg=view_deg,
        aspect=_ratio(aspect),
        **options,
    )


def _ratio(aspect: str | None) -> float | None:
    """Width / height. Raises `UsageError`."""
    if aspect is None:
        return None
    match = _ASPECT.fullmatch(aspect)
    ratio = float(match[1]) / (float(match[2]) or math.inf) if match else 0.0
    if not 0.1 <= ratio <= 10.0:
        raise UsageError(f"no shape of a video ({aspect})", remedy="9:16, 1:1, 4:3 or 16:9")
    return ratio


def check_shot(shot: Shot, video_format: VideoFormat) -> None:
    """Raise `UsageError` for the first value that is out of range."""
    yaw, pitch = shot.view_deg or (None, None)
    check_limits(
        (
            ("--frames", shot.frames, 1, 10_000),
            ("--fps of a gif", shot.fps if video_format == "gif" else None, 0.1, MAX_GIF_FPS),
            ("--fps", shot.fps, 0.1, 240.0),
            ("--size", shot.size_px, _MIN_SIDE_PX, MAX_SIZE_PX),
            ("--fov", shot.fov_deg, 5.0, 120.0),
            ("--amplitude", shot.amplitude_deg, 0.0, 60.0),
            ("--samples", shot.samples, 4, 512),
            ("--yaw", yaw, -180.0, 180.0),
            ("--pitch", pitch, -89.0, 89.0),
        )
    )
    check_quality(shot.quality, video_format)


def check_limits(limits: Iterable[tuple[str, float | None, float, float]]) -> None:
    """Raise `UsageError` for the first option whose value is not between its two limits; None is fine."""
    for option, value, low, high in limits:
        # Written so that NaN, which fails every comparison, is refused too.
        if value is not None and not low <= value <= high:
            shown = f"{value:.12g}" if abs(value) < 1e300 else "out of range"  # no float holds 400 digits
            raise UsageError(f"{option} is {shown}, must be {low:g} to {high:g}")


def shot_camera(
    shot: Shot, frustum: Frustum, *, output_px: tuple[int, int] | None = None, pivot_z: float | None = None
) -> Camera:
    """The cameras of a shot, F of them.

    The rays span the field of view on both axes, so a picture that was squashed to a square regains its aspect.

    Args:
        output_px: Height and width of the output, where they are not to follow from the shot and the aspect.
        pivot_z: How far from the canonical camera the point lies that a path turns around; default: the radius. Given
            cameras and single views turn around the origin.
    """
    if output_px is None:
        output_px = output_size(whole_px(shot, shot.size_px or VIDEO_SIZE_PX, frustum.aspect), frustum.aspect)
    height_px, width_px = output_px
    fov_rad = math.radians(shot.fov_deg) if shot.fov_deg else frustum.fov_rad
    given = shot.given
    if shot.view_deg is not None:
        given = (GivenCamera(yaw_deg=shot.view_deg[0], pitch_deg=shot.view_deg[1]),)
    if given:
        camera = given_camera(given, height_px=height_px, width_px=width_px, radius=frustum.radius, fov_rad=fov_rad)
        return _cut(camera, shot.aspect)
    turns_around = frustum.radius if pivot_z is None or shot.path.startswith("dolly") else pivot_z
    camera = trajectory(
        shot.path,
        shot.frames,
        height_px=height_px,
        width_px=width_px,
        amplitude_rad=None if shot.amplitude_deg is None else math.radians(shot.amplitude_deg),
        radius=turns_around,
        fov_rad=fov_rad,
        fov_y_rad=fov_rad,
    )
    camera.cam_to_world[:, 2, 3] += turns_around - frustum.radius
    return _cut(camera, shot.aspect)


def whole_px(shot: Shot, size_px: int, aspect: float) -> int:
    """Longer side of a picture, whose middle of the shot's aspect has a longer side of `size_px`."""
    if shot.aspect is None:
        return size_px
    cut = max(min(aspect, shot.aspect), min(1.0, aspect / shot.aspect))
    return round(size_px * max(aspect, 1.0) / cut)


def _cut(camera: Camera, aspect: float | None) -> Camera:
    """The cameras of the largest middle part of a picture that has an aspect; None for all of it."""
    height_px, width_px = camera.height_px, camera.width_px
    if aspect is not None:
        fitting = 2 * round(0.5 * width_px / aspect), 2 * round(0.5 * height_px * aspect)  # even, as videos are
        height_px, width_px = max(2, min(height_px, fitting[0])), max(2, min(width_px, fitting[1]))
    matrix = camera.intrinsics.clone()
    matrix[:, 0, 2] -= (camera.width_px - width_px) // 2
    matrix[:, 1, 2] -= (camera.height_px - height_px) // 2
    return Camera(camera.cam_to_world, matrix, height_px, width_px)


def output_size(size_px: int, aspect: float) -> tuple[int, int]:
    """Height and width: the longer side is `size_px`, the other at least 16 px and rounded to an even number."""
    ratio = min(aspect, 1.0 / aspect)
    short_px = max(_MIN_SIDE_PX, 2 * round(0.5 * size_px * ratio)) if ratio < 1.0 else size_px
    return (short_px, size_px) if aspect >= 1.0 else (size_px, short_px)


@dataclass(frozen=True)
class Eyes:
    """Two eyes in the place of a camera."""

    # `sbs`: left and right image side by side, each of full width; `anaglyph`: red from the left one, green and blue
    # from the right one
    kind: StereoKind
    distance: float  # between them, along x
    focus_z: float  # z_depth at which both images agree: what is nearer stands before the screen

    def eye(self, camera: Camera, side: float) -> Camera:
        """The cameras of an eye, `side` eye distances to the right, its image shifted so that the focus agrees."""
        shift = side * self.distance
        pose, matrix = camera.cam_to_world.clone(), camera.intrinsics.clone()
        pose[:, :3, 3] += shift * pose[:, :3, 0]
        matrix[:, 0, 2] += matrix[:, 0, 0] * shift / self.focus_z
        return replace(camera, cam_to_world=pose, intrinsics=matrix)

    def both(self, camera: Camera) -> Camera:
        """The cameras of the left eye, then those of the right one."""
        left, right = self.eye(camera, -0.5), self.eye(camera, 0.5)
        poses = torch.cat([left.cam_to_world, right.cam_to_world])
        return replace(camera, cam_to_world=poses, intrinsics=torch.cat([left.intrinsics, right.intrinsics]))

    def see(self, view_of: ViewOf) -> ViewOf:
        """Views `[V, 3, H, 2 W]` side by side, or `[V, 3, H, W]`; s is the left eye's, or both side by side."""

        def pairs(camera: Camera) -> SceneView:
            left, right = view_of(self.eye(camera, -0.5)), view_of(self.eye(camera, 0.5))
            if self.kind == "sbs":
                return SceneView(*(torch.cat(pair, -1) for pair in zip(left, right, strict=True)))
            return left._replace(rgb=torch.cat([left.rgb[:, :1], right.rgb[:, 1:]], 1))

        return pairs


def film(
    view_at: Callable[[int], ViewOf], camera: Camera, target: Target, shot: Shot, *, on_frames: Callable[[int], object]
) -> None:
    """Render a scene frame by frame into its target; memory does not grow with the number of frames."""
    with contextlib.ExitStack() as stack:
        opening = partial(video_writer, frames=len(camera), fps=shot.fps, video_format=target.video_format)
        # Both outputs get their final names at the end, the disparity first.
        sinks = [stack.enter_context(opening(path, quality=shot.quality)) for path in target.paths]
        shown: tuple[float, float] | None = None
        for frame in range(len(camera)):
            view = view_at(frame)(camera[frame])
            pictures = [view.rgb]
            if len(sinks) > 1 or target.beside:
                # One range of colours for the whole video: it would flicker otherwise.
                shown = shown or display_range(view.s[0])
                pictures.append(colour_map(view.s, *shown))
            for sink, picture in zip(sinks, [torch.cat(pictures, -1)] if target.beside else pictures, strict=True):
                sink(picture)
            on_frames(1)
