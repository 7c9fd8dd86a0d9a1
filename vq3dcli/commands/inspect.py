"""`vq3d inspect`: what a file or folder is, what is in it, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands.output import JsonOption, Output, QuietOption
from vq3dcli.errors import DataError, UsageError

INPUT = "Shards, disparity labels, tokens, a run's folder, a weights file, or `embedded`: the weights that vq3d has."


def command(
    source: Annotated[str, typer.Argument(metavar="INPUT", help=INPUT)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte; name every file that is damaged, cut or missing.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of samples of the shards to this PNG.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what shards, tokens or weights hold, and whether they are whole.

    Of weights it prints the model card. With --verify the exit code is 65 if anything is damaged.

    Example:
      vq3d inspect shards/ --sheet samples.png
      vq3d inspect shards/ --verify
      vq3d inspect shards/disparity/exact
      vq3d inspect embedded
    """
    from vq3dcli.pipelines.inspect import inspect
    from vq3dcli.pipelines.inspect_shards import write_sheet
    from vq3dcli.remote.cache import address, ensure_all

    output = Output("inspect", json, quiet)
    if address(Path(source)) is not None:
        ensure_all(Path(source))
    with output.counting("reading", unit="bytes") as progress:
        found = inspect(source, verify=verify, progress=progress)
    for note in found.notes:
        output.note(note)
    for problem in found.problems:
        output.warn(problem)
    outputs = []
    if sheet is not None and not found.problems:
        if found.kind != "shards":
            raise UsageError(f"no sheet of {found.kind}", remedy="--sheet with a folder of shards")
        write_sheet(Path(source), sheet)
        outputs.append(sheet)
    count = found.facts.get("samples", found.facts.get("images"))
    output.finish(count=count, metrics={"is": found.kind, **found.facts}, outputs=outputs)
    if found.problems:
        output.fail(DataError(f"{len(found.problems)} things are wrong ({source})", remedy="the warnings say which"))
