"""`vq3d train-depth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.commands.training_options import (
    DataOption,
    OutOption,
    OverridesOption,
    SharesOption,
    all_overrides,
    check_asked,
    finish_training,
    training_progress,
)
from vq3dcli.errors import UsageError
from vq3dcli.training.launch import started_ranks


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, as depth-lite0, or a file.")],
    data: DataOption = None,
    shares: SharesOption = None,
    out: OutOption = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="Name of the disparity labels beside the shards; repeat it for one for each --data, in the same "
            "order. Default: exact.",
        ),
    ] = None,
    overrides: OverridesOption = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this network; short for --set training.init=PATH.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps here, and say how long the run takes; needs no --data.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a depth network on shards with disparity, a teacher for photos; run it again to continue.

    It starts from an encoder that knows ImageNet, and runs in one process. vq3d depth-labels --model takes what it
    writes.

    Example:
      vq3d train-depth depth-lite0 --data meshscenes/ --data toys/ --share .7 --share .3 --out teacher/
      vq3d train-depth depth-lite0 --dry-run --set model.input_px=128
      vq3d depth-labels photos/ --model teacher/weights.safetensors
    """
    signals.watch()
    said = Output("train-depth", json, quiet)
    check_asked(dry_run=dry_run, complete=bool(data) and out is not None, planned=False)
    if started_ranks() > 1:
        raise UsageError("a depth network is trained in one process", remedy="without torchrun")

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import DepthRecipe
    from vq3dcli.pipelines.run_report.page import write_run_report
    from vq3dcli.pipelines.train import open_loader, run_facts
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.depth import plan_depth, train_depth
    from vq3dcli.training.distributed import Ranks

    flush_denormals()
    resolved = load_recipe(recipe, DepthRecipe, all_overrides(overrides, init))
    chosen_device = pick_device(device)
    schedule = resolved.training
    if dry_run:
        said.finish(seed=schedule.seed, metrics=plan_depth(resolved, chosen_device))
        return
    assert data and out is not None, "checked above"
    if "none" in (labels or ()):
        raise UsageError("a depth network learns from labels alone", remedy="no --labels none")
    names = labels or ["exact"]
    loader = open_loader(resolved, data, names[0] if len(names) == 1 else names, Ranks(), shares)
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled, on {chosen_device}")
    with training_progress(said, schedule, out, "loss {:.4f}") as report:
        result = train_depth(
            resolved,
            loader,
            out,
            device=chosen_device,
            facts=run_facts(resolved, loader, shares=shares),
            report=report,
            refresh_page=lambda: write_run_report(out),
            should_stop=signals.stop_requested,
        )
    finish_training(said, result, out, schedule.seed)
