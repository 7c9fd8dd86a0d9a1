"""Filming a scene: the cameras of a shot, and frames that stream to the encoder.

Legend: F frames, H height_px, W width_px.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_FRAMES, VIDEO_SAMPLES, VIDEO_SIZE_PX
from vq3dcli.errors import UsageError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.video import MAX_GIF_FPS, VideoFormat, video_writer
from vq3dcli.model.scene import Renderable
from vq3dcli.pipelines.camera_file import GivenCamera, given_camera
from vq3dcli.pipelines.targets import Target
from vq3dcli.rendering.cameras import Camera, one_camera
from vq3dcli.rendering.trajectories import PATHS, trajectory

MAX_SIZE_PX = 2048
_MIN_SIDE_PX = 16
# Points that a chunk of rays holds whatever the samples a ray: what fits the cache.
_POINTS_PER_CHUNK = 1024 * 32


@dataclass(frozen=True)
class Shot:
    """How a scene is filmed.

    Attributes:
        path: A name in `trajectories.PATHS`.
        frames: Length.
        fps: Frames a second.
        size_px: The longer side of the output; None is `VIDEO_SIZE_PX`, or the photo's own with photo detail.
        fov_deg: Field of view of the output; None is the model's own.
        amplitude_deg: How far the path goes; None is the path's own, or what suits the scene with photo detail.
        samples: Samples a ray.
        given: Cameras of a file instead of a path.
        view_deg: A single view instead of a path: yaw and pitch.
    """

    path: str = "orbit"
    frames: int = VIDEO_FRAMES
    fps: float = VIDEO_FPS
    size_px: int | None = None
    fov_deg: float | None = None
    amplitude_deg: float | None = None
    samples: int = VIDEO_SAMPLES
    given: tuple[GivenCamera, ...] = ()
    view_deg: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Frames that come out."""
        return len(self.given) or (self.frames if self.view_deg is None else 1)


def check_shot(shot: Shot, video_format: VideoFormat) -> None:
    """Raise `UsageError` for the first value that is out of range."""
    limits = (
        ("--frames", shot.frames, 1, 10_000),
        ("--fps of a gif", shot.fps if video_format == "gif" else None, 0.1, MAX_GIF_FPS),
        ("--fps", shot.fps, 0.1, 240.0),
        ("--size", shot.size_px, _MIN_SIDE_PX, MAX_SIZE_PX),
        ("--fov", shot.fov_deg, 5.0, 120.0),
        ("--amplitude", shot.amplitude_deg, 0.0, 60.0),
        ("--samples", shot.samples, 4, 512),
        ("--yaw", None if shot.view_deg is None else shot.view_deg[0], -180.0, 180.0),
        ("--pitch", None if shot.view_deg is None else shot.view_deg[1], -89.0, 89.0),
    )
    check_limits(limits)
    if shot.path not in PATHS:
        raise UsageError(f"no camera path {shot.path!r}", remedy=", ".join(f"--{name}" for name in PATHS))


def check_limits(limits: Iterable[tuple[str, float | None, float, float]]) -> None:
    """Raise `UsageError` for the first option whose value is not between its two limits; None is fine."""
    for option, value, low, high in limits:
        # Written so that NaN, which fails every comparison, is refused too.
        if value is not None and not low <= value <= high:
            shown = f"{value:.12g}" if abs(value) < 1e300 else "out of range"  # no float holds 400 digits
            raise UsageError(f"{option} is {shown}, must be {low:g} to {high:g}")


def shot_camera(
    shot: Shot,
    *,
    radius: float,
    fov_deg: float,
    aspect: float = 1.0,
    output_px: tuple[int, int] | None = None,
    pivot_z: float | None = None,
) -> Camera:
    """The cameras of a shot, F of them.

    The rays span the field of view on both axes, so a picture that was squashed to a square regains its `aspect`.

    Args:
        shot: How to film.
        radius: The canonical camera's distance from the pivot.
        fov_deg: The model's field of view, for a shot that has none of its own.
        aspect: Width / height of the output.
        output_px: Height and width of the output, where they are not to follow from the shot and the aspect.
        pivot_z: How far from the canonical camera the point lies that a path turns around; default: `radius`. Given
            cameras and single views turn around the origin.
    """
    height_px, width_px = output_px or output_size(shot.size_px or VIDEO_SIZE_PX, aspect)
    fov_rad = math.radians(shot.fov_deg or fov_deg)
    size = {"height_px": height_px, "width_px": width_px}
    given = shot.given
    if shot.view_deg is not None:
        given = (GivenCamera(yaw_deg=shot.view_deg[0], pitch_deg=shot.view_deg[1]),)
    if given:
        return given_camera(given, **size, radius=radius, fov_x_rad=fov_rad, fov_y_rad=fov_rad)
    turns_around = radius if pivot_z is None or shot.path.startswith("dolly") else pivot_z
    camera = trajectory(
        shot.path,
        shot.frames,
        **size,
        amplitude_rad=None if shot.amplitude_deg is None else math.radians(shot.amplitude_deg),
        radius=turns_around,
        fov_rad=fov_rad,
        fov_y_rad=fov_rad,
    )
    camera.cam_to_world[:, 2, 3] += turns_around - radius
    return camera


def output_size(size_px: int, aspect: float) -> tuple[int, int]:
    """Height and width: the longer side is `size_px`, the other at least 16 px and rounded to an even number."""
    ratio = min(aspect, 1.0 / aspect)
    short_px = max(_MIN_SIDE_PX, 2 * round(0.5 * size_px * ratio)) if ratio < 1.0 else size_px
    return (short_px, size_px) if aspect >= 1.0 else (size_px, short_px)


def film(
    scene: Renderable, camera: Camera, target: Target, *, fps: float, samples: int, on_frames: Callable[[int], object]
) -> None:
    """`film_changing` of a scene that stays as it is."""
    film_changing(lambda _: scene, camera, target, fps=fps, samples=samples, on_frames=on_frames)


def film_changing(
    scene_at: Callable[[int], Renderable],
    camera: Camera,
    target: Target,
    *,
    fps: float,
    samples: int,
    on_frames: Callable[[int], object],
) -> None:
    """Render a scene frame by frame into its target; memory does not grow with the number of frames.

    Args:
        scene_at: The scene of a frame, a single one.
        camera: The camera of each frame, F of them.
        target: Where to; `check_targets` has seen it.
        fps: Frames a second.
        samples: Samples a ray.
        on_frames: Called with the number of frames just rendered.

    Raises:
        UnavailableError, OutputError, StorageError: See `export.video.video_writer`.
    """
    frames = camera.cam_to_world.shape[0]
    with contextlib.ExitStack() as stack:
        # Both outputs get their final names at the end, the disparity first.
        sinks = [
            stack.enter_context(video_writer(path, frames=frames, fps=fps, video_format=target.video_format))
            for path in target.paths
        ]
        shown: tuple[float, float] | None = None
        for frame in range(frames):
            view = scene_at(frame).render(
                one_camera(camera, frame), samples=samples, rays_per_chunk=max(1, _POINTS_PER_CHUNK // samples)
            )
            sinks[0].write(view.rgb)
            if len(sinks) > 1:
                # One range of colours for the whole video: it would flicker otherwise.
                shown = shown or display_range(view.s[0])
                sinks[1].write(colour_map(view.s, *shown))
            on_frames(1)
