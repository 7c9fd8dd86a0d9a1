"""`vq3d train-stage1`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vq3dcli.config.schema import Stage1Recipe
    from vq3dcli.data.loader import TrainingLoader

# The keys of `training.devices.PUBLISHED`, which is not imported here: help must not import torch.
PlannedDevice = Literal["h200", "h100", "a100", "a100-40gb", "v100", "l40s", "rtx4090", "cpu"]


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example toy-cpu, or a file.")],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Folder of shards; repeat it to mix several.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; a run that it holds continues.")] = None,
    labels: Annotated[str, typer.Option(help="Name of the disparity labels beside the shards, or none.")] = "exact",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeat it.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from these weights; short for --set training.init=PATH.")
    ] = None,
    perceptual_weights: Annotated[
        Path | None, typer.Option("--perceptual-weights", help="The perceptual network's file, for work offline.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run takes: memory, speed, days, disk; needs no --data.")
    ] = False,
    device_name: Annotated[
        PlannedDevice | None, typer.Option("--device-name", help="Plan for this GPU instead, with --dry-run.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Plan for so many of them, with --dry-run.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the autoencoder whose decoder emits a NeRF; run it again to continue.

    Example:
      vq3d train-stage1 toy-cpu --data toys/ --out run/
      vq3d train-stage1 toy-cpu --data toys/ --out run/ --set training.images=64000 --set loss.depth_kind=accumulated
      vq3d train-stage1 imagenet256 --dry-run --device-name h100 --gpus 8
      vq3d train-stage1 toy-cpu --data photos/ --out tuned/ --init run/weights.safetensors --labels none
      torchrun --nproc-per-node 2 -m vq3dcli train-stage1 toy-cpu --data toys/ --out run/
    """
    signals.watch()
    main_rank = os.environ.get("RANK", "0") == "0"
    said = Output("train-stage1", json, quiet or not main_rank)
    if not dry_run:
        if not data or out is None:
            raise UsageError("--data and --out are needed", remedy="--dry-run to see what the run takes without them")
        if device_name is not None or gpus is not None:
            raise UsageError("--device-name and --gpus are for plans only", remedy="--dry-run, or torchrun")

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import Stage1Recipe
    from vq3dcli.pipelines.run_report import write_run_report
    from vq3dcli.pipelines.train import open_loader, run_facts
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.distributed import join_ranks
    from vq3dcli.training.run_folder import RunFolder
    from vq3dcli.training.stage1 import Progress, train

    flush_denormals()
    given = [*(overrides or [])]
    if init is not None:
        given.append(f"training.init={init.resolve()}")
    resolved = load_recipe(recipe, Stage1Recipe, given)
    chosen_device = pick_device(device)
    ranks = join_ranks(chosen_device)
    schedule = resolved.training
    label_name = None if labels == "none" else labels
    loader = None
    if data:
        loader = open_loader(resolved, data, label_name, ranks)
    if dry_run:
        if main_rank:
            count = gpus or ranks.world_size
            _say_plan(said, resolved, chosen_device, device_name, count, loader, data or [], label_name)
        return
    assert loader is not None and out is not None, "checked above"
    if perceptual_weights is not None and resolved.loss.perceptual == 0:
        said.warn("--perceptual-weights does nothing: loss.perceptual is 0")
    if label_name is not None and loader.num_labelled == 0 and resolved.loss.depth > 0:
        said.warn(f"no image has labels called {labels}: the depth loss does nothing; try: vq3d depth-labels")
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled, on {chosen_device}")
    seen = RunFolder(out).saved_images()
    with said.progress("training", schedule.images, unit="images", done=seen) as progress:

        def report(step: Progress) -> None:
            nonlocal seen
            progress.advance(step.images_seen - seen, status=f"loss {step.loss:.4f}")
            seen = step.images_seen

        result = train(
            resolved,
            loader,
            out,
            device=chosen_device,
            facts=run_facts(resolved, loader, label_name, perceptual_weights),
            perceptual_weights=perceptual_weights,
            report=report,
            refresh_page=lambda: write_run_report(out),
            should_stop=signals.stop_requested,
        )
    if main_rank:
        said.finish(
            count=result.images_seen,
            seed=schedule.seed,
            metrics=result.metrics,
            outputs=[result.weights, out / "metrics.jsonl", out / "sheets", out / "report.html"],
        )


def _say_plan(
    said: Output,
    recipe: Stage1Recipe,
    device: torch.device,
    device_name: str | None,
    gpus: int,
    loader: TrainingLoader | None,
    data: list[Path],
    labels: str | None,
) -> None:
    from vq3dcli.training.plan import find_processor, plan_run, plan_table

    processor = find_processor(recipe, device, device_name)
    samples = None if loader is None else loader.num_samples
    classes = None if loader is None else len(loader.class_names)
    plan = plan_run(recipe, processor, gpus=gpus, classes=classes, samples=samples, data=data, labels=labels)
    memory = plan["memory"]
    if memory["state"] == "does not fit":
        said.warn(f"{plan['device']} has too little memory: {memory['advice']}")
    elif memory["state"] == "tight":
        share = memory["needed"] / memory["available"]
        said.warn(f"the plan takes {share:.0%} of the memory of {plan['device']}: {memory['advice']}")
    facts: dict[str, Any] = {}
    if loader is not None:
        facts = {"samples": loader.num_samples, "labelled": loader.num_labelled, "labels": labels or "none"}
    said.finish(seed=recipe.training.seed, metrics={**plan, **facts}, table=plan_table(plan))
