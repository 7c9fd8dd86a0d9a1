"""Filming what changes from frame to frame, and the one output of a command that joins several inputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from vq3dcli.errors import UsageError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.video import video_writer
from vq3dcli.model.scene import Renderable
from vq3dcli.pipelines.inputs import Source
from vq3dcli.pipelines.targets import Target, plan_targets
from vq3dcli.rendering.cameras import Camera

# As `film` has it: what fits the cache.
_POINTS_PER_CHUNK = 1024 * 32


def film_changing(
    scene_at: Callable[[int], Renderable],
    camera: Camera,
    target: Target,
    *,
    fps: float,
    samples: int,
    on_frames: Callable[[int], object],
) -> None:
    """Render a scene that is another in each frame into its target, one scene in memory at a time.

    Args:
        scene_at: The scene of a frame.
        camera: The camera of each frame.
        target: Where to; `check_targets` has seen it.
        fps: Frames a second.
        samples: Samples a ray.
        on_frames: Called with the number of frames just rendered.

    Raises:
        UnavailableError, OutputError, StorageError: See `export.video.video_writer`.
    """
    frames = camera.cam_to_world.shape[0]
    with contextlib.ExitStack() as stack:
        sinks = [
            stack.enter_context(video_writer(path, frames=frames, fps=fps, video_format=target.video_format))
            for path in target.paths
        ]
        shown: tuple[float, float] | None = None
        for frame in range(frames):
            part = one_camera(camera, frame)
            view = scene_at(frame).render(part, samples=samples, rays_per_chunk=max(1, _POINTS_PER_CHUNK // samples))
            sinks[0].write(view.rgb)
            if len(sinks) > 1:
                # One range of colours for the whole video: it would flicker otherwise.
                shown = shown or display_range(view.s[0])
                sinks[1].write(colour_map(view.s, *shown))
            on_frames(1)


def one_camera(camera: Camera, frame: int) -> Camera:
    """The camera of one frame, as a batch of one."""
    here = slice(frame, frame + 1)
    return Camera(camera.cam_to_world[here], camera.intrinsics[here], camera.height_px, camera.width_px)


def plan_joint_target(
    sources: Sequence[Source], stem: str, output: str | None, video_format: str | None, *, kind: str, disparity: bool
) -> Target:
    """Where the one video of several inputs goes; see `targets.plan_targets`.

    Args:
        sources: The inputs, none of which may be overwritten.
        stem: What the output is named after, where `-o` does not say.
        output: What `-o` says.
        video_format: What `--format` says.
        kind: The last part of a name that is made here.
        disparity: Whether a disparity video is wanted.

    Raises:
        UsageError: See `targets.plan_targets`.
    """
    target = plan_targets(
        [dataclasses.replace(sources[0], stem=stem)], output, video_format, path=kind, disparity=disparity
    )[0]
    inputs = {source.path.resolve() for source in sources if source.is_file}
    for written in target.paths:
        if written.resolve() in inputs:
            raise UsageError(f"the output would overwrite the input ({written})", remedy="another name with -o")
    return target
