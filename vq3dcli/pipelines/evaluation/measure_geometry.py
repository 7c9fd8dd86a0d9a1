"""`vq3d evaluate geometry`: against exact toy scenes, a teacher's labels or a stereo pair; its tables and its page.

What labels say, and of what: `labelled.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vq3dcli.export.charts import Series, bar_chart, series_chart
from vq3dcli.export.page import Html, Section, paragraph
from vq3dcli.export.page import table as page_table
from vq3dcli.pipelines.evaluation import geometry, stereo_pair
from vq3dcli.pipelines.evaluation.geometry import (
    TEMPLATE_SCENES,
    VIEW_FIGURES,
    VIEW_NAMES,
    toy_template,
)
from vq3dcli.pipelines.evaluation.image_sets import TOYSCENES, toy_set
from vq3dcli.pipelines.evaluation.labelled import measure_labels, open_labelled
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder, versions
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.weights_file import LoadedWeights

STEREO = "stereo"
_LABELS_PROTOCOL = "geometry-labels-2"
_TOY_SCENES, _LABELLED_IMAGES = 64, 256

# Name, what a perfect model has, what it says.
_DISPARITY = (
    ("spearman", 1.0, "rank correlation of rendered and true disparity"),
    ("ssi_error", 0.0, "error after the best scale and shift"),
    ("edge_f1", 1.0, "borders within a pixel of true ones and the other way round"),
    ("relief", 1.0, "rendered over true spread of disparity; 0 is a flat wall"),
    ("nfs", None, "non-flatness score of disparity, 1 to 64; perfect is that of the exact scenes"),
    ("reprojection_error", None, "median way home of a pixel through another view, percent of the width"),
    ("reprojection_share", None, "part of the pixels that come home within 2 percent"),
    ("weight_variance", 0.0, "spread of a ray's weights: floaters"),
)
_PSNR = ("psnr", "novel_psnr", "copy_psnr", "flat_psnr", "pivot_psnr", "warp_psnr", "right_psnr")
_VIEWS_TEXT = (
    "The model's novel views beside its own reconstruction that is not moved (copy), painted on a plane (flat, pivot), "
    "and beside the true input moved by exact disparity (warp), the ceiling for what only moves pixels. At yaw 0: the "
    "reconstruction itself."
)


class _Measured(NamedTuple):
    """What one way to measure has to say; `facts` are conditions of its own."""

    protocol: str
    total: int
    metrics: dict[str, Any]
    facts: dict[str, Any]
    sheet: Tensor
    sheet_text: str


@exact_rendering()
def measure_geometry(
    data: str,
    weights: LoadedWeights,
    *,
    labels: str | None,
    count: int | None,
    seed: int,
    out: Path | None,
    counting: Counting,
) -> Evaluation:
    """What `vq3d evaluate geometry` does; its options say what the arguments are, and raise its errors."""
    size = weights.recipe.model.image_size
    evaluation_folder(out, "geometry", "geometry.png")
    if data == TOYSCENES:
        measured = _toyscenes(weights, count or _TOY_SCENES, seed, size, counting)
    elif data == STEREO:
        measured = _stereo(weights, size)
    else:
        measured = _labels(weights, Path(data), labels, count or _LABELLED_IMAGES, seed, size, counting)
    protocol = f"{measured.protocol}, {size} px"
    conditions = {
        "protocol": protocol,
        "data": data if data in (TOYSCENES, STEREO) else "shards",
        **measured.facts,
        "rendering": geometry.RENDERING,
        "weights_sha256": weights.sha256,
        "seed": seed,
        "device": weights.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return Evaluation(
        protocol,
        measured.total,
        {**measured.metrics, "conditions": conditions},
        table(measured.metrics),
        title="Geometry",
        subtitle=f"{protocol}, {measured.total} of {data}, seed {seed}",
        charts=_charts(measured.metrics),
        sections=_sections(measured.metrics),
        sheet=measured.sheet,
        sheet_text=measured.sheet_text,
        seed=seed,
        weights=weights,
    )


def _toyscenes(weights: LoadedWeights, count: int, seed: int, size: int, counting: Counting) -> _Measured:
    predictor = geometry.model_predictor(weights)
    scenes = toy_set("toy scenes", count, seed=seed, purpose="eval", size_px=size)
    with counting("measuring", "scenes") as progress:
        on_progress = adding(progress, count)
        template = toy_template(size)
        result = geometry.evaluate_geometry(
            predictor, count=count, seed=seed, size_px=size, template=template, on_progress=on_progress
        )
    facts = {"scenes": dict(scenes.description), "template_scenes": TEMPLATE_SCENES, "views": VIEW_NAMES}
    metrics = {**result.metrics, "view_psnr": result.view_psnr, "views": result.views}
    text = "Two rows a scene, the exact one above: input, disparity, then the six evaluation views."
    return _Measured(geometry.PROTOCOL, count, metrics, facts, result.sheet, text)


def _labels(
    weights: LoadedWeights, path: Path, name: str | None, count: int, seed: int, size: int, counting: Counting
) -> _Measured:
    labelled = open_labelled(path, name, count=count, seed=seed, size_px=size)
    with counting("measuring", "images") as progress:
        metrics, sheet = measure_labels(
            geometry.photo_predictor(weights),
            weights.recipe,
            labelled,
            on_progress=adding(progress, len(labelled.images)),
        )
    loss = weights.recipe.loss
    facts = {
        "images": dict(labelled.images.description),
        "labels": labelled.description,
        "alignment": f"relative labels to mean {loss.alignment_mean} and standard deviation {loss.alignment_std} of s",
        "template": "the mean aligned label of all other images",
    }
    text = "A row a photo: input, reconstruction, rendered disparity, label, the view from 10 degrees to the side."
    return _Measured(_LABELS_PROTOCOL, len(labelled.images), metrics, facts, sheet, text)


def _stereo(weights: LoadedWeights, size: int) -> _Measured:
    pair = stereo_pair.load_stereo_pair()
    predictor = geometry.photo_predictor(weights)
    metrics, sheet = stereo_pair.evaluate_stereo(predictor, weights.recipe, pair, size_px=size)
    facts = {
        "files_sha256": pair.sha256,
        "resize": f"the middle square, bicubic with antialiasing to {size}; disparity by nearest neighbour",
        "fitted": "distance of the cameras and shift of the right image, to the measured disparity by least squares",
    }
    text = (
        "Left photo, reconstruction, its disparity, the measured one; right photo, the rendered view, the left photo "
        "moved by the measured disparity."
    )
    return _Measured(stereo_pair.PROTOCOL, 1, metrics, facts, sheet, text)


def table(metrics: Mapping[str, Any]) -> list[list[object]]:
    """Rows for a reader: disparity beside the image-blind template and what is perfect, then views in dB."""
    rows: list[list[object]] = [["", "measured", "image-blind", "perfect"]]
    for name, perfect, _ in _DISPARITY:
        if name in metrics:
            exact = metrics.get(f"exact_{name}", perfect)
            rows.append([name, metrics[name], metrics.get(f"template_{name}"), exact])
    rows += [[], ["dB", "measured", "image-blind"]]
    rows += [[name, metrics[name], metrics.get(f"template_{name}")] for name in _PSNR if name in metrics]
    rows += [[name, value] for name, value in metrics.items() if name.startswith("input_")]
    if "views" in metrics:
        rows += [[], ["yaw,pitch", *VIEW_FIGURES]]
        rows += [[view, *(row.get(name) for name in VIEW_FIGURES)] for view, row in metrics["views"].items()]
    return rows


def _sections(metrics: Mapping[str, Any]) -> list[Section]:
    """What the figures say, and novel views by angle where there are several."""
    meanings: list[list[object]] = [["figure", "what it says"]]
    meanings += [[name, text] for name, _, text in _DISPARITY if name in metrics]
    sections = [Section("What the figures say", [page_table(meanings)])]
    if "views" in metrics:
        chart = _by_yaw(metrics["views"], metrics["psnr"])
        sections.append(Section("Novel views by angle", [paragraph(_VIEWS_TEXT), chart]))
    return sections


def _charts(metrics: Mapping[str, Any]) -> list[Html]:
    charts = []
    for name, perfect, _ in _DISPARITY[:5]:
        if name in metrics:
            best = metrics.get(f"exact_{name}", perfect)
            bars = (("measured", metrics[name]), ("image-blind", metrics.get(f"template_{name}")), ("perfect", best))
            known = [(label, float(value)) for label, value in bars if value is not None]
            charts.append(bar_chart(name, known, width_px=360))
    psnr = [
        (n, float(v)) for n, v in metrics.items() if n.endswith("psnr") and not n.startswith(("template_", "view_"))
    ]
    return [*charts, bar_chart("PSNR, dB", psnr)]


def _by_yaw(views: Mapping[str, Mapping[str, float]], psnr: float) -> Html:
    """Each figure over the yaw of the views without pitch; at yaw 0 the reconstruction's own."""
    level = sorted((float(view.split(",")[0]), view) for view in views if float(view.split(",")[1]) == 0)
    series = []
    for name in VIEW_FIGURES:
        points = [(yaw, views[view][name]) for yaw, view in level if name in views[view]]
        if name == "novel_psnr":
            points = sorted([*points, (0.0, psnr)])
        x, y = [p[0] for p in points], [p[1] for p in points]
        series.append(Series(name.removesuffix("_psnr"), x, y, dashed=name != "novel_psnr"))
    return series_chart("PSNR of novel views, dB", series, x_label="yaw, degrees")
