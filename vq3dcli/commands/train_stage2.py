"""`vq3d train-stage2`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.commands.training_options import (
    DeviceNameOption,
    DryRunOption,
    GpusOption,
    NprocOption,
    OutOption,
    OverridesOption,
    all_overrides,
    check_asked,
    finish_training,
    is_main_rank,
    on_every_rank,
    say_plan,
    training_progress,
)
from vq3dcli.errors import UnavailableError
from vq3dcli.training.launch import started_ranks

if TYPE_CHECKING:
    import torch

    from vq3dcli.data.token_store import TokenStore
    from vq3dcli.weights_file import LoadedWeights


@on_every_rank
def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, as toy-cpu-prior, or a file.")],
    data: Annotated[Path | None, typer.Option("--data", help="Folder that vq3d tokenize made.")] = None,
    out: OutOption = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Stage 1 that made the tokens, for sheets of samples. Default: embedded."),
    ] = None,
    overrides: OverridesOption = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this prior; short for --set training.init=PATH.")
    ] = None,
    dry_run: DryRunOption = False,
    device_name: DeviceNameOption = None,
    gpus: GpusOption = None,
    nproc: NprocOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the prior that new scenes are sampled from; run it again to continue.

    Example:
      vq3d tokenize --data toys/ --out tokens/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/ --weights run/ --set training.images=300000
      vq3d train-stage2 imagenet256-prior --dry-run --device-name h100 --gpus 8
      vq3d train-stage2 imagenet256-prior --data tokens/ --out prior/ --nproc 8
    """
    main_rank = is_main_rank()
    said = Output("train-stage2", json, quiet or not main_rank)
    planned = device_name is not None or gpus is not None
    check_asked(dry_run=dry_run, complete=data is not None and out is not None, planned=planned)

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import Stage2Recipe
    from vq3dcli.data.token_store import TokenStore
    from vq3dcli.pipelines.run_report.page import write_run_report
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.plan import find_processor
    from vq3dcli.training.prior_plan import codes_of, plan_prior, prior_table
    from vq3dcli.training.stage2 import train_prior

    flush_denormals()
    resolved = load_recipe(recipe, Stage2Recipe, all_overrides(overrides, init))
    schedule = resolved.training
    chosen_device = pick_device(device)
    store = None if data is None else TokenStore(data, check_hashes=main_rank and not dry_run)
    if dry_run:
        if main_rank:
            codes = codes_of(recipe, store, weights)
            processor = find_processor(resolved, chosen_device, device_name)
            plan = plan_prior(resolved, processor, codes, gpus=gpus or max(nproc, started_ranks()))
            say_plan(said, plan, prior_table(plan), schedule.seed, {})
        return
    assert store is not None and out is not None, "checked above"
    # Sheets are the first rank's business; weights that were asked for are checked on all of them.
    stage1 = _stage1_of(store, weights, chosen_device, said) if main_rank or weights is not None else None
    said.note(f"{store.num_images} images, {store.views} views of {store.length} codes, on {chosen_device}")
    with training_progress(said, schedule, out, "{:.3f} bits a code") as report:
        result = train_prior(
            resolved,
            store,
            out,
            stage1=stage1,
            device=chosen_device,
            report=report,
            refresh_page=lambda: write_run_report(out),
            should_stop=signals.stop_requested,
        )
    if main_rank:
        finish_training(said, result, out, schedule.seed, weights=stage1)


def _stage1_of(store: TokenStore, weights: Path | None, device: torch.device, said: Output) -> LoadedWeights | None:
    """The Stage 1 for sheets; without one that made the tokens the run only goes without sheets.

    Raises:
        DataError: The weights that were asked for did not make the tokens.
    """
    from vq3dcli.weights_file import load_weights

    if weights is not None:
        loaded = load_weights(weights, device)
        store.check_stage1(*loaded.codes_of)
        return loaded
    with contextlib.suppress(UnavailableError):
        loaded = load_weights(None, device)
        if store.stage1_sha256 in loaded.codes_of:
            return loaded
    said.warn("no sheets of samples: the tokens are of other weights than the embedded ones; try: --weights STAGE1")
    return None
