"""What commands share that show scenes: weights, the format of a video, its disparity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

FormatName = Literal["mp4", "webm", "gif", "png", "frames"]

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
