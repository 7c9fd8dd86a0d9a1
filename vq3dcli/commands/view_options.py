"""What commands share that show scenes: weights, the format of a video, its disparity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

FormatName = Literal["mp4", "webm", "gif", "png", "frames"]

FOV = (
    "Field of view in degrees; less zooms in. Default: the model's; with photo detail up to 12 % closer, so that "
    "nothing beyond the photo's edges shows."
)
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
DisparityOption = Annotated[bool, typer.Option("--disparity", help="Also write NAME_disparity: near is bright.")]
GeometryOption = Annotated[
    Literal["nerf", "teacher", "both"] | None,
    typer.Option(
        "--geometry",
        help="Whence photo detail has its geometry: the NeRF, the embedded depth network, or that network at the "
        "NeRF's scale. Default: both, or nerf where no network is embedded.",
    ),
]
