"""What a set of images is measured by: its features, their moments, its classes as seen; kept in a file of statistics.

    images -> feature network -> features, moments
           -> classifier      -> classes

A file of statistics is one safetensors file whose name and metadata hold the hash of everything its numbers depend on:
the description of the images, the network and its weights, the classifier. A run that was interrupted goes on with the
sets that it had finished. The classifier of toy scenes, trained on scenes drawn for it alone, lies beside them.

Legend: N images, K images whose features are kept, D features.
"""

from __future__ import annotations

import json
import logging
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
from vq3dcli.metrics.toy_classifier import EPOCHS, ToyClassifier, settings, train_classifier, weights_sha256
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, toy_set
from vq3dcli.pipelines.evaluation.page import Progress
from vq3dcli.seeding import generator
from vq3dcli.tensor_file import check_tensors, read_tensors, write_tensors
from vq3dcli.toyscenes import CLASS_NAMES

# Features of more images than this are not held: 50,000 of Inception take 400 MB.
KEPT_FEATURES = 50_000
FORMAT_VERSION = 1
_MOMENT_ROWS = 1024
_PICTURES = 64
_TENSORS = ("features", "seen_class", "pictures", "picture_class")  # of a `MeasuredSet`, as they are kept

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """What says which class an image shows: uint8 `[B, 3, H, W]` to class indices `[B]`.

    `description` has its settings and the hash of its weights, as JSON values.
    """

    classify: Callable[[Tensor], Tensor]
    class_names: tuple[str, ...]
    description: Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredSet:
    """A set and its numbers."""

    images: ImageSet  # the set
    moments: Moments  # of the features of all images
    # of the first images, or of random ones where there are more than `KEPT_FEATURES`: float32 `[K, D]`
    features: Tensor
    seen_class: Tensor  # class of each image as the classifier sees it, int64 `[N]`; empty without one
    pictures: Tensor  # the first images of each class in turn, uint8 `[P, 3, S, S]`, P at most 64, for a sheet
    picture_class: Tensor  # their classes, int64 `[P]`
    kept: bool  # whether it comes from a file of statistics


def measure_set(
    images: ImageSet,
    network: FeatureNetwork,
    classifier: Classifier | None = None,
    *,
    statistics: Path | None = None,
    on_images: Callable[[int], object] = lambda count: None,
) -> MeasuredSet:
    """Look at each image once, or take what a file in the folder `statistics` has of the same set.

    Raises:
        UsageError: Fewer than two images.
        DataError: A feature that is not finite, or an image that cannot be read.
    """
    if len(images) < 2:
        raise UsageError(f"too few images to measure ({images.name}): {len(images)}", remedy="at least 2, better 2048")
    facts = {
        "format_version": FORMAT_VERSION,
        "images": dict(images.description),
        "network": {"name": network.name, "sha256": network.weights_sha256, "resize": network.resize},
        "judge": None if classifier is None else dict(classifier.description),
        "kept_features": KEPT_FEATURES,
    }
    text = json.dumps(facts, sort_keys=True)
    path = None
    if statistics is not None:
        name = f"{images.description['kind'].replace(' ', '-')}-{sha256_bytes(text.encode())[:16]}.safetensors"
        path = statistics / name
        known = _read(path, text, images)
        if known is not None:
            on_images(len(images))
            return known
    measured = _measure(images, network, classifier, on_images)
    if path is not None:
        make_folder(path.parent)
        tensors = {name: getattr(measured, name).contiguous() for name in _TENSORS}
        tensors |= {"mean": measured.moments.mean, "covariance": measured.moments.covariance}
        write_tensors(path, tensors, {"facts": text})
    return measured


def _read(path: Path, facts: str, images: ImageSet) -> MeasuredSet | None:
    """What a file of statistics has of a set; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        header, tensors, _ = read_tensors(path, what="statistics")
        if header["facts"] != facts:
            raise ValueError("it is of other images")
        own = Moments(len(images), tensors["mean"], tensors["covariance"])
        rest = {name: tensors[name] for name in _TENSORS}
        return MeasuredSet(images, own, **rest, kept=True)
    except (DataError, InputMissingError, ValueError, KeyError) as error:
        _log.warning("damaged statistics are measured again (%s): %s", path, error)
        return None


def _measure(
    images: ImageSet, network: FeatureNetwork, classifier: Classifier | None, on_images: Callable[[int], object]
) -> MeasuredSet:
    wanted, shown = _kept_rows(len(images)), _shown_rows(images.class_index)
    features: list[Tensor] = []
    seen: list[Tensor] = []
    pictures: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        start, joined = 0, torch.zeros(0)
        for batch in images.batches():
            values = network(batch)
            if classifier is not None:
                seen.append(classifier.classify(batch))
            stop = start + len(batch)
            features.append(values[wanted[start:stop]])
            pictures.append(batch[shown[start:stop]])
            joined, start = torch.cat([joined.reshape(-1, values.shape[1]), values]), stop
            if len(joined) >= _MOMENT_ROWS:
                yield joined
                joined = torch.zeros(0)
            on_images(len(batch))
        if len(joined):
            yield joined

    own = moments(batches())
    classes = torch.cat(seen) if seen else torch.zeros(0, dtype=torch.int64)
    return MeasuredSet(
        images, own, torch.cat(features), classes, torch.cat(pictures), images.class_index[shown], kept=False
    )


def _kept_rows(count: int) -> Tensor:
    """Which images' features are kept, bool `[N]`."""
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


def toy_classifier(size_px: int, *, scenes: int, statistics: Path | None, progress: Progress) -> Classifier:
    """Train a classifier of so many toy scenes, which neither Stage 1 nor a figure sees, or take the one that was kept.

    Raises `UsageError`: fewer than two scenes.
    """
    drawn = toy_set("classifier's scenes", scenes, seed=0, purpose="classifier", size_px=size_px)
    facts = {
        **settings(scenes, EPOCHS, 0),
        "images": dict(drawn.description),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    digest = sha256_bytes(json.dumps(facts, sort_keys=True).encode())
    path = None if statistics is None else statistics / f"classifier-{digest[:16]}.safetensors"
    model = None if path is None else _read_classifier(path)
    if model is None:
        images = []
        with progress("drawing scenes for the classifier", scenes, "images") as advance:
            for batch in drawn.batches():
                images.append(batch)
                advance(len(batch))
        with progress("training the classifier", scenes * EPOCHS, "images") as advance:
            model = train_classifier(torch.cat(images), drawn.class_index, len(CLASS_NAMES), on_images=advance)
        if path is not None:
            make_folder(path.parent)
            write_tensors(path, model.state_dict(), {"format": "toy classifier"})
    return Classifier(model.classify, CLASS_NAMES, {**facts, "sha256": weights_sha256(model)})


def _read_classifier(path: Path) -> ToyClassifier | None:
    """The classifier of a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    model = ToyClassifier(len(CLASS_NAMES)).to(memory_format=torch.channels_last)
    try:
        tensors = read_tensors(path, what="classifier").tensors
        check_tensors(f"damaged classifier ({path})", model.state_dict(), tensors)
    except (DataError, InputMissingError) as error:
        _log.warning("%s; it is trained again", error.message)
        return None
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
