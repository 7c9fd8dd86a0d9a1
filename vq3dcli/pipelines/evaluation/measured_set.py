"""What a set of images is measured by: its features, their moments, its classes as seen; kept in a file of statistics.

    images -> feature network -> features, moments
           -> classifier      -> classes

Statistics depend on the description of the images, the network and its weights, the classifier: a file's name and
metadata hold the hash of everything that its numbers depend on. A run that was interrupted goes on with what it had
finished. Several processes can share the work by blocks of a thousand images; what is known of one is a file until
somebody has all of them, and joins them to one. The classifier of toy scenes, trained on scenes drawn for it alone,
lies beside them.

Legend: N images, K images whose features are kept, D features.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data_tools.job import own_turn
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import make_folder, sha256_bytes
from vq3dcli.metrics.distribution import Moments, moments
from vq3dcli.metrics.features import FeatureNetwork
from vq3dcli.metrics.toy_classifier import EPOCHS, ToyClassifier, settings, train_classifier, weights_sha256
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, toy_set
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.seeding import generator
from vq3dcli.tensor_file import read_tensors, write_tensors
from vq3dcli.toyscenes import CLASS_NAMES

_BLOCK_IMAGES = 1024
# Features of more images than this are not held: 50,000 of Inception take 400 MB.
KEPT_FEATURES = 50_000
FORMAT_VERSION = 1
_PICTURES = 64
_TENSORS = ("features", "seen_class", "pictures", "picture_class")  # of a `MeasuredSet`, as they are kept
_log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


class OthersAtWorkError(Exception):
    """This part is done, and others have work left."""


def in_parts(
    images: ImageSet,
    look: Callable[[range], Tensors],
    join: Callable[[Iterable[Tensors]], Tensors],
    *,
    part: Part,
    folder: Path | None,
    kind: str,
    facts: Mapping[str, Any],
) -> tuple[Tensors, bool]:
    """What `join` makes of what `look` sees of each block of the images; `remembered` in a folder of statistics.

    `look` gets the numbers of a block's images; `join` the blocks in order, each made or read when it is asked for.
    One of several parts needs a folder. Raises `OthersAtWorkError`: of a part, where others have work left.
    """
    # Whole steps: the bits of an image may depend on those that are made with it.
    size = images.step * -(-_BLOCK_IMAGES // images.step)
    blocks = [range(first, min(first + size, len(images))) for first in range(0, len(images), size)]

    def whole() -> tuple[Tensors, bool]:
        return remembered(folder, kind, facts, lambda: join(map(look, blocks)))

    if part == WHOLE or folder is None:
        return whole()

    def facts_of(number: int) -> dict[str, Any]:
        return {**facts, "block": number}

    def block(number: int) -> Tensors:
        return remembered(folder, f"{kind}-block", facts_of(number), lambda: look(blocks[number]))[0]

    make_folder(folder)
    if not (joined := _path(folder, kind, facts)).is_file():
        for number in filter(part.has, range(len(blocks))):
            block(number)
        with own_turn(folder, part):
            paths = [_path(folder, f"{kind}-block", facts_of(number)) for number in range(len(blocks))]
            if not joined.is_file() and not all(path.is_file() for path in paths):
                raise OthersAtWorkError
            remembered(folder, kind, facts, lambda: join(map(block, range(len(blocks)))))
            for path in paths:
                path.unlink(missing_ok=True)
    return whole()


def remembered(
    folder: Path | None, kind: str, facts: Mapping[str, Any], make: Callable[[], Tensors]
) -> tuple[Tensors, bool]:
    """Tensors that depend on `facts` alone, and whether a file in the folder had them; else they are made and kept."""
    text = json.dumps(facts, sort_keys=True)
    path = None if folder is None else _path(folder, kind, facts)
    if path is not None and path.is_file():
        try:
            header, tensors, _ = read_tensors(path, what="statistics")
            if header["facts"] != text:
                raise ValueError("it is of something else")
            return tensors, True
        except (DataError, InputMissingError, ValueError, KeyError) as error:
            _log.warning("damaged statistics are measured again (%s): %s", path, error)
    made = make()
    if path is not None:
        make_folder(path.parent)
        write_tensors(path, {name: value.contiguous() for name, value in made.items()}, {"facts": text})
    return made, False


def _path(folder: Path, kind: str, facts: Mapping[str, Any]) -> Path:
    text = json.dumps(facts, sort_keys=True)
    return folder / f"{kind}-{sha256_bytes(text.encode())[:16]}.safetensors"


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
