"""`vq3d interpolate`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import Output

INPUTS = (
    "Two or more photos, samples (samples.json#NAME), saved scenes (NAME.vq3d.safetensors) or toyscene:CLASS[:SEED]."
)
MIX = "codes: through the space of codes, every frame decoded; planes: a weighted mean of the tri-planes."
OUTPUT = "NAME.mp4, .webm, .gif or .png (contact sheet), or FOLDER/. Default: A_to_B_interpolation.mp4."
_FILMED = options.FilmedPlainly()


def command(
    said: Output,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help=INPUTS)],
    mix: Annotated[Literal["codes", "planes"], typer.Option(help=MIX)] = "codes",
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Move every mixed token to its nearest code.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Return to A, so that the video repeats.")] = False,
    filmed: options.FilmedPlainly = _FILMED,
    fit: Annotated[
        Literal["crop", "squash"], typer.Option(help="What of a photo is kept; squash has the first one's shape.")
    ] = "crop",
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Turn one scene into another: photos, samples and saved scenes.

    Example:
      vq3d interpolate cat.jpg dog.jpg -o cat_to_dog.mp4
      vq3d interpolate a.jpg b.jpg c.jpg --loop --camera orbit --disparity
      vq3d interpolate samples/samples.json#torus-0000 photo.jpg --mix planes
    """
    from vq3dcli.pipelines.interpolate import interpolate

    shot = filmed.shot()
    with said.progress("rendering", unit="frames") as count:
        task = filmed.task(said, count, output)
        made = interpolate(inputs, shot, task, mix=mix, requantize=requantize, loop=loop, fit=fit)
    said.show_made(made, show=filmed.open_it, camera=filmed.camera)
