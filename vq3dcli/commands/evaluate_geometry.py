"""`vq3d evaluate geometry`: a model against exact toy scenes, a teacher's labels, or a real stereo pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, SeedOption, pick_device, plain

if TYPE_CHECKING:
    from torch import Tensor

    from vq3dcli.weights_file import LoadedWeights

DATA = "toyscenes, stereo (scikit-image's pair), or labelled shards."
COUNT = "Scenes or images at most. Default: 64 toy scenes, 256 images of shards."
LABELS = "Name of the labels beside the shards. Default: the only ones."


@dataclass(frozen=True)
class _Asked:
    data: str
    labels: str | None
    count: int | None
    seed: int
    size: int


@dataclass(frozen=True)
class _Measured:
    """What one way to measure has to say."""

    kind: str
    protocol: str
    count: int
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    sheet: Tensor | None


def geometry(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help=DATA)] = "toyscenes",
    labels: Annotated[str | None, typer.Option("--labels", metavar="NAME", help=LABELS)] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, max=10**5, help=COUNT)] = None,
    seed: SeedOption = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights, a run's folder, or a checkpoint; default: embedded.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Only figures that need no model.")] = False,
    size: Annotated[int, typer.Option("--size", min=8, max=1024, help="Side of the images with --baselines.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the figures, a page, a sheet.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure novel views and disparity: on exact toy scenes, by a teacher's labels, or on a real stereo pair.

    PSNR in dB. copy, flat and pivot are the model's own reconstruction shown unmoved, painted on the plane at the mean
    disparity and on the plane through the pivot; warp is the true input moved by exact disparity; template_ ignores the
    input. docs/evaluation.md defines every figure.

    Example:
      vq3d evaluate geometry --data toyscenes --count 64 --seed 0 --json
      vq3d evaluate geometry --weights runs/toy -o figures
      vq3d evaluate geometry --data photo-shards/ --labels Depth-Anything-V2-Small-hf -n 200
      vq3d evaluate geometry --data stereo -o figures
      vq3d evaluate geometry --baselines --count 256
    """
    from vq3dcli.data.images import encode_png
    from vq3dcli.errors import UsageError
    from vq3dcli.files import write_bytes
    from vq3dcli.pipelines.evaluation.geometry_page import geometry_sections, table
    from vq3dcli.pipelines.evaluation.page import evaluation_folder, write_evaluation
    from vq3dcli.weights_file import load_weights

    if baselines and (weights is not None or out is not None):
        raise UsageError("--baselines needs no weights and makes no pictures", remedy="it without --weights and --out")
    if baselines and data != "toyscenes":
        raise UsageError(f"--baselines is for toy scenes, not for {data}", remedy="one of the two")
    if data in ("toyscenes", "stereo") and labels is not None:
        raise UsageError(f"--labels is for shards, not for {data}", remedy="one of the two")
    said = Output("evaluate geometry", json, quiet)
    loaded = None if baselines else load_weights(weights, pick_device(device))
    if loaded is not None:
        size = loaded.recipe.model.image_size
    asked = _Asked(data, labels, count, seed, size)
    if out is not None:
        evaluation_folder(out, "geometry", "geometry.png")
    if data == "toyscenes":
        found = _toyscenes(said, asked, loaded)
    else:
        assert loaded is not None, "checked above"
        found = _stereo(said, asked, loaded) if data == "stereo" else _labels(said, asked, loaded)
    protocol = f"{found.protocol}, {size} px"
    conditions = _conditions(asked, protocol, found.facts, loaded)
    metrics = plain({**found.metrics, "conditions": conditions})
    outputs: list[Path] = []
    if out is not None and found.sheet is not None:
        sheet = out / "geometry.png"
        write_bytes(sheet, encode_png(found.sheet))
        outputs = write_evaluation(
            out,
            "geometry",
            title="Geometry",
            subtitle=f"{protocol}, {found.count} of {data}, seed {seed}",
            record={"protocol": protocol, "count": found.count, "seed": seed, **metrics},
            conditions=conditions,
            sections=geometry_sections(found.kind, found.metrics, sheet),
        )
        outputs.append(sheet)
    said.finish(
        protocol=protocol,
        count=found.count,
        seed=seed,
        weights=loaded,
        metrics=metrics,
        outputs=outputs,
        table=table(found.metrics),
    )


def _toyscenes(said: Output, asked: _Asked, weights: LoadedWeights | None) -> _Measured:
    from vq3dcli.pipelines.evaluation import geometry as evaluation
    from vq3dcli.pipelines.evaluation.exact_scenes import TEMPLATE_SCENES, toy_template
    from vq3dcli.pipelines.evaluation.image_sets import toy_set

    count = asked.count or 64
    scenes = toy_set("toy scenes", count, seed=asked.seed, purpose="eval", size_px=asked.size)
    facts = {"scenes": dict(scenes.description), "template_scenes": TEMPLATE_SCENES, "views": evaluation.VIEW_NAMES}
    metrics: dict[str, Any]
    predictor = None if weights is None else evaluation.model_predictor(weights)
    with said.progress("measuring", count, unit="scenes") as progress:
        template = toy_template(asked.size)
        options = {"count": count, "seed": asked.seed, "size_px": asked.size}
        if predictor is None:
            metrics = {**evaluation.evaluate_baselines(**options, template=template, on_progress=progress.advance)}
            return _Measured("toyscenes", evaluation.PROTOCOL, count, metrics, facts, None)
        result = evaluation.evaluate_geometry(predictor, **options, template=template, on_progress=progress.advance)
    metrics = {**result.metrics, "view_psnr": result.view_psnr, "views": result.views}
    sheet = evaluation.example_sheet(result.examples)
    return _Measured("toyscenes", evaluation.PROTOCOL, count, metrics, facts, sheet)


def _labels(said: Output, asked: _Asked, weights: LoadedWeights) -> _Measured:
    from vq3dcli.pipelines.evaluation.geometry import photo_predictor
    from vq3dcli.pipelines.evaluation.labels import PROTOCOL, measure_labels, open_labelled

    with said.progress("reading labels"):
        labelled = open_labelled(
            Path(asked.data), asked.labels, count=asked.count or 256, seed=asked.seed, size_px=asked.size
        )
    count = len(labelled.images)
    with said.progress("measuring", count, unit="images") as progress:
        result = measure_labels(photo_predictor(weights), weights.recipe, labelled, on_progress=progress.advance)
    loss = weights.recipe.loss
    facts = {
        "images": dict(labelled.images.description),
        "labels": labelled.description,
        "alignment": f"relative labels to mean {loss.alignment_mean} and standard deviation {loss.alignment_std} of s",
        "template": "the mean aligned label of all other images",
    }
    return _Measured("labels", PROTOCOL, count, result.metrics, facts, result.sheet)


def _stereo(said: Output, asked: _Asked, weights: LoadedWeights) -> _Measured:
    from vq3dcli.pipelines.evaluation.geometry import photo_predictor
    from vq3dcli.pipelines.evaluation.stereo_pair import PROTOCOL, evaluate_stereo, load_stereo_pair

    pair = load_stereo_pair()
    with said.progress("measuring", 1, unit="pairs") as progress:
        result = evaluate_stereo(
            photo_predictor(weights), weights.recipe, pair, size_px=asked.size, on_progress=progress.advance
        )
    facts = {
        "files_sha256": pair.sha256,
        "resize": f"the middle square, bicubic with antialiasing to {asked.size}; disparity by nearest neighbour",
        "fitted": "distance of the cameras and shift of the right image, to the measured disparity by least squares",
    }
    return _Measured("stereo", PROTOCOL, 1, result.metrics, facts, result.sheet)


def _conditions(
    asked: _Asked, protocol: str, facts: Mapping[str, Any], weights: LoadedWeights | None
) -> dict[str, Any]:
    import torch

    from vq3dcli.pipelines.evaluation.generation import versions
    from vq3dcli.pipelines.evaluation.geometry import RENDERING

    device = "cpu" if weights is None else next(weights.model.parameters()).device.type
    return {
        "protocol": protocol,
        "data": asked.data if asked.data in ("toyscenes", "stereo") else "shards",
        **facts,
        "rendering": RENDERING,
        "weights_sha256": None if weights is None else weights.sha256,
        "seed": asked.seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(None),
    }
