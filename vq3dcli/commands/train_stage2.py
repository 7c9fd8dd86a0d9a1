"""`vq3d train-stage2`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.errors import UnavailableError

if TYPE_CHECKING:
    import torch

    from vq3dcli.checkpoint import LoadedWeights
    from vq3dcli.data.tokens import TokenStore


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, as toy-cpu-prior, or a file.")],
    data: Annotated[Path, typer.Option("--data", help="Folder that vq3d tokenize made.")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder; a run that it holds continues.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Stage 1 that made the tokens, for sheets of samples. Default: embedded."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeat it.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this prior; short for --set training.init=PATH.")
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the prior that new scenes are sampled from; run it again to continue.

    Example:
      vq3d tokenize --data toys/ --out tokens/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/ --weights run/ --set training.images=300000
      torchrun --nproc-per-node 8 -m vq3dcli train-stage2 imagenet256-prior --data tokens/ --out prior/
    """
    signals.watch()
    main_rank = os.environ.get("RANK", "0") == "0"
    said = Output("train-stage2", json, quiet or not main_rank)

    from vq3dcli.config.load import load_recipe
    from vq3dcli.config.schema import Stage2Recipe
    from vq3dcli.data.tokens import TokenStore
    from vq3dcli.pipelines.run_report import write_run_report
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.training.run_folder import RunFolder
    from vq3dcli.training.stage1 import Progress
    from vq3dcli.training.stage2 import train_prior

    flush_denormals()
    given = [*(overrides or [])]
    if init is not None:
        given.append(f"training.init={init.resolve()}")
    resolved = load_recipe(recipe, Stage2Recipe, given)
    chosen_device = pick_device(device)
    store = TokenStore(data, check_hashes=main_rank)
    # Sheets are the first rank's business; weights that were asked for are checked on all of them.
    stage1 = _stage1_of(store, weights, chosen_device, said) if main_rank or weights is not None else None
    said.note(f"{store.num_images} images, {store.views} views of {store.length} codes, on {chosen_device}")
    schedule = resolved.training
    seen = RunFolder(out).saved_images()
    with said.progress("training", schedule.images, unit="images", done=seen) as progress:

        def report(step: Progress) -> None:
            nonlocal seen
            progress.advance(step.images_seen - seen, status=f"{step.loss:.3f} bits a code")
            seen = step.images_seen

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
        said.finish(
            count=result.images_seen,
            seed=schedule.seed,
            weights=stage1,
            metrics=result.metrics,
            outputs=[result.weights, out / "metrics.jsonl", out / "sheets", out / "report.html"],
        )


def _stage1_of(store: TokenStore, weights: Path | None, device: torch.device, said: Output) -> LoadedWeights | None:
    """The Stage 1 for sheets; without one that made the tokens the run only goes without sheets.

    Raises:
        DataError: The weights that were asked for did not make the tokens.
    """
    from vq3dcli.checkpoint import load_weights

    if weights is not None:
        loaded = load_weights(weights, device)
        store.check_stage1(loaded.sha256)
        return loaded
    with contextlib.suppress(UnavailableError):
        loaded = load_weights(None, device)
        if loaded.sha256 == store.stage1_sha256:
            return loaded
    said.warn("no sheets of samples: the tokens are of other weights than the embedded ones; try: --weights STAGE1")
    return None
