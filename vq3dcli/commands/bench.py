"""`vq3d bench`: speed and memory, beside other ways of doing the same."""

from __future__ import annotations

from typing import Annotated

import typer

from vq3dcli.commands.output import DeviceOption, Output, pick_device
from vq3dcli.errors import DataError


def command(
    output: Output,
    subjects: Annotated[
        list[str] | None,
        typer.Argument(metavar="render|train|sample|data|video", help="Default: all."),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option("--baseline", metavar="NAME", help="Only what is compared with this; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Of ours, theirs, theirs, ours.")] = 3,
    device: DeviceOption = "cpu",
) -> None:
    """Measure speed and memory beside other ways of doing the same.

    On one thread, in CPU time of the process, which other programs disturb less than time on the clock; on a GPU in its
    own time. A ratio is how many times as long the baseline takes: the median, and the range, of rounds. It counts only
    if both give the same, before anything is rounded to grey levels: otherwise the exit code is 65. Memory is what
    a way adds at its peak; baselines get theirs as in a plain Python process.

    Example:
      vq3d bench render video
      vq3d bench sample --baseline torch.cat --rounds 5
      vq3d bench render --json
    """
    from vq3dcli.pipelines.bench.run import DEFAULT, run

    with output.progress("measuring", unit="works") as progress:
        measured = run(subjects or DEFAULT, baselines or [], rounds, pick_device(device), on_work=progress)
    output.finish(protocol="bench-1", metrics=measured.metrics, table=measured.table)
    if measured.missed:
        output.fail(DataError(f"ours and theirs differ: {', '.join(measured.missed)}", remedy="report it"))
