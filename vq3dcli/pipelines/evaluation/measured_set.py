"""What a set of images is measured by: its features, their moments, its classes as seen; kept in a file of statistics.

    images -> feature network -> features, moments
           -> classifier      -> classes

Statistics depend on the description of the images, the network and its weights, the classifier (`parts`). A run that
was interrupted goes on with the sets that it had finished. The classifier of toy scenes, trained on scenes drawn for it
alone, lies beside them.

Legend: N images, K images whose features are kept, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import UsageError
from vq3dcli.metrics.distribution import Moments, moments
from vq3dcli.metrics.features import FeatureNetwork
from vq3dcli.metrics.toy_classifier import EPOCHS, ToyClassifier, settings, train_classifier, weights_sha256
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, toy_set
from vq3dcli.pipelines.evaluation.parts import in_parts, remembered
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.seeding import generator
from vq3dcli.toyscenes import CLASS_NAMES

# Features of more images than this are not held: 50,000 of Inception take 400 MB.
KEPT_FEATURES = 50_000
FORMAT_VERSION = 1
_PICTURES = 64
_TENSORS = ("features", "seen_class", "pictures", "picture_class")  # of a `MeasuredSet`, as they are kept


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
    part: Part = WHOLE,
    on_images: Callable[[int], object] = lambda count: None,
) -> MeasuredSet:
    """Look at each image once, or take what a file in the folder `statistics` has of the same set.

    Parts share that folder.

    Raises:
        UsageError: Fewer than two images.
        DataError: A feature that is not finite, or an image that cannot be read.
        OthersAtWorkError: As `in_parts`.
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
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[torch.randperm(len(images), generator=generator(0, "kept-features"))[:KEPT_FEATURES]] = True
    shown = _shown_rows(images.class_index)

    def look(rows: range) -> dict[str, Tensor]:
        start, seen = rows.start, dict[str, list[Tensor]](features=[], seen_class=[], pictures=[])
        for batch in images.read(rows.start, rows.stop):
            seen["features"].append(network(batch))
            seen["seen_class"].append(torch.empty(0, dtype=torch.int64))
            if classifier is not None:
                seen["seen_class"][-1] = classifier.classify(batch)
            seen["pictures"].append(batch[shown[start : start + len(batch)]])
            start += len(batch)
            on_images(len(batch))
        return {name: torch.cat(parts) for name, parts in seen.items()}

    def join(blocks: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        columns = dict[str, list[Tensor]](features=[], seen_class=[], pictures=[])

        def features() -> Iterator[Tensor]:
            start = 0
            for block in blocks:
                stop = start + len(block["features"])
                columns["features"].append(block["features"][kept[start:stop]])
                for name in ("seen_class", "pictures"):
                    columns[name].append(block[name])
                start = stop
                yield block["features"]

        own = moments(features())
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        return {**joined, "mean": own.mean, "covariance": own.covariance, "picture_class": images.class_index[shown]}

    kind = str(images.description["kind"]).replace(" ", "-")
    tensors, from_file = in_parts(images, look, join, part=part, folder=statistics, kind=kind, facts=facts)
    if from_file and part == WHOLE:
        on_images(len(images))
    own = Moments(len(images), tensors["mean"], tensors["covariance"])
    return MeasuredSet(images, own, **{name: tensors[name] for name in _TENSORS}, kept=from_file)


def _shown_rows(class_index: Tensor) -> Tensor:
    """Which images a sheet shows, bool `[N]`: as many first ones of each class as there is room for."""
    shown = torch.zeros(len(class_index), dtype=torch.bool)
    classes = class_index.unique().tolist()
    room = max(1, _PICTURES // max(len(classes), 1))
    for number in classes[:_PICTURES]:
        shown[(class_index == number).nonzero()[:room, 0]] = True
    return shown


def toy_classifier(size_px: int, *, scenes: int, statistics: Path | None, counting: Counting) -> Classifier:
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

    def trained() -> Mapping[str, Tensor]:
        images = []
        with counting("drawing scenes for the classifier", "images") as count:
            on_images = adding(count, scenes)
            for batch in drawn.batches():
                images.append(batch)
                on_images(len(batch))
        with counting("training the classifier", "images") as count:
            on_images = adding(count, scenes * EPOCHS)
            model = train_classifier(torch.cat(images), drawn.class_index, len(CLASS_NAMES), on_images=on_images)
        return model.state_dict()

    with torch.device("meta"):  # without storage: random numbers for it would move the global random state
        model = ToyClassifier(len(CLASS_NAMES))
    model.load_state_dict(remembered(statistics, "classifier", facts, trained)[0], assign=True)
    model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Classifier(model.classify, CLASS_NAMES, {**facts, "sha256": weights_sha256(model)})
