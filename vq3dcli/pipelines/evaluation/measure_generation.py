"""`vq3d evaluate generation`: from its options to sets of images, before anything expensive begins, to its figures."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import InputMissingError, UsageError
from vq3dcli.metrics.features import load_feature_network
from vq3dcli.pipelines.evaluation import generation
from vq3dcli.pipelines.evaluation.generation import Compared, Protocol, evaluate_generation
from vq3dcli.pipelines.evaluation.image_sets import (
    TOYSCENES,
    ImageSet,
    folder_set,
    npz_set,
    pick_rows,
    shard_set,
    toy_set,
)
from vq3dcli.pipelines.evaluation.measured_set import toy_classifier
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder
from vq3dcli.pipelines.evaluation.rendered_sets import Samples, class_counts, reconstructed_set, sampled_set
from vq3dcli.pipelines.sampling.record import pick_classes
from vq3dcli.pipelines.sampling.sample import sharpening_of
from vq3dcli.pipelines.targets import Counting
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import LoadedWeights, load_prior, load_weights

_MAX_YAW_DEG = 60.0
_SIZE_PX = 64
_FIGURES_TEXT = (
    "Each set against the real images. Reconstructions are the floor that no prior over their codes gets below; images "
    "of the training show what a set of equal size scores by chance."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The options of the command; None where nothing was said."""

    samples: Path | None = None
    data: str | None = None
    protocol: str = "offline-1"
    count: int | None = None
    classes: str | None = None
    seed: int = 0
    weights: Path | None = None
    prior: Path | None = None
    sharpening: Mapping[str, float | None] = field(default_factory=dict)
    yaws: Sequence[float] = ()  # in degrees
    inception: Path | None = None
    classifier_scenes: int = 0
    statistics: Path | None = None
    part: Part = WHOLE
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)


class _Real(NamedTuple):
    """Real images to compare with, others to reconstruct, and those of the training; None for none that fit."""

    images: ImageSet
    others: ImageSet | None
    trained: ImageSet | None = None


class _Opened(NamedTuple):
    """What is measured, against what, and by which protocol; `views` are the same samples from other cameras."""

    protocol: Protocol
    weights: LoadedWeights | None
    sampled: ImageSet
    real: _Real
    views: Sequence[Compared] = ()


@exact_rendering()
def measure_generation(asked: Asked, *, out: Path | None, counting: Counting) -> Evaluation:
    """What `vq3d evaluate generation` does: first everything that is asked for is opened, then measured.

    Raises:
        UsageError: Options that contradict each other, or too few images.
        UnavailableError: Weights or a package are missing.
        InputMissingError, DataError, UnsafeFileError: A file is missing, damaged, or another one.
        OthersAtWorkError: As `in_parts`.
    """
    evaluation_folder(out, "generation", "samples.png")
    began = time.perf_counter()
    protocol = generation.protocol_of(asked.protocol, asked.count)
    for yaw in asked.yaws:
        if abs(yaw) > _MAX_YAW_DEG:
            raise UsageError(f"--yaws {yaw:g}: out of range", remedy=f"at most {_MAX_YAW_DEG:g} degrees")
    network = load_feature_network(protocol.network, weights=asked.inception, device=asked.device)
    real_moments = generation.published_moments(asked.data, network)
    if asked.protocol == "adm" and real_moments is None:
        raise UsageError(
            "the protocol adm compares with the mean and covariance of ADM's own file",
            remedy="--data VIRTUAL_imagenet256_labeled.npz",
        )
    opened = _drawn(asked, protocol) if asked.samples is None else _given(asked, asked.samples)
    protocol, weights, sampled, real, _ = opened
    if "," in protocol.name and protocol.network == "inception":
        _log.warning("not the protocol that others publish: %s instead of its own number", protocol.name)
    if not protocol.all_real and len(real.images) != len(sampled):
        counted = (len(sampled), len(real.images))
        _log.warning("%d samples against %d real images: a Frechet distance depends on both", *counted)
    sets = _compared(opened)
    shown = {sampled.class_names[i] for i in sampled.class_index.unique().tolist() if i >= 0}
    classifier = None
    if asked.classifier_scenes and shown and shown <= set(CLASS_NAMES):
        size = int(real.images.description["size_px"])
        classifier = toy_classifier(
            size, scenes=asked.classifier_scenes, statistics=asked.statistics, counting=counting
        )
    result = evaluate_generation(
        protocol,
        network,
        real.images,
        sets,
        classifier=classifier,
        real_moments=real_moments,
        statistics=asked.statistics,
        part=asked.part,
        seed=asked.seed,
        counting=counting,
    )
    conditions = {**result.conditions, "seconds": time.perf_counter() - began, "device": asked.device.type}
    return Evaluation(
        protocol.name,
        len(sampled),
        {**result.figures, "conditions": conditions},
        generation.table(result, network),
        title="Generation",
        subtitle=f"{protocol.name}: {len(sampled)} samples, seed {asked.seed}",
        texts=[_FIGURES_TEXT],
        charts=generation.charts(result, network),
        sheet=generation.sample_sheet(result.sets["samples"]),
        sheet_text="The first samples of each class.",
        seed=asked.seed,
        weights=weights,
    )


def _drawn(asked: Asked, protocol: Protocol) -> _Opened:
    """Samples of the prior."""
    prior = load_prior(asked.prior, asked.device)
    weights = load_weights(asked.weights, asked.device)
    prior.check_stage1(weights)
    names = prior.tokens.class_names
    chosen, only = _classes(asked, names)
    sharpening = sharpening_of(prior, **asked.sharpening)
    size, count = weights.recipe.model.image_size, protocol.samples
    real = _real(asked, protocol, names if only is None else only, only, size)
    counts = class_counts(chosen, count, names, real.images if protocol.labels == "data" else None)
    samples = Samples(prior, counts, seed=asked.seed, sharpening=sharpening)
    views = []
    for yaw in asked.yaws:
        seen = sampled_set(f"samples, yaw {yaw:g}", weights, samples, yaw_deg=yaw)
        true = None
        if asked.data in (None, TOYSCENES):  # scenes that are drawn are seen from any camera
            true = toy_set(f"held-out images, yaw {yaw:g}", count, **_toys(asked, only, size), yaw_deg=yaw)
        views.append(Compared(f"yaw {yaw:g}", seen, true))
    if asked.classes is None and only is not None:
        _log.warning("only the %d classes of toy scenes, of %d: --data with shards for others", len(only), len(names))
    return _Opened(protocol, weights, sampled_set("samples", weights, samples), real, views)


def _classes(asked: Asked, names: Sequence[str]) -> tuple[list[int], list[str] | None]:
    """The classes to sample, and their names where they are not all: of toy scenes those that there are of them."""
    toys = [i for i, name in enumerate(names) if name in CLASS_NAMES]
    if asked.classes is None and asked.data in (None, TOYSCENES) and 0 < len(toys) < len(names):
        return toys, [names[i] for i in toys]
    chosen = pick_classes(asked.classes, names)
    return chosen, None if asked.classes is None or not names else [names[i] for i in chosen]


def _given(asked: Asked, path: Path) -> _Opened:
    """Samples that are there already."""
    weights = None if asked.weights is None else load_weights(asked.weights, asked.device)
    size = None if weights is None else weights.recipe.model.image_size
    names: Sequence[str] = ()
    if asked.data == TOYSCENES:
        names = CLASS_NAMES
    elif asked.data is not None and (Path(asked.data) / MANIFEST_NAME).is_file():
        names = ShardFolder(Path(asked.data)).class_names
    if path.suffix.lower() == ".npz" and not path.is_dir():
        sampled = npz_set("samples", path, class_names=names)
    else:
        sampled = folder_set("samples", path, size_px=size, class_names=names)
    protocol = generation.protocol_of(asked.protocol, len(_check_count(sampled, 4)))
    side = sampled.description["size_px"]
    real = _real(asked, protocol, (), None, size or (side if isinstance(side, int) else _SIZE_PX))
    return _Opened(protocol, weights, sampled, real)


def _compared(opened: _Opened) -> list[Compared]:
    """The samples, and beside them the floor of reconstructions, and images of the training."""
    sets, (real, others, trained) = [Compared("samples", opened.sampled)], opened.real
    if opened.weights is not None and others is not None:
        sets.append(Compared("reconstructions", reconstructed_set("reconstructions", opened.weights, others)))
        rows = [images.description.get("rows_sha256") for images in (real, others)]
        if real.description == others.description or (rows[0] is not None and rows[0] == rows[1]):
            _log.warning("the floor is of reconstructions of the very images that they are compared with")
    if trained is not None:
        sets.append(Compared("training", trained))
    return [*sets, *opened.views]


def _real(asked: Asked, protocol: Protocol, shown: Sequence[str], only: Sequence[str] | None, size_px: int) -> _Real:
    """What `--data` names.

    They are of the classes `only` where some are named; `shown` are sampled. Those to reconstruct are other ones where
    there are enough: reconstructions of the same ones would be nearer by that alone.
    """
    count, data = protocol.samples, asked.data
    if data is None:
        if not shown or not set(shown) <= set(CLASS_NAMES):
            raise UsageError(
                "it is not known what real images to compare with", remedy="--data with shards, or toyscenes"
            )
        data = TOYSCENES
    path = Path(data)
    if data == TOYSCENES:
        toys = _toys(asked, only, size_px)
        images = toy_set("held-out images", count, **toys)
        others = toy_set("reconstructed images", count, **toys, first=count)
        trained = toy_set("training images", count, **{**toys, "seed": 0, "purpose": "train"})
        return _Real(images, others, trained)
    if (path / MANIFEST_NAME).is_file():
        folder = ShardFolder(path)
        rows = pick_rows(folder, None, seed=asked.seed, classes=only)
        wanted = len(rows) if protocol.all_real else count
        images = _check_count(shard_set("held-out images", folder, rows[:wanted], size_px=size_px), wanted)
        second = rows[wanted : wanted + count] if len(rows) >= wanted + count else rows[:count]
        return _Real(images, shard_set("reconstructed images", folder, second, size_px=size_px))
    if only is not None:
        raise UsageError(
            f"--class needs real images of these classes alone, and which they are is not known ({data})",
            remedy="--data with shards, or toyscenes",
        )
    if path.suffix.lower() == ".npz":
        images = npz_set("held-out images", path)
        return _Real(images, images if images.description["size_px"] == size_px else None)
    if not path.is_dir():
        raise InputMissingError(f"no such data ({data})", remedy=f"{TOYSCENES}, shards, a folder of images, or an .npz")
    images = folder_set("held-out images", path, size_px=size_px)
    return _Real(images, images)


def _toys(asked: Asked, only: Sequence[str] | None, size_px: int) -> dict[str, Any]:
    """Arguments of `toy_set` for scenes that no training has seen, of the classes `only`."""
    classes = None
    if only is not None and set(only) != set(CLASS_NAMES):
        unknown = [name for name in only if name not in CLASS_NAMES]
        if unknown:
            raise UsageError(f"no toy scene is of the class {unknown[0]!r}", remedy="--data with shards of that class")
        classes = [CLASS_NAMES.index(name) for name in only]
    return {"seed": asked.seed, "purpose": "eval", "size_px": size_px, "classes": classes}


def _check_count(images: ImageSet, wanted: int) -> ImageSet:
    if len(images) < wanted:
        raise UsageError(
            f"too few images ({images.name}): {len(images)}, and {wanted} are wanted",
            remedy=f"-n {max(len(images), 2)}",
        )
    return images
