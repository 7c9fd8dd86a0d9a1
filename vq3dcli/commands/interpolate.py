"""`vq3d interpolate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_SAMPLES

INPUTS = (
    "Two or more photos, samples (samples.json#NAME), saved scenes (NAME.vq3d.safetensors) or toyscene:CLASS[:SEED]."
)
MIX = "codes: through the space of codes, every frame decoded; planes: a weighted mean of the tri-planes."
OUTPUT = "NAME.mp4, .webm, .gif or .png (contact sheet), or FOLDER/. Default: A_to_B_interpolation.mp4."


def command(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help=INPUTS)],
    mix: Annotated[Literal["codes", "planes"], typer.Option(help=MIX)] = "codes",
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Move every mixed token to its nearest code.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Return to A, so that the video repeats.")] = False,
    camera: options.Camera = "still",
    frames: options.Frames = None,
    seconds: options.Seconds = None,
    fps: options.Fps = VIDEO_FPS,
    size: options.Size = None,
    aspect: options.Aspect = None,
    fov: Annotated[float | None, typer.Option(help="Field of view in degrees. Default: the model's.")] = None,
    amplitude: options.Amplitude = None,
    samples: options.Samples = VIDEO_SAMPLES,
    quality: options.Quality = "good",
    disparity: options.Disparity = False,
    beside: options.Beside = False,
    fit: Annotated[
        Literal["crop", "squash"], typer.Option(help="What of a photo is kept; squash has the first one's shape.")
    ] = "crop",
    video_format: options.Format = None,
    open_it: options.Open = False,
    weights: options.Weights = None,
    exact: options.Exact = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Turn one scene into another: photos, samples and saved scenes.

    Example:
      vq3d interpolate cat.jpg dog.jpg -o cat_to_dog.mp4
      vq3d interpolate a.jpg b.jpg c.jpg --loop --camera orbit --disparity
      vq3d interpolate samples/samples.json#torus-0000 photo.jpg --mix planes
    """
    from vq3dcli.pipelines.film import shot_of
    from vq3dcli.pipelines.interpolate import interpolate
    from vq3dcli.pipelines.targets import Task

    said = Output("interpolate", json, quiet)
    of_video: dict[str, Any] = {"frames": frames, "seconds": seconds, "fps": fps, "aspect": aspect, "quality": quality}
    shot = shot_of(camera or "still", amplitude, **of_video, size_px=size, fov_deg=fov, samples=samples)
    with said.progress("rendering", unit="frames") as count:
        shown = options.asked_disparity(disparity, beside)
        task = Task(pick_device(device), output, video_format, shown, None, weights, count, said.replacing)
        made = interpolate(inputs, shot, task, mix=mix, requantize=requantize, loop=loop, fit=fit)
    metrics = made.metrics | {"camera": camera}
    said.finish(count=made.inputs, weights=made.weights, metrics=metrics, table=[], outputs=made.outputs, show=open_it)
