"""What the commands of both stages of training share: options, the progress display, the plan of `--dry-run`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vq3dcli import signals
from vq3dcli.commands.output import Output
from vq3dcli.errors import UsageError
from vq3dcli.training.launch import launch, started_ranks

if TYPE_CHECKING:
    from vq3dcli.config.schema import RunSection
    from vq3dcli.training.stage1 import Progress, Result

# The keys of `training.devices.PUBLISHED`, which is not imported here: help must not import torch.
PlannedDevice = Literal["h200", "h100", "a100", "a100-40gb", "v100", "l40s", "rtx4090", "cpu"]

DataOption = Annotated[list[Path] | None, typer.Option("--data", help="Folder of shards; repeat it to mix several.")]
SharesOption = Annotated[
    list[float] | None,
    typer.Option("--share", help="Share of the images from each --data, in the same order. Default: by their number."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="The run's folder; a run that it holds continues.")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeat it.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run takes: memory, speed, days, disk; needs no --data.")
]
DeviceNameOption = Annotated[
    PlannedDevice | None, typer.Option("--device-name", help="Plan for this GPU instead, with --dry-run.")
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, max=2**20, help="Plan for so many of them, with --dry-run.")
]


NprocOption = Annotated[
    int, typer.Option("--nproc", min=1, max=1024, help="Processes on this machine that train together, one a GPU.")
]


def on_every_rank(command: Callable[..., None]) -> Callable[..., None]:
    """Make of a training command one that `--nproc` runs several times at once, and whose ranks end together."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        ranks = started_ranks()
        if options["nproc"] > 1 and not options["dry_run"] and signals.LAUNCHER not in os.environ:
            if ranks > 1:
                raise UsageError("torchrun has started the processes", remedy="no --nproc")
            raise typer.Exit(launch(sys.argv[1:], options["nproc"]))
        signals.watch(one_of_many=ranks > 1)
        if ranks == 1:
            return command(**options)
        from vq3dcli.training.fate import OtherRankError, shared_fate

        try:
            with shared_fate():
                command(**options)
        except OtherRankError as error:
            raise typer.Exit(error.exit_code) from error

    return run


def is_main_rank() -> bool:
    """Whether this process is the first of those of a run, which speaks for all."""
    return started_ranks() == 1 or os.environ["RANK"] == "0"


def check_asked(*, dry_run: bool, complete: bool, planned: bool) -> None:
    """Raise `UsageError` for training without all of `--data` and `--out`, or with the options of a plan."""
    if dry_run:
        return
    if not complete:
        raise UsageError("--data and --out are needed", remedy="--dry-run to see what the run takes without them")
    if planned:
        raise UsageError("--device-name and --gpus are for plans only", remedy="--dry-run, or --nproc")


def all_overrides(overrides: Sequence[str] | None, init: Path | None) -> list[str]:
    """Those of `--set`, and `--init` as one of them."""
    return [*(overrides or []), *([] if init is None else [f"training.init={init.resolve()}"])]


@contextmanager
def training_progress(
    said: Output, schedule: RunSection, out: Path, status: str
) -> Iterator[Callable[[Progress], None]]:
    """A bar that goes on where the run in `out` stands; `status` is a format of the loss."""
    from vq3dcli.training.run_folder import RunFolder

    seen = RunFolder(out).saved_images()
    with said.progress("training", schedule.images, unit="images", done=seen) as progress:

        def report(step: Progress) -> None:
            nonlocal seen
            progress.advance(step.images_seen - seen, status=status.format(step.loss))
            seen = step.images_seen

        yield report


def finish_training(said: Output, result: Result, out: Path, seed: int, **more: Any) -> None:
    """Name what a finished run left; `more` as `Output.finish` takes it."""
    outputs = [result.weights, out / "metrics.jsonl", out / "sheets", out / "report.html"]
    said.finish(count=result.images_seen, seed=seed, metrics=result.metrics, outputs=outputs, **more)


def say_plan(
    said: Output, plan: Mapping[str, Any], table: Sequence[Sequence[object]], seed: int, facts: Mapping[str, Any]
) -> None:
    """Print a plan, with a warning where memory is short; `facts` of the data stand beside its figures."""
    memory = plan["memory"]
    if memory["state"] == "does not fit":
        said.warn(f"{plan['device']} has too little memory: {memory['advice']}")
    elif memory["state"] == "tight":
        share = memory["needed"] / memory["available"]
        said.warn(f"the plan takes {share:.0%} of the memory of {plan['device']}: {memory['advice']}")
    said.finish(seed=seed, metrics={**plan, **facts}, table=table)
