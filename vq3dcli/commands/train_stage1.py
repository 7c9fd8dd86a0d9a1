"""`vq3d train-stage1`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.commands.training_options import (
    DataOption,
    DeviceNameOption,
    DryRunOption,
    GpusOption,
    NprocOption,
    OutOption,
    OverridesOption,
    SharesOption,
    all_overrides,
    check_asked,
    finish_training,
    is_main_rank,
    on_every_rank,
    say_plan,
    training_progress,
)
from vq3dcli.errors import UsageError


@on_every_rank
def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example toy-cpu, or a file.")],
    data: DataOption = None,
    shares: SharesOption = None,
    out: OutOption = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="Name of the disparity labels beside the shards, or none; repeat it for one for each --data, in the "
            "same order. Default: exact.",
        ),
    ] = None,
    overrides: OverridesOption = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from these weights; short for --set training.init=PATH.")
    ] = None,
    perceptual_weights: Annotated[
        Path | None, typer.Option("--perceptual-weights", help="The perceptual network's file, for work offline.")
    ] = None,
    dry_run: DryRunOption = False,
    device_name: DeviceNameOption = None,
    gpus: GpusOption = None,
    nproc: NprocOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the autoencoder whose decoder emits a NeRF; run it again to continue.

    Example:
      vq3d train-stage1 toy-cpu --data toys/ --out run/
      vq3d train-stage1 toy-cpu --data toys/ --out run/ --set training.images=64000 --set loss.depth_kind=accumulated
      vq3d train-stage1 demo64 --data toys/ --data photos/ --labels exact --labels none --share .6 --share .4 --out run/
      vq3d train-stage1 imagenet256 --dry-run --device-name h100 --gpus 8
      vq3d train-stage1 toy-cpu --data photos/ --out tuned/ --init run/weights.safetensors --labels none
      vq3d train-stage1 imagenet256 --data shards/ --out run/ --nproc 8
    """
    main_rank = is_main_rank()
    said = Output("train-stage1", json, quiet or not main_rank)
    planned = device_name is not None or gpus is not None
    check_asked(dry_run=dry_run, complete=bool(data) and out is not None, planned=planned)
    if (shares or labels) and not data:
        option = "--share" if shares else "--labels"
        raise UsageError(f"{option} belongs to a --data", remedy=f"one {option} for each --data, in the same order")

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import Stage1Recipe
    from vq3dcli.pipelines.run_report.page import write_run_report
    from vq3dcli.pipelines.train import open_loader, run_facts
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.distributed import join_ranks
    from vq3dcli.training.plan import find_processor, plan_run, plan_table
    from vq3dcli.training.stage1 import train

    flush_denormals()
    resolved = load_recipe(recipe, Stage1Recipe, all_overrides(overrides, init))
    chosen_device = pick_device(device)
    ranks = join_ranks(chosen_device)
    schedule = resolved.training
    loader = None
    if data:
        names = [None if name == "none" else name for name in labels or ["exact"]]
        loader = open_loader(resolved, data, names[0] if len(names) == 1 else names, ranks, shares)
    if dry_run:
        if main_rank:
            plan = plan_run(
                resolved,
                find_processor(resolved, chosen_device, device_name),
                gpus=gpus or max(nproc, ranks.world_size),
                classes=None if loader is None else len(loader.class_names),
                samples=None if loader is None else loader.num_samples,
                data=data or [],
                labels=() if loader is None else loader.labels,
            )
            facts: dict[str, object] = {}
            if loader is not None:
                facts = {"samples": loader.num_samples, "labelled": loader.num_labelled, "labels": loader.labels}
                if resolved.loss.novel:
                    facts["with_views"] = loader.num_with_views
            say_plan(said, plan, plan_table(plan), schedule.seed, facts)
        return
    assert loader is not None and out is not None, "checked above"
    if perceptual_weights is not None and not resolved.loss.any_perceptual:
        said.warn("--perceptual-weights does nothing: loss.perceptual is 0")
    seen = f", {loader.num_with_views} with views" if resolved.loss.novel else ""
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled{seen}, on {chosen_device}")
    with training_progress(said, schedule, out, "loss {:.4f}") as report:
        result = train(
            resolved,
            loader,
            out,
            device=chosen_device,
            facts=run_facts(resolved, loader, perceptual_weights, shares),
            perceptual_weights=perceptual_weights,
            report=report,
            refresh_page=lambda: write_run_report(out),
            should_stop=signals.stop_requested,
        )
    if main_rank:
        finish_training(said, result, out, schedule.seed)
