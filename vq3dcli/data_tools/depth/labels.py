"""Disparity labels as shards beside the images: the same shard names and keys, `disparity/NAME/`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch

from vq3dcli.data.ahead import ahead
from vq3dcli.data.shard_format import (
    DISPARITY_EXTENSION,
    DISPARITY_INFO_EXTENSION,
    DisparityInfo,
    LabelKind,
    Manifest,
)
from vq3dcli.data.shard_index import PREPARE_AGAIN
from vq3dcli.data.shard_reader import ShardFolder, decode_levels, encode_levels, label_folder, open_images
from vq3dcli.data_tools.depth.models import DepthModel
from vq3dcli.data_tools.depth.quality import make_label
from vq3dcli.data_tools.job import Job, Progress, write_part
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import Sample, compact_json
from vq3dcli.errors import DataError
from vq3dcli.sealed import json_value

EXACT = "exact"
LABEL_PX = 128
BATCH_SIZE = 16
# A network whose labels are nearly all of no use is the wrong one, or is given wrong images: the run ends at the first
# shard of at least so many images of which more than this share is flagged.
_FEWEST_JUDGED, _MOST_FLAGGED = 32, 0.95


def label_exact(shards: Path, *, force: bool = False, progress: Progress = lambda done, total: None) -> Manifest:
    """Write the disparity that a data set carries itself as the labels `exact`.

    `force` replaces labels that were made for other images; `progress` is called with (samples done, all samples).
    Raises `DataError`: the data set has no disparity of its own.
    """
    images = open_images(shards)
    if not images.manifest.own_disparity:
        raise DataError(
            f"these images have no disparity of their own ({shards})",
            remedy="training without a depth loss, or on toy scenes",
        )
    manifest = write_labels(images, EXACT, lambda at: _exact_samples(images, at), force=force, progress=progress)
    assert manifest is not None
    return manifest


def label_by_model(
    shards: Path,
    model: DepthModel,
    name: str,
    *,
    size: int = LABEL_PX,
    batch_size: int = BATCH_SIZE,
    part: Part = WHOLE,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    flagged: Counter[str] | None = None,
) -> Manifest | None:
    """Write what a depth network sees in the images as relative labels `name`; None while other parts have work left.

    The network gets the same batches in every run, whatever was done before: its numbers depend on them in the last
    bits. Labels have `size` pixels a side, fewer where the images or the network's maps are smaller; `flagged` counts
    those of this call by what is wrong with them. `force` and `progress` are as of `label_exact`.

    Raises `UsageError`: the folder holds labels, or has labels of this name that were made otherwise; `DataError`: the
    images are damaged, the network fails, or nearly all labels of a shard are of no use.
    """
    images = open_images(shards)
    counts: Counter[str] = Counter() if flagged is None else flagged
    first = [images.image(i) for i in range(min(batch_size, images.num_samples))]
    if first:  # a network that fails, or for which the batch is too large, leaves no folder with a plan behind
        model.predict(torch.stack(first))
    side = min(size, images.manifest.stored_size)

    def make(positions: range) -> Iterator[Sample]:
        return _predicted_samples(images, positions, model, side, batch_size, counts)

    options = {**model.facts, "size": side, "batch_size": batch_size}
    return write_labels(images, name, make, force=force, progress=progress, part=part, options=options)


def write_labels(
    images: ShardFolder,
    name: str,
    make: Callable[[range], Iterator[Sample]],
    *,
    force: bool,
    progress: Progress,
    part: Part = WHOLE,
    options: dict[str, Any] | None = None,
) -> Manifest | None:
    """Write the labels `name` of `images`, one label shard for each image shard; None while other parts have work left.

    `make` gives the labels of the samples in a range, see `label_sample`, which depend on `options`, JSON values,
    beside the images and their name.
    """
    manifest = images.manifest
    ends = accumulate(shard.samples for shard in manifest.shards)
    job = Job(
        kind="disparity",
        preset=name,
        image_size=manifest.image_size,
        margin=manifest.margin,
        own_disparity=False,
        class_names=manifest.class_names,
        shards=[range(end - shard.samples, end) for shard, end in zip(manifest.shards, ends, strict=True)],
        plan={
            **(options or {}),
            "model": name,
            "images_manifest_sha256": images.sha256,
        },
        maker_of=lambda _: make,
    )
    return write_part(label_folder(images.path, name), job, part, force=force, progress=progress)


def label_sample(
    images: ShardFolder, i: int, levels: bytes, kind: LabelKind, lo: float, hi: float, flags: Sequence[str] = ()
) -> Sample:
    """The label of image `i`: `levels` is a uint16 `.npy` file. Raises `ValueError` for values that are no label's."""
    entry = images.entry(i)
    info = DisparityInfo(kind=kind, lo=lo, hi=hi, flags=list(flags), sha256=images.image_sha256(i))
    members = {DISPARITY_EXTENSION: levels, DISPARITY_INFO_EXTENSION: compact_json(info.model_dump())}
    return Sample(entry.key, entry.class_index, members)


def _exact_samples(images: ShardFolder, positions: range) -> Iterator[Sample]:
    for i in positions:
        members, name = images.read(i, [DISPARITY_EXTENSION, "json"]), images.name(i)
        try:
            levels, own = members[DISPARITY_EXTENSION], json_value(members["json"])
            label = label_sample(images, i, levels, own["kind"], own["lo"], own["hi"])
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"sample without its own disparity ({name}): {error}", remedy=PREPARE_AGAIN) from error
        decode_levels(levels, name=name)
        yield label


def _predicted_samples(
    images: ShardFolder, positions: range, model: DepthModel, side: int, batch_size: int, flagged: Counter[str]
) -> Iterator[Sample]:
    """Labels of a shard, batch by batch; the next batch is decoded while the network works."""
    unusable = 0
    pictures = ahead(images.image, positions, most=2 * batch_size)
    with contextlib.closing(pictures):
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            maps = model.disparity(torch.stack(list(islice(pictures, len(batch)))))
            for i, disparity in zip(batch, maps, strict=True):
                label = make_label(disparity, side)
                flagged.update(label.flags)
                unusable += bool(label.flags)
                yield label_sample(images, i, encode_levels(label.levels), "relative", label.lo, label.hi, label.flags)
    if len(positions) >= _FEWEST_JUDGED and unusable > _MOST_FLAGGED * len(positions):
        raise DataError(
            f"{unusable} of {len(positions)} labels of a shard are of no use: {dict(flagged)}",
            remedy="another network, or --input-size and --predicts as its page says",
        )
