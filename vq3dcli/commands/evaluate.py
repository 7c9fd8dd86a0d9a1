"""`vq3d evaluate`: `geometry`, figures of a model against exact toy scenes, is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vq3dcli.commands.evaluate_generation import generation
from vq3dcli.commands.evaluate_reconstruction import reconstruction
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, SeedOption, pick_device

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure a model.

    Example:
      vq3d evaluate reconstruction --data photos/ -o figures
      vq3d evaluate geometry --data toyscenes --count 64
      vq3d evaluate generation -o figures
    """


@app.command()
def geometry(
    data: Annotated[Literal["toyscenes"], typer.Option("--data", help="What to measure on.")] = "toyscenes",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Scenes to measure.")] = 64,
    seed: SeedOption = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights or a run's folder; default: embedded.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Only figures that need no model.")] = False,
    size: Annotated[int, typer.Option("--size", min=8, max=1024, help="Side of the images with --baselines.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a contact sheet.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure reconstructions, novel views and disparity against exact toy scenes that no training has seen.

    PSNR in dB. copy, flat and pivot are the model's own reconstruction shown unmoved, painted on the plane at the mean
    disparity and on the plane through the pivot; warp is the true input moved by exact disparity; template_ ignores the
    input. docs/measurements.md defines every figure.

    Example:
      vq3d evaluate geometry --data toyscenes --count 64 --seed 0 --json
      vq3d evaluate geometry --weights runs/toy -o figures
      vq3d evaluate geometry --baselines --count 256
    """
    from vq3dcli.checkpoint import load_weights
    from vq3dcli.data.images import encode_png
    from vq3dcli.errors import UsageError
    from vq3dcli.files import make_folder, write_bytes
    from vq3dcli.pipelines import evaluate_geometry as evaluation
    from vq3dcli.pipelines.exact_scenes import toy_template

    if baselines and (weights is not None or out is not None):
        raise UsageError("--baselines needs no weights and makes no pictures", remedy="it without --weights and --out")
    output = Output("evaluate geometry", json, quiet)
    loaded = None if baselines else load_weights(weights, pick_device(device))
    if loaded is not None:
        size = loaded.recipe.model.image_size
        predictor = evaluation.model_predictor(loaded)
    if out is not None:
        make_folder(out)
    outputs: list[Path] = []
    metrics: dict[str, object]
    with output.progress("measuring", count, unit="scenes") as progress:
        template = toy_template(size)
        if loaded is None:
            metrics = dict(
                evaluation.evaluate_baselines(
                    count=count, seed=seed, size_px=size, template=template, on_progress=progress.advance
                )
            )
        else:
            result = evaluation.evaluate_geometry(
                predictor, count=count, seed=seed, size_px=size, template=template, on_progress=progress.advance
            )
            metrics = {**result.metrics, "view_psnr": result.view_psnr}
            if out is not None:
                outputs = [out / "geometry.png"]
                write_bytes(outputs[0], encode_png(evaluation.example_sheet(result.examples)))
    output.finish(
        protocol=f"{evaluation.PROTOCOL}, {size} px",
        count=count,
        seed=seed,
        weights=loaded,
        metrics=metrics,
        outputs=outputs,
    )


app.command()(reconstruction)
app.command()(generation)
