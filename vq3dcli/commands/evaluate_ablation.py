"""`vq3d evaluate ablation`: the depth loss, pointwise against accumulated against none."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device, plain
from vq3dcli.errors import UsageError

IMAGES = "Images that each run sees; the schedule keeps its shares."
RUNS = "Folder of the data and the runs, about 200 MB. Default: OUT/runs."


def ablation(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="For the figures, the page, the figure.")],
    runs: Annotated[Path | None, typer.Option("--runs", metavar="FOLDER", help=RUNS)] = None,
    images: Annotated[int, typer.Option("--images", min=8, max=10**8, help=IMAGES)] = 5200,
    seeds: Annotated[str, typer.Option("--seeds", help="Each trains all three losses.")] = "0,1,2",
    scenes: Annotated[int, typer.Option("--scenes", min=8, max=10**6, help="Toy scenes to train on.")] = 4000,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10**5, help="Scenes to measure on.")] = 32,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of all three recipes; repeat it.")
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the three depth-loss recipes with equal seeds and budget, and show what the pointwise loss is for.

    Nine runs of 5200 images: about 40 minutes on two cores. Interrupted, the same command continues; with more seeds it
    adds to what is there. Each run is a normal training run with a page of its own.

    Example:
      vq3d evaluate ablation -o ablation/
      vq3d evaluate ablation --runs runs/ablation -o docs/ablation --images 13600
      vq3d evaluate ablation -o try/ --images 800 --seeds 0 --scenes 500 -n 8
    """
    signals.watch()
    said = Output("evaluate ablation", json, quiet)
    try:
        chosen = [int(part) for part in seeds.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--seeds {seeds[:60]}: not whole numbers with commas between", remedy="--seeds 0,1,2"
        ) from error

    if not all(0 <= seed < 2**63 for seed in chosen):
        raise UsageError(f"--seeds {seeds[:60]}: a seed is 0 to {2**63 - 1}", remedy="--seeds 0,1,2")

    from vq3dcli.data.images import encode_png
    from vq3dcli.export.charts import side_by_side, standalone
    from vq3dcli.files import as_bytes, write_bytes
    from vq3dcli.pipelines.evaluation.generation import versions
    from vq3dcli.pipelines.evaluation.page import evaluation_folder, write_evaluation
    from vq3dcli.pipelines.studies import ablation as pipeline
    from vq3dcli.pipelines.studies import ablation_figure as figure
    from vq3dcli.training.arithmetic import flush_denormals
    from vq3dcli.weights_file import load_weights

    flush_denormals()
    plan = pipeline.Plan(images, scenes, count, tuple(overrides or ()))
    plan.check(chosen)
    evaluation_folder(out, "ablation", "ablation.png", "profiles.svg", "ablation.md")
    target = pick_device(device)
    result = pipeline.run_ablation(
        runs if runs is not None else out / "runs",
        plan,
        chosen,
        device=target,
        counting=lambda description, unit: said.counting(description, unit=unit),
        should_stop=signals.stop_requested,
    )
    models = {kind: load_weights(result.folders[kind][chosen[0]], target) for kind in pipeline.KINDS}
    with said.progress("drawing the figure"):
        charts = figure.profile_charts(figure.weight_profiles(models))
        sheet = out / "ablation.png"
        write_bytes(sheet, encode_png(figure.figure_sheet(models)))
    write_bytes(out / "profiles.svg", as_bytes(standalone(side_by_side(charts, 3))))
    again = f"vq3d evaluate ablation -o FOLDER --images {images} --seeds {seeds} --scenes {scenes} -n {count}"
    again += "".join(f" --set {shlex.quote(text)}" for text in overrides or ())
    write_bytes(out / "ablation.md", as_bytes(figure.markdown(result, again)))
    conditions = pipeline.conditions(result, versions(None), target)
    metrics = plain({**pipeline.record(result), "conditions": conditions})
    outputs = write_evaluation(
        out,
        "ablation",
        title="The pointwise depth loss",
        subtitle=f"{len(chosen)} seeds of three losses, {images} images each, measured on {count} scenes",
        record=metrics,
        conditions=conditions,
        sections=figure.ablation_sections(result, sheet, charts),
    )
    for text in pipeline.verdict(result):
        said.note(text)
    said.finish(
        protocol=pipeline.PROTOCOL,
        count=count,
        metrics=metrics,
        outputs=[*outputs, sheet, out / "profiles.svg", out / "ablation.md"],
        table=figure.table(result),
    )
