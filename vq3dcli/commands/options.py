"""Options that several commands share; those of all of them are in `output`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vq3dcli.commands.output import Output
from vq3dcli.config.defaults import VIDEO_FRAMES
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    from vq3dcli.data_tools.part import Part
    from vq3dcli.pipelines.targets import Disparity

FormatName = Literal["mp4", "webm", "gif", "png", "frames"]

FOV = (
    "Field of view in degrees; less zooms in. Default: the model's; with photo detail up to 12 % closer, so that "
    "nothing beyond the photo's edges shows."
)
PhotoFovOption = Annotated[
    float | None,
    typer.Option(
        "--photo-fov", help="Field of view of the photo, in degrees of its width. Default: by its EXIF, else 40."
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Weights file, run folder or checkpoint. Default: the embedded ones.")
]
FormatOption = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        help="Format, where the name does not tell it: mp4, webm, gif, png (contact sheet) or frames (a PNG each).",
    ),
]
CameraOption = Annotated[
    str | None,
    typer.Option(
        "--camera",
        metavar="NAME|FILE",
        help="orbit, swing, spiral, dolly, dolly-zoom, still, or a JSON file of cameras as render writes it.",
    ),
]
AmplitudeOption = Annotated[
    float | None,
    typer.Option(
        "--amplitude",
        help="How far the camera goes, in degrees. Default: what suits the scene with photo detail; else 20, dolly 12.",
    ),
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", help=f"Frames of a video. Default: {VIDEO_FRAMES}, which loop.")
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="The same in seconds.")]
FpsOption = Annotated[float, typer.Option("--fps", help="Frames a second.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        help="Longer side of a video in pixels. Default: the photo's, at most 1024, with photo detail; else 256.",
    ),
]
AspectOption = Annotated[
    str | None,
    typer.Option("--aspect", metavar="W:H", help="Shape of a video, as 9:16 or 1:1, cut out of its middle."),
]
QualityOption = Annotated[
    Literal["small", "good", "best"], typer.Option("--quality", help="Of mp4 and webm: small files are to be sent.")
]
DisparityOption = Annotated[bool, typer.Option("--disparity", help="Also write NAME_disparity: near is bright.")]
BesideOption = Annotated[
    bool, typer.Option("--beside", help="Show picture and disparity beside each other, in one video.")
]
StdinListOption = Annotated[
    bool, typer.Option("--stdin-list", help="Also take inputs from stdin, one a line, or as find -print0 writes them.")
]


def asked_inputs(inputs: list[str] | None, stdin_list: bool) -> list[str]:
    """The inputs of a command, and those that stdin lists."""
    if not stdin_list or sys.stdin is None:
        return inputs or []
    listed = sys.stdin.read()
    return [*(inputs or []), *filter(None, listed.split("\0") if "\0" in listed else listed.splitlines())]


OpenOption = Annotated[bool, typer.Option("--open", help="Open what was made.")]


def asked_disparity(disparity: bool, beside: bool) -> Disparity:
    """What `--disparity` and `--beside` say together. Raises `UsageError`."""
    if disparity and beside:
        raise UsageError("--disparity and --beside both show disparity", remedy="one of them")
    return "beside" if beside else disparity


def _render_exactly(context: typer.Context, wanted: bool) -> bool:
    """Until the command ends all is rendered by tensor operations."""
    if wanted:
        from vq3dcli.rendering.render import exact_rendering

        context.with_resource(exact_rendering())
    return wanted


ExactOption = Annotated[
    bool,
    typer.Option(
        "--exact",
        callback=_render_exactly,
        help="Evaluate all samples of the NeRF; a tenth as fast, and no pixel differs by more than a grey level.",
    ),
]
GeometryOption = Annotated[
    Literal["nerf", "teacher", "both"] | None,
    typer.Option(
        "--geometry",
        help="Whence photo detail has its geometry: the NeRF, the embedded depth network, or that network at the "
        "NeRF's scale. Default: both, or nerf where no network is embedded.",
    ),
]

Stage1Option = Annotated[
    Path | None, typer.Option("--weights", help="Stage 1 weights, a run's folder, a checkpoint. Default: embedded.")
]
PriorOption = Annotated[
    Path | None, typer.Option("--prior", help="A prior's weights, a run's folder, a checkpoint. Default: embedded.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        min=0,
        max=100,
        help="Above 1 more varied, below 1 safer, 0 the likeliest code. Default: the prior's.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", min=0, max=65536, help="Draw from so many codes; 0 for all. Default: the prior's."),
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, help="Draw from codes of this probability together. Default: the prior's."),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance", min=0, max=100, help="Above 1 more typical of the class; 1 is off. Default: the prior's."
    ),
]


def asked_sharpening(
    temperature: float | None, top_k: int | None, top_p: float | None, guidance: float | None
) -> dict[str, float]:
    """What was asked for, by the names of `model.draw_codes.Sharpening`; the rest is up to the prior."""
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    return {name: value for name, value in asked.items() if value is not None}


PartOption = Annotated[
    str, typer.Option("--part", help="Share of the work, 1/8 to 8/8; auto asks torchrun's or SLURM's variables.")
]


def asked_part(text: str, said: Output) -> Part:
    """The share that `--part` names. Raises `UsageError`."""
    from vq3dcli.data_tools.part import WHOLE, parse_part, part_from_environment

    part = part_from_environment(os.environ) if text == "auto" else parse_part(text)
    if part != WHOLE:
        said.note(f"part {part}: every shard or group whose number leaves {part.index} when divided by {part.count}")
    return part


def unfinished(part: Part) -> str:
    """What a part says that was not the last."""
    return f"part {part} is done; the part that ends last finishes the whole, or this command run once more"
