"""Rendered disparity against labels of images: exact ones, or a teacher's.

A relative label says nothing of scale and shift. Rank correlation and the scale- and shift-invariant error do not need
them; relief and borders are measured against the label as training sees it, brought to the statistics of a typical
scene (`losses.depth.align_canonical`). What a figure says is bounded by the teacher, which is wrong, too.

Legend: N images, B images of a batch, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import LABEL_KIND
from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder, labels_there, resize_label
from vq3dcli.data.views import Views, gather_views, read_views
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.losses.depth import LABEL_METRIC, align_canonical
from vq3dcli.metrics.image import psnr
from vq3dcli.metrics.warp import evaluation_cameras
from vq3dcli.model.build import build_canonical_camera, build_frustum
from vq3dcli.pipelines.evaluation.geometry import Figures, Predictor, add_disparity, add_rendered, look
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, pick_rows, shard_set

_AT_ONCE = 16
_SHOWN = 12


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
