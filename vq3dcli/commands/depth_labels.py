"""`vq3d depth-labels`: disparity labels beside the shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands.output import JsonOption, Output, QuietOption
from vq3dcli.errors import UnavailableError


def command(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A finished folder of vq3d prepare-data.")],
    model: Annotated[str, typer.Option("--model", help="`exact`: the disparity that toy scenes carry themselves.")],
    force: Annotated[bool, typer.Option("--force", help="Replace labels that were made for other images.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write disparity labels beside the shards.

    They lie in SHARDS/disparity/MODEL, with the same names and keys as the images. Run it again after an interruption:
    finished shards are kept.

    Example:
      vq3d depth-labels toy/ --model exact
    """
    from data_tools.depth_labels import EXACT, label_exact
    from vq3dcli.data.shards import label_folder

    if model != EXACT:
        raise UnavailableError(f"no such depth model ({model})", remedy=f"--model {EXACT}")
    output = Output("depth-labels", json, quiet)
    with output.counting("labelling", unit="images") as progress:
        manifest = label_exact(shards, force=force, progress=progress)
    output.finish(
        count=manifest.num_samples,
        metrics={"labels": manifest.num_samples, "bytes": sum(shard.size for shard in manifest.shards)},
        outputs=[label_folder(shards, model)],
    )
