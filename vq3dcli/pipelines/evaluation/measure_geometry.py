"""`vq3d evaluate geometry`: against exact toy scenes, a teacher's labels or a stereo pair; its tables and its page.

A relative label says nothing of scale and shift. Rank correlation and the scale- and shift-invariant error do not need
them; relief and borders are measured against the label as training sees it, brought to the statistics of a typical
scene (`losses.depth.align_canonical`). What a figure says is bounded by the teacher, which is wrong, too.

Legend: N images, B images of a batch, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import LABEL_KIND
from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder, labels_there, resize_label
from vq3dcli.data.views import Views, gather_views, read_views
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.export.charts import Series, bar_chart, series_chart
from vq3dcli.export.colour import colour_map
from vq3dcli.export.page import Html, Section, paragraph
from vq3dcli.export.page import table as page_table
from vq3dcli.export.sheet import grid
from vq3dcli.losses.depth import LABEL_METRIC, align_canonical
from vq3dcli.metrics.image import psnr
from vq3dcli.metrics.warp import evaluation_cameras
from vq3dcli.model.build import build_canonical_camera, build_frustum
from vq3dcli.pipelines.evaluation import geometry, stereo_pair
from vq3dcli.pipelines.evaluation.geometry import (
    TEMPLATE_SCENES,
    VIEW_FIGURES,
    VIEW_NAMES,
    Figures,
    Predictor,
    add_disparity,
    add_rendered,
    look,
    toy_template,
)
from vq3dcli.pipelines.evaluation.image_sets import TOYSCENES, ImageSet, pick_rows, shard_set, toy_set
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder, versions
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.weights_file import LoadedWeights

STEREO = "stereo"
_LABELS_PROTOCOL = "geometry-labels-2"
_AT_ONCE = 16
_SHOWN = 12
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


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels as stored, float32 `[N, S, S]`, their `LABEL_KIND` int8 `[N]`, and what they are, for JSON."""

    images: ImageSet
    s: Tensor = field(repr=False)
    kind: Tensor = field(repr=False)
    description: dict[str, Any]
    views: list[Views] = field(default_factory=list, repr=False)  # exact pictures from other cameras: V, N in each


def open_labelled(path: Path, name: str | None, *, count: int | None, seed: int, size_px: int) -> LabelledImages:
    """At most `count` random images of a shard folder that have a label of use, at a side of `size_px`.

    Raises:
        InputMissingError: There are no shards, or no such labels; without a name there are none or several.
        DataError, UsageError: They are damaged, none is of use, or the images are too small.
    """
    if not (path / MANIFEST_NAME).is_file():
        raise InputMissingError(f"no shards ({path})", remedy="toyscenes, stereo, or a folder of vq3d prepare-data")
    folder = ShardFolder(path)
    name = name or _only_labels(path)
    labels = LabelFolder(folder, name)
    read = ((row, labels.read(row)) for row in pick_rows(folder, None, seed=seed, classes=None).tolist())
    useful = ((row, label) for row, label in read if label is not None)
    chosen = list(itertools.islice(useful, count))
    if not chosen:
        raise DataError(f"no image has a label of use ({path}, labels {name})", remedy="other labels")
    maps = torch.stack([resize_label(label.values, size_px) for _, label in chosen])
    kinds = [LABEL_KIND[label.info.kind] for _, label in chosen]
    images = shard_set("labelled images", folder, torch.tensor([row for row, _ in chosen]), size_px=size_px)
    description = {
        "labels": name,
        "manifest_sha256": labels.sha256,
        "metric": kinds.count(LABEL_METRIC),
        "relative": len(kinds) - kinds.count(LABEL_METRIC),
        "resize": "nearest",
        "views": folder.manifest.views,
    }
    numbers = range(folder.manifest.views)
    seen = [read_views(folder, row, numbers, size_px) for row, _ in chosen] if numbers else []
    views = [gather_views([[each[number]] for each in seen], size_px) for number in numbers]
    return LabelledImages(images, maps, torch.tensor(kinds, dtype=torch.int8), description, views)


def _only_labels(path: Path) -> str:
    names = [name for name, finished in labels_there(path).items() if finished]
    if not names:
        raise InputMissingError(
            f"no finished disparity labels ({path})", remedy=f"vq3d depth-labels {path} --model ..."
        )
    if len(names) > 1:
        raise InputMissingError(f"several disparity labels ({path}): {', '.join(names)}", remedy=f"--labels {names[0]}")
    return names[0]


@torch.inference_mode()
def measure_labels(
    predictor: Predictor,
    recipe: Stage1Recipe,
    labelled: LabelledImages,
    *,
    on_progress: Callable[[int], object] = lambda count: None,
) -> tuple[dict[str, float], Tensor]:
    """Measure the disparity that a predictor renders of each image against its label, in the camera of `recipe`.

    Figures by name, `template_` those of the mean label of all other images, and a contact sheet uint8 `[3, H, W]`:
    image, reconstruction, rendered disparity, label, view from the side.
    """
    size, depth_range = labelled.s.shape[-1], build_frustum(recipe).depth_range
    targets = aligned_labels(labelled, mean=recipe.loss.alignment_mean, std=recipe.loss.alignment_std)
    figures = Figures()
    tiles: list[Tensor] = []
    done = 0
    for images in (part for batch in labelled.images.batches() for part in batch.split(_AT_ONCE)):
        target = targets[done : done + len(images)]
        front = build_canonical_camera(recipe, size, len(images))
        views = evaluation_cameras(front, recipe.camera.radius)
        scene = predictor(images)
        main, novel = add_rendered(figures, scene, images, target, front, views, depth_range)
        for exact in (each.of_rows(done, done + len(images)) for each in labelled.views):
            figures.add("novel_psnr", psnr(look(scene, front.at(exact.cam_to_world)).rgb, exact.image))
            figures.add("copy_psnr", psnr(main.rgb, exact.image))
        if len(targets) > 1:
            others = (targets.double().sum(0) - target.double()) / (len(targets) - 1)
            add_disparity(figures, "template_", others.float(), target)
        for i in range(min(len(images), max(0, _SHOWN - done))):
            tiles += [images[i], main.rgb[i], colour_map(main.s[i]), colour_map(target[i]), novel[0].rgb[i]]
        done += len(images)
        on_progress(len(images))
    return figures.summary(), grid(tiles, columns=5)


def aligned_labels(labelled: LabelledImages, *, mean: float, std: float) -> Tensor:
    """Labels as training sees them, `[N, S, S]`: metric ones as they are, relative ones at the given mean and std."""
    relative = align_canonical(labelled.s, mean=mean, std=std)
    return torch.where((labelled.kind == LABEL_METRIC)[:, None, None], labelled.s, relative)
