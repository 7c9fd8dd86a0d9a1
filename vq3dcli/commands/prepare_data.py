"""`vq3d prepare-data`: a folder of images, or toy scenes, to shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vq3dcli.commands.output import JsonOption, Output, QuietOption, SeedOption
from vq3dcli.config.defaults import MAX_BAD, SHARD_SIZE
from vq3dcli.errors import UsageError


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A folder of images, or `toyscenes`; a folder of that name is ./toyscenes."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    preset: Annotated[Literal["folder"], typer.Option("--preset", help="Layout of SRC.")] = "folder",
    size: Annotated[int, typer.Option("--size", min=16, max=4096, help="Side of the training images in pixels.")] = 256,
    margin: Annotated[
        float, typer.Option("--margin", min=1.0, max=2.0, help="Stored side over --size; 1.125 leaves room for crops.")
    ] = 1.0,
    classes: Annotated[
        Literal["auto", "folders", "none"], typer.Option("--classes", help="Whether the top-level folders are classes.")
    ] = "auto",
    max_bad: Annotated[
        float, typer.Option("--max-bad", min=0.0, max=1.0, help="Fraction of the files that may be no images.")
    ] = MAX_BAD,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Number of toy scenes.")] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Samples a shard.")] = SHARD_SIZE,
    force: Annotated[bool, typer.Option("--force", help="Replace shards that were made with other options.")] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make shards of a folder of images, or of toy scenes.

    Class folders or a flat folder become webdataset tars of square JPEGs, with an index, a manifest and a list of the
    files that were rejected. Run it again after an interruption: finished shards are kept.

    Example:
      vq3d prepare-data photos/ shards/ --size 128
      vq3d prepare-data photos/ shards/ --size 128 --margin 1.125 --max-bad 0.2
      vq3d prepare-data toyscenes toy/ --count 10000 --size 64 --seed 0
    """
    output = Output("prepare-data", json, quiet)
    toy = source == "toyscenes"
    if toy and count is None:
        raise UsageError("toy scenes need a number", remedy="--count 10000")
    if toy and margin != 1.0:
        raise UsageError("toy scenes are stored without a margin", remedy="no --margin, and crop = false in training")
    if not toy and count is not None:
        raise UsageError("--count is for toy scenes only", remedy="vq3d prepare-data toyscenes OUT --count N")

    with output.counting("preparing", unit="images") as progress:
        if toy:
            from data_tools.toyscenes import prepare_toyscenes

            assert count is not None
            manifest = prepare_toyscenes(
                out, count=count, size=size, seed=seed, shard_size=shard_size, force=force, progress=progress
            )
        else:
            from data_tools.folder import prepare_folder

            manifest = prepare_folder(
                Path(source),
                out,
                size=size,
                margin=margin,
                classes=classes,
                max_bad=max_bad,
                shard_size=shard_size,
                force=force,
                progress=progress,
            )
    output.finish(
        count=manifest.num_samples,
        seed=seed if toy else None,
        metrics={
            "samples": manifest.num_samples,
            "rejects": manifest.num_rejects,
            "classes": len(manifest.class_names),
            "shards": len(manifest.shards),
            "bytes": sum(shard.size for shard in manifest.shards),
        },
        outputs=[out],
    )
