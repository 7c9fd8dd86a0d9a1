"""`vq3d train-stage1`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example toy-cpu, or a file.")],
    data: Annotated[list[Path], typer.Option("--data", help="Folder of shards; repeat it to mix several.")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder; a run that it holds continues.")],
    labels: Annotated[str, typer.Option(help="Name of the disparity labels beside the shards, or none.")] = "exact",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeat it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe and data, print sizes, train nothing.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the autoencoder whose decoder emits a NeRF; run it again to continue.

    Example:
      vq3d train-stage1 toy-cpu --data toys/ --out run/
      vq3d train-stage1 toy-cpu --data toys/ --out run/ --set training.images=64000 --set loss.depth_kind=accumulated
      torchrun --nproc-per-node 2 -m vq3dcli train-stage1 toy-cpu --data toys/ --out run/
    """
    signals.watch()
    main_rank = os.environ.get("RANK", "0") == "0"
    said = Output("train-stage1", json, quiet or not main_rank)

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import Stage1Recipe
    from vq3dcli.data.loader import TrainingLoader
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.distributed import join_ranks
    from vq3dcli.training.plan import plan_run
    from vq3dcli.training.stage1 import Progress, train

    flush_denormals()
    resolved = load_recipe(recipe, Stage1Recipe, overrides or [])
    chosen_device = pick_device(device)
    ranks = join_ranks(chosen_device)
    schedule = resolved.training
    loader = TrainingLoader(
        data,
        labels=None if labels == "none" else labels,
        batch_size=schedule.batch_size,
        size=resolved.model.image_size,
        seed=schedule.seed,
        flip=schedule.flip,
        crop=schedule.crop,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    facts = {"samples": loader.num_samples, "labelled": loader.num_labelled, "labels": labels}
    if dry_run:
        if main_rank:
            said.finish(seed=schedule.seed, metrics={**plan_run(resolved, chosen_device), **facts})
        return
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled, on {chosen_device}")
    with said.progress("training", schedule.images, unit="images") as progress:
        seen = 0

        def report(step: Progress) -> None:
            nonlocal seen
            progress.advance(step.images_seen - seen, status=f"loss {step.loss:.4f}")
            seen = step.images_seen

        result = train(
            resolved,
            loader,
            out,
            device=chosen_device,
            facts=facts,
            report=report,
            should_stop=signals.stop_requested,
        )
    if main_rank:
        said.finish(
            count=result.images_seen,
            seed=schedule.seed,
            metrics=result.metrics,
            outputs=[result.weights, out / "metrics.jsonl", out / "sheets"],
        )
