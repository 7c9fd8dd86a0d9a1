"""`vq3d demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, pick_device


def command(
    said: Output,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for videos and contact sheets.")] = Path("demo-out"),
    weights: options.Weights = None,
    prior: options.Prior = None,
    device: DeviceOption = "auto",
) -> None:
    """Turn a photo and toy scenes into videos with the embedded weights, and sample new scenes.

    Example:
      vq3d demo
      vq3d demo --out demo-out --weights run/ --prior prior/
    """
    from vq3dcli.pipelines.studies.demo import demo
    from vq3dcli.weights_file import load_prior, load_weights

    target = pick_device(device)
    loaded = load_weights(weights, target)
    # Weights of one's own and no prior: there is none that fits.
    loaded_prior = load_prior(prior, target) if prior is not None or weights is None else None
    outputs = demo(loaded, loaded_prior, out, counting=said.progress, on_replaced=said.replacing)
    said.finish(count=len(outputs), weights=loaded, outputs=outputs, table=[])
