"""What a set of images is measured by: its features, their moments, its classes as seen; kept in a file of statistics.

    images -> feature network -> features, moments
           -> classifier      -> classes

A file of statistics is one safetensors file whose name and metadata hold the hash of everything its numbers depend on:
the description of the images, the network and its weights, the classifier. A run that was interrupted goes on with the
sets that it had finished.

Legend: N images, K images whose features are kept, D features.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import make_folder, sha256_bytes
from vq3dcli.metrics.distribution import Moments, moments
from vq3dcli.metrics.features import FeatureNetwork
from vq3dcli.pipelines.evaluation.image_sets import ImageSet
from vq3dcli.seeding import generator
from vq3dcli.tensor_file import read_tensors, write_tensors

# Features of more images than this are not held: 50,000 of Inception take 400 MB.
KEPT_FEATURES = 50_000
FORMAT_VERSION = 1
_FEATURE_BATCH = 32
_MOMENT_ROWS = 1024
_PICTURES = 64

_log = logging.getLogger(__name__)

Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """A classifier of toy scenes, and what it is.

    Attributes:
        classify: uint8 `[B, 3, H, W]` to class indices `[B]`.
        class_names: By class index.
        description: Its settings and the hash of its weights, as JSON values.
    """

    classify: Classify
    class_names: tuple[str, ...]
    description: Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredSet:
    """A set and its numbers.

    Attributes:
        images: The set.
        moments: Of the features of all images.
        features: Of the first images, or of random ones where there are more than `KEPT_FEATURES`: float32 `[K, D]`.
        seen_class: Class of each image as the judge sees it, int64 `[N]`; empty without a judge.
        pictures: The first images of each class in turn, uint8 `[P, 3, S, S]`, P at most 64, for a sheet.
        picture_class: Their classes, int64 `[P]`.
        seconds: Of its parts.
        kept: Whether it comes from a file of statistics.
    """

    images: ImageSet
    moments: Moments
    features: Tensor
    seen_class: Tensor
    pictures: Tensor
    picture_class: Tensor
    seconds: Mapping[str, float]
    kept: bool


def measure_set(
    images: ImageSet,
    network: FeatureNetwork,
    judge: Judge | None = None,
    *,
    statistics: Path | None = None,
    on_images: Callable[[int], object] = lambda count: None,
) -> MeasuredSet:
    """Look at each image once, or take what a file of statistics has of the same set.

    Args:
        images: The set.
        network: Its features.
        judge: Classifies the images; None for none.
        statistics: Folder of the files; None keeps nothing.
        on_images: Called with the number of images just measured.

    Raises:
        UsageError: Fewer than two images.
        DataError: A feature that is not finite, or an image that cannot be read.
        OutputError, StorageError: The file cannot be written.
    """
    if len(images) < 2:
        raise UsageError(f"too few images to measure ({images.name}): {len(images)}", remedy="at least 2, better 2048")
    facts = {
        "format_version": FORMAT_VERSION,
        "images": dict(images.description),
        "network": {"name": network.name, "sha256": network.weights_sha256, "resize": network.resize},
        "judge": None if judge is None else dict(judge.description),
        "kept_features": KEPT_FEATURES,
    }
    text = json.dumps(facts, sort_keys=True)
    path = None
    if statistics is not None:
        path = (
            statistics
            / f"{images.description['kind'].replace(' ', '-')}-{sha256_bytes(text.encode())[:16]}.safetensors"
        )
        found = _read(path, text, images)
        if found is not None:
            on_images(len(images))
            return found
    measured = _measure(images, network, judge, on_images)
    if path is not None:
        _write(path, text, measured)
    return measured


def _measure(
    images: ImageSet, network: FeatureNetwork, judge: Judge | None, on_images: Callable[[int], object]
) -> MeasuredSet:
    seconds = {"images": 0.0, "features": 0.0, "classes": 0.0}
    wanted = _kept_rows(len(images))
    shown = _shown_rows(images.class_index)
    features: list[Tensor] = []
    seen: list[Tensor] = []
    pictures: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        start, waiting, rows = 0, [], 0
        passing = images.batches()
        while True:
            began = time.perf_counter()
            batch = next(passing, None)
            seconds["images"] += time.perf_counter() - began
            if batch is None:
                break
            began = time.perf_counter()
            found = torch.cat([network(part).float().cpu() for part in batch.split(_FEATURE_BATCH)])
            seconds["features"] += time.perf_counter() - began
            if judge is not None:
                began = time.perf_counter()
                seen.append(judge.classify(batch))
                seconds["classes"] += time.perf_counter() - began
            stop = start + len(batch)
            features.append(found[wanted[start:stop]])
            pictures.append(batch[shown[start:stop]])
            waiting.append(found)
            rows += len(found)
            if rows >= _MOMENT_ROWS:
                yield torch.cat(waiting)
                waiting, rows = [], 0
            start = stop
            on_images(len(batch))
        if waiting:
            yield torch.cat(waiting)

    found = moments(batches())
    return MeasuredSet(
        images,
        found,
        torch.cat(features),
        torch.cat(seen) if seen else torch.zeros(0, dtype=torch.int64),
        torch.cat(pictures),
        images.class_index[shown],
        seconds,
        kept=False,
    )


def _kept_rows(count: int) -> Tensor:
    """Which images' features are kept, bool `[N]`."""
    if count <= KEPT_FEATURES:
        return torch.ones(count, dtype=torch.bool)
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=generator(0, "kept-features"))[:KEPT_FEATURES]] = True
    return kept


def _shown_rows(class_index: Tensor) -> Tensor:
    """Which images a sheet shows, bool `[N]`: as many first ones of each class as there is room for."""
    shown = torch.zeros(len(class_index), dtype=torch.bool)
    classes = class_index.unique().tolist()
    room = max(1, _PICTURES // max(len(classes), 1))
    for number in classes[:_PICTURES]:
        shown[(class_index == number).nonzero()[:room, 0]] = True
    return shown


def _write(path: Path, facts: str, measured: MeasuredSet) -> None:
    make_folder(path.parent)
    tensors = {
        "mean": measured.moments.mean,
        "covariance": measured.moments.covariance,
        "features": measured.features,
        "seen_class": measured.seen_class,
        "pictures": measured.pictures.contiguous(),
        "picture_class": measured.picture_class,
    }
    write_tensors(path, tensors, {"facts": facts, "seconds": dict(measured.seconds)})


def _read(path: Path, facts: str, images: ImageSet) -> MeasuredSet | None:
    """What a file of statistics has of a set; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        header, tensors, _ = read_tensors(path, what="statistics")
        if header["facts"] != facts:
            raise ValueError("it is of other images")
        return MeasuredSet(
            images,
            Moments(len(images), tensors["mean"], tensors["covariance"]),
            tensors["features"],
            tensors["seen_class"],
            tensors["pictures"],
            tensors["picture_class"],
            header["seconds"],
            kept=True,
        )
    except (DataError, InputMissingError, ValueError, KeyError) as error:
        _log.warning("damaged statistics are measured again (%s): %s", path, error)
        return None
