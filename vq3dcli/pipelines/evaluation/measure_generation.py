"""`vq3d evaluate generation`: from its options to sets of images, before anything expensive begins, to its figures."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import InputMissingError, UsageError
from vq3dcli.metrics.distribution import Moments
from vq3dcli.metrics.features import FeatureNetwork, load_feature_network
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
from vq3dcli.pipelines.evaluation.rendered_sets import Samples, class_counts, prior_bits, reconstructed_set, sampled_set
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
    tokens: Path | None = None
    inception: Path | None = None
    classifier_scenes: int = 0
    statistics: Path | None = None
    part: Part = WHOLE
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)


@dataclass(frozen=True)
class _Real:
    """Real images to compare with, others to reconstruct, images of the training, published moments."""

    images: ImageSet
    to_reconstruct: ImageSet | None  # other ones where there are enough, else the same; None if none fit Stage 1
    training: ImageSet | None = None
    moments: Moments | None = None


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
    tokens = None
    if asked.samples is not None:
        weights = None if asked.weights is None else load_weights(asked.weights, asked.device)
        size = None if weights is None else weights.recipe.model.image_size
        sampled = _given(asked, asked.samples, size)
        protocol = generation.protocol_of(asked.protocol, len(sampled))
        side = sampled.description["size_px"]
        real = _real(asked, protocol, network, (), None, size or (side if isinstance(side, int) else _SIZE_PX))
        sets = [Compared("samples", sampled), *_bounds(weights, real)]
    else:
        prior = load_prior(asked.prior, asked.device)
        weights = load_weights(asked.weights, asked.device)
        prior.check_stage1(weights)
        names = prior.tokens.class_names
        chosen, only = _classes(asked, names)
        sharpening = sharpening_of(prior, **asked.sharpening)
        size, count = weights.recipe.model.image_size, protocol.samples
        real = _real(asked, protocol, network, names if only is None else only, only, size)
        counts = class_counts(chosen, count, names, real.images if protocol.labels == "data" else None)
        samples = Samples(prior, counts, seed=asked.seed, sharpening=sharpening)
        sets = [Compared("samples", sampled_set("samples", weights, samples)), *_bounds(weights, real)]
        for yaw in asked.yaws:
            turned = None
            if asked.data in (None, TOYSCENES):  # scenes that are drawn, from any camera
                turned = toy_set(f"held-out images, yaw {yaw:g}", count, **_toys(asked, only, size), yaw_deg=yaw)
            images = sampled_set(f"samples, yaw {yaw:g}", weights, samples, yaw_deg=yaw)
            sets.append(Compared(f"yaw {yaw:g}", images, turned))
        if asked.tokens is not None:
            tokens = prior_bits(prior, TokenStore(asked.tokens))
        if asked.classes is None and only is not None:
            _log.warning(
                "only the %d classes of toy scenes, of %d: --data with shards for others", len(only), len(names)
            )
    _warn(protocol, real, sets)
    samples_set = sets[0].images
    shown = {samples_set.class_names[i] for i in samples_set.class_index.unique().tolist() if i >= 0}
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
        real_moments=real.moments,
        statistics=asked.statistics,
        part=asked.part,
        seed=asked.seed,
        counting=counting,
    )
    conditions = {**result.conditions, "seconds": time.perf_counter() - began, "device": asked.device.type}
    rows = generation.table(result, network)
    if tokens is not None:
        rows += [[], ["bits per code, held out", tokens["bits"]]]
        rows += [["class-conditional unigram", tokens["unigram_bits"]], ["share", tokens["share"]]]
    return Evaluation(
        protocol.name,
        len(samples_set),
        {**result.figures, "tokens": tokens, "conditions": conditions},
        rows,
        title="Generation",
        subtitle=f"{protocol.name}: {len(samples_set)} samples, seed {asked.seed}",
        texts=[_FIGURES_TEXT],
        charts=generation.charts(result, network),
        sheet=generation.sample_sheet(result.sets["samples"]),
        sheet_text="The first samples of each class.",
        seed=asked.seed,
        weights=weights,
    )


def _classes(asked: Asked, names: Sequence[str]) -> tuple[list[int], list[str] | None]:
    """The classes to sample, and their names where they are not all: of toy scenes those that there are of them."""
    toys = [i for i, name in enumerate(names) if name in CLASS_NAMES]
    if asked.classes is None and asked.data in (None, TOYSCENES) and 0 < len(toys) < len(names):
        return toys, [names[i] for i in toys]
    chosen = pick_classes(asked.classes, names)
    return chosen, None if asked.classes is None or not names else [names[i] for i in chosen]


def _given(asked: Asked, path: Path, size_px: int | None) -> ImageSet:
    names: Sequence[str] = ()
    if asked.data == TOYSCENES:
        names = CLASS_NAMES
    elif asked.data is not None and (Path(asked.data) / MANIFEST_NAME).is_file():
        names = ShardFolder(Path(asked.data)).class_names
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _check_count(npz_set("samples", path, class_names=names), 4)
    return _check_count(folder_set("samples", path, size_px=size_px, class_names=names), 4)


def _real(
    asked: Asked,
    protocol: Protocol,
    network: FeatureNetwork,
    shown: Sequence[str],
    only: Sequence[str] | None,
    size_px: int,
) -> _Real:
    """The real images that `--data` names, those of the classes `only` where some are named; `shown` are sampled."""
    count = protocol.samples
    data = asked.data
    if data is None:
        if not shown or not set(shown) <= set(CLASS_NAMES):
            raise UsageError(
                "it is not known what real images to compare with", remedy="--data with shards, or toyscenes"
            )
        data = TOYSCENES
    path = Path(data)
    moments = generation.published_moments(path, network) if path.suffix.lower() == ".npz" and path.is_file() else None
    if protocol.name.startswith("adm") and moments is None:
        raise UsageError(
            "the protocol adm compares with the mean and covariance of ADM's own file",
            remedy="--data VIRTUAL_imagenet256_labeled.npz",
        )
    if data == TOYSCENES:
        toys = _toys(asked, only, size_px)
        images = toy_set("held-out images", count, **toys)
        others = toy_set("reconstructed images", count, **toys, first=count)
        training = toy_set("training images", count, **{**toys, "seed": 0, "purpose": "train"})
        return _Real(images, others, training)
    if (path / MANIFEST_NAME).is_file():
        folder = ShardFolder(path)
        rows = pick_rows(folder, None, seed=asked.seed, classes=only)
        wanted = len(rows) if protocol.all_real else count
        images = _check_count(shard_set("held-out images", folder, rows[:wanted], size_px=size_px), wanted)
        # Other images where there are enough: reconstructions of the same ones would be nearer by that alone.
        second = rows[wanted : wanted + count] if len(rows) >= wanted + count else rows[:count]
        return _Real(images, shard_set("reconstructed images", folder, second, size_px=size_px))
    if only is not None:
        raise UsageError(
            f"--class needs real images of these classes alone, and which they are is not known ({data})",
            remedy="--data with shards, or toyscenes",
        )
    if path.suffix.lower() == ".npz":
        images = npz_set("held-out images", path)
        return _Real(images, images if images.description["size_px"] == size_px else None, moments=moments)
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


def _bounds(weights: LoadedWeights | None, real: _Real) -> list[Compared]:
    """What samples are read beside: the reconstructions' floor, and images of the training."""
    bounds = []
    if weights is not None and real.to_reconstruct is not None:
        bounds.append(Compared("reconstructions", reconstructed_set("reconstructions", weights, real.to_reconstruct)))
    if real.training is not None:
        bounds.append(Compared("training", real.training))
    return bounds


def _warn(protocol: Protocol, real: _Real, sets: Sequence[Compared]) -> None:
    count = len(sets[0].images)
    if "," in protocol.name and protocol.network == "inception":
        _log.warning("not the protocol that others publish: %s instead of its own number", protocol.name)
    if not protocol.all_real and len(real.images) != count:
        _log.warning("%d samples against %d real images: a Frechet distance depends on both", count, len(real.images))
    if any(c.key == "reconstructions" for c in sets) and real.to_reconstruct is not None:
        own, others = real.images.description, real.to_reconstruct.description
        if own == others or ("rows_sha256" in own and own["rows_sha256"] == others.get("rows_sha256")):
            _log.warning("the floor is of reconstructions of the very images that they are compared with")
