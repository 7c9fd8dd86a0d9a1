"""`vq3d demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the videos and contact sheets.")] = Path("demo-out"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights file or run folder. Default: the embedded ones.")
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a photo and toy scenes into videos with the embedded weights.

    Example:
      vq3d demo
      vq3d demo --out demo-out --weights run/
    """
    said = Output("demo", json, quiet)

    from vq3dcli.checkpoint import load_weights
    from vq3dcli.pipelines.demo import demo, total_frames

    loaded = load_weights(weights, pick_device(device))
    with said.progress("rendering", total_frames(), unit="frames") as progress:
        outputs = demo(loaded, out, on_frames=progress.advance)
    said.finish(count=len(outputs), weights=loaded, outputs=outputs, table=[])
