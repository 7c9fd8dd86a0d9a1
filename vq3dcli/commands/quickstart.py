"""`vq3d quickstart`: the whole pipeline at toy scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, Output, SeedOption, pick_device


def command(
    output: Output,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.1, max=1440, help="Training time of Stage 1; 6, or as begun.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path("quickstart"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Run the whole pipeline at toy scale, from toy scenes to videos and a report.

    Makes toy scenes and their labels, trains Stage 1 for some minutes, renders videos from one picture each, measures
    the geometry, trains a prior over its codes for half as long, samples new scenes, and ends with a page that holds
    all of it. The minutes become a number of images once, after a short calibration; run the command again after an
    interruption to continue.

    Example:
      vq3d quickstart
      vq3d quickstart --minutes 2 --out /tmp/quickstart
    """
    signals.watch()

    from vq3dcli.pipelines.evaluation.geometry import PROTOCOL
    from vq3dcli.pipelines.studies.quickstart import quickstart
    from vq3dcli.training.arithmetic import flush_denormals

    flush_denormals()
    result = quickstart(
        out,
        minutes=minutes,
        seed=seed,
        device=pick_device(device),
        counting=output.progress,
        should_stop=signals.stop_requested,
    )
    output.finish(
        protocol=PROTOCOL,
        count=result.budget.images,
        seed=seed,
        weights=result.weights,
        metrics=result.metrics,
        outputs=[*result.videos, result.sheet, result.report],
    )
