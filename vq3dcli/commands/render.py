"""`vq3d render`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import Output, stdout_bytes
from vq3dcli.errors import UsageError

INPUTS = (
    "Photos (JPEG, PNG, WebP, AVIF, HEIC), folders of photos, - for stdin, saved scenes (.vq3d.safetensors), samples "
    "(samples.json#NAME), or toyscene:CLASS[:SEED]."
)
OUTPUT = (
    "NAME.mp4, .webm or .gif; NAME.png, a contact sheet; FOLDER/, PNG frames; with several inputs FOLDER/ or a pattern "
    "with {name}; - for stdout. Default: INPUT_orbit.mp4 in the current folder. The cameras are written beside it."
)
PATH = "A JSON list of cameras, as it is written beside each video; the same as --camera FILE."
DEPTH = "A disparity map of the photo (PNG, .npy, .pfm; near is large, in any unit) instead of the NeRF's geometry."
DEPTH_MODEL = (
    "The same by a depth network: a folder, an .onnx file, a name of the Hugging Face Hub, what vq3d train-depth made, "
    "or embedded."
)
SCENE = "Also write NAME.vq3d.safetensors, which is taken wherever a photo is."
STEREO = "sbs: left and right view side by side; anaglyph: for red-cyan glasses."


def command(
    said: Output,
    filmed: options.Filmed,
    inputs: Annotated[list[str] | None, typer.Argument(metavar="INPUT", help=INPUTS)] = None,
    stdin_list: options.StdinList = False,
    orbit: Annotated[bool, typer.Option("--orbit", help="Circle around the first view; the default.")] = False,
    swing: Annotated[bool, typer.Option("--swing", help="Right, left and back.")] = False,
    spiral: Annotated[bool, typer.Option("--spiral", help="Widening circles from the first view and back.")] = False,
    dolly: Annotated[bool, typer.Option("--dolly", help="Towards the subject and back.")] = False,
    dolly_zoom: Annotated[bool, typer.Option("--dolly-zoom", help="The same, the subject keeping its size.")] = False,
    path_file: Annotated[Path | None, typer.Option("--path", metavar="FILE", help=PATH)] = None,
    yaw: Annotated[float | None, typer.Option(help="A single view, so many degrees to the right.")] = None,
    pitch: Annotated[float | None, typer.Option(help="A single view, so many degrees up.")] = None,
    detail: options.Detail = None,
    save_scene: Annotated[bool, typer.Option("--save-scene", help=SCENE)] = False,
    stereo: Annotated[Literal["sbs", "anaglyph"] | None, typer.Option(help=STEREO)] = None,
    geometry: options.Geometry = None,
    photo_fov: options.PhotoFov = None,
    depth: Annotated[Path | None, typer.Option(metavar="FILE", help=DEPTH)] = None,
    depth_model: Annotated[str | None, typer.Option(metavar="NAME", help=DEPTH_MODEL)] = None,
    fit: options.Fit = None,
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Turn photos into videos of novel views.

    Example:
      vq3d render photo.jpg --camera orbit --disparity
      vq3d render photo.jpg --yaw 5 --pitch 2 -o still.png
      vq3d render photo.jpg --swing --stereo anaglyph --depth disparity.png
      vq3d render *.jpg --camera swing --size 256 -o videos/
      vq3d render toyscene:snowman -o snowman.gif
      curl -s https://example.org/cat.png | vq3d render - -o - --format mp4 > cat.mp4
    """
    flags = {"orbit": orbit, "swing": swing, "spiral": spiral, "dolly": dolly, "dolly-zoom": dolly_zoom}
    view = None if yaw is None and pitch is None else (yaw or 0.0, pitch or 0.0)
    asked = {f"--{name}": name for name, chosen in flags.items() if chosen}
    asked |= {} if path_file is None else {"--path": str(path_file)}
    asked |= {} if view is None else {"--yaw or --pitch": "orbit"}
    asked |= {} if filmed.camera is None else {"--camera": filmed.camera}
    if len(asked) > 1:
        raise UsageError(f"one camera path at a time, not {' and '.join(asked)}")
    camera = next(iter(asked.values()), "orbit")
    texts, to_stdout = options.asked_inputs(inputs, stdin_list), output == "-"
    if to_stdout:
        _check_stdout(len(texts), filmed.video_format, json=said.json, more=filmed.disparity or save_scene)
    said.stdout_is_data = to_stdout

    from vq3dcli.pipelines.render import Look, render

    shot = filmed.shot(camera, view)
    look = Look(detail, fit, stereo=stereo, write_cameras=not to_stdout, save_scene=save_scene, photo_fov_deg=photo_fov)
    kept = [Path(camera)] if shot.given else []
    with (
        _file_for_stdout(filmed.video_format) if to_stdout else nullcontext(output) as place,
        said.progress("rendering", unit="frames") as count,
    ):
        task = filmed.task(said, count, place, geometry)
        made = render(texts, shot, look, task, depth=depth, depth_model=depth_model, kept=kept)
    said.show_made(made, show=filmed.open_it, outputs=["-"] if to_stdout else None)


def _check_stdout(inputs: int, video_format: str | None, *, json: bool, more: bool) -> None:
    if video_format is None or video_format == "frames":
        raise UsageError("-o - needs the format of a single file", remedy="--format mp4")
    if json:
        raise UsageError("-o - and --json both want stdout", remedy="a file name with -o")
    if more or inputs > 1:
        raise UsageError("only one video fits into stdout", remedy="-o FOLDER/")
    if stdout_bytes().isatty():
        raise UsageError(
            "a video would garble the terminal", remedy="a pipe behind the command, or a file name with -o"
        )


@contextmanager
def _file_for_stdout(video_format: str | None) -> Iterator[str]:
    """A temporary file that goes to stdout when it is complete.

    An mp4 with its index in front cannot be written to a pipe, and half a video is better not sent at all.
    """
    with tempfile.TemporaryDirectory(prefix="vq3d-") as folder:
        file = Path(folder) / f"video.{video_format}"
        yield str(file)
        stdout = stdout_bytes()
        with file.open("rb") as handle:
            shutil.copyfileobj(handle, stdout)
        stdout.flush()
