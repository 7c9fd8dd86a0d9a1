"""`vq3d interpolate`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from vq3dcli.commands.options import DisparityOption, FormatOption, WeightsOption
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_FRAMES, VIDEO_SAMPLES, VIDEO_SIZE_PX
from vq3dcli.errors import UsageError

CameraName = Literal["still", "orbit", "swing", "spiral", "dolly", "dolly-zoom"]

INPUTS = (
    "Two or more photos, samples (samples.json#NAME), saved scenes (NAME.vq3d.safetensors) or toyscene:CLASS[:SEED]."
)
MIX = "codes: through the space of codes, every frame decoded; planes: a weighted mean of the tri-planes."
OUTPUT = "NAME.mp4, .webm, .gif or .png (contact sheet), or FOLDER/. Default: A_to_B_interpolation.mp4."


def command(
    inputs: Annotated[list[str], typer.Argument(metavar="A B [C]...", help=INPUTS)],
    mix: Annotated[Literal["codes", "planes"], typer.Option(help=MIX)] = "codes",
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Move every mixed token to its nearest code.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Return to A, so that the video repeats.")] = False,
    camera: Annotated[CameraName, typer.Option(help="How the camera moves meanwhile, once around.")] = "still",
    frames: Annotated[int, typer.Option(help="Frames of the video.")] = VIDEO_FRAMES,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = VIDEO_FPS,
    size: Annotated[int, typer.Option(help="Longer side of the video in pixels.")] = VIDEO_SIZE_PX,
    fov: Annotated[float | None, typer.Option(help="Field of view in degrees. Default: the model's.")] = None,
    amplitude: Annotated[float | None, typer.Option(help="How far the camera goes, in degrees.")] = None,
    samples: Annotated[int, typer.Option(help="Samples a ray; more are slower and a little cleaner.")] = VIDEO_SAMPLES,
    disparity: DisparityOption = False,
    fit: Annotated[
        Literal["crop", "squash"], typer.Option(help="What of a photo is kept; squash has the first one's shape.")
    ] = "crop",
    video_format: FormatOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Turn one scene into another: photos, samples and saved scenes.

    Example:
      vq3d interpolate cat.jpg dog.jpg -o cat_to_dog.mp4
      vq3d interpolate a.jpg b.jpg c.jpg --loop --camera orbit --disparity
      vq3d interpolate samples/samples.json#torus-0000 photo.jpg --mix planes
    """
    from vq3dcli.pipelines.film import Shot, check_shot, film_changing, shot_camera
    from vq3dcli.pipelines.inputs import needs_weights, open_scene, parse_sources
    from vq3dcli.pipelines.interpolate import joint_stem, plan_journey
    from vq3dcli.pipelines.targets import check_targets, plan_joint_target
    from vq3dcli.weights_file import load_weights

    if output == "-":
        raise UsageError("interpolate writes files, not stdout", remedy="a file name with -o")
    said = Output("interpolate", json, quiet)
    still = camera == "still"
    if still and amplitude is not None:
        raise UsageError("a camera that stands still has no amplitude", remedy="--camera orbit")
    shot = Shot("orbit" if still else camera, frames, fps, size, fov, 0.0 if still else amplitude, samples)
    sources = parse_sources(inputs)
    stem = joint_stem([source.stem for source in sources])
    kept = [] if weights is None else [weights]
    target = plan_joint_target(
        sources, stem, output, video_format, kind="interpolation", disparity=disparity, kept=kept
    )
    check_shot(shot, target.video_format)
    check_targets([target])
    said.replacing(target.replaced)
    place = pick_device(device)
    wanted = mix == "codes" or weights is not None or needs_weights(sources)
    loaded = load_weights(weights, place) if wanted else None
    stdin = None if sys.stdin is None else sys.stdin.buffer
    opened = [open_scene(source, loaded, fit=fit, stdin=stdin, device=place) for source in sources]
    journey = plan_journey(opened, loaded, mix=mix, requantize=requantize, loop=loop)
    seen_by = opened[0].camera
    cameras = shot_camera(shot, radius=seen_by.radius, fov_deg=seen_by.fov_deg, aspect=seen_by.aspect)
    said.note(f"{frames} frames between {len(opened)} scenes, mixing {mix}")
    with said.progress("rendering", frames, unit="frames") as progress:
        film_changing(
            lambda frame: journey.scene_at(frame, frames),
            cameras,
            target,
            fps=fps,
            samples=samples,
            on_frames=progress.advance,
        )
    said.finish(
        count=len(opened),
        weights=loaded,
        metrics={"mix": mix, "requantize": requantize, "loop": loop, "camera": camera, "frames": frames, "fps": fps},
        table=[],
        outputs=target.paths,
    )
