"""What `vq3d evaluate generation` measures: from its options to sets of images, before anything expensive begins."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import InputMissingError, UsageError
from vq3dcli.metrics.distribution import Moments
from vq3dcli.metrics.features import FeatureNetwork, load_feature_network
from vq3dcli.model.draw_codes import Sharpening
from vq3dcli.pipelines.evaluation.generation import (
    Compared,
    GenerationResult,
    Progress,
    Protocol,
    check_count,
    evaluate_generation,
    protocol_of,
    published_moments,
)
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, folder_set, npz_set, pick_rows, shard_set, toy_set
from vq3dcli.pipelines.evaluation.measured_set import Judge
from vq3dcli.pipelines.evaluation.prior_bits import prior_bits
from vq3dcli.pipelines.evaluation.rendered_sets import Samples, class_counts, reconstructed_set, sampled_set
from vq3dcli.pipelines.evaluation.toy_judge import toy_judge
from vq3dcli.pipelines.sampling.record import pick_classes
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_prior, load_weights

TOYSCENES = "toyscenes"
_MAX_YAW_DEG = 60.0
_SIZE_PX = 64


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
    sharpening: Mapping[str, float] = field(default_factory=dict)
    yaws: str | None = None
    training: Path | None = None
    tokens: Path | None = None
    inception: Path | None = None
    classifier_scenes: int = 0
    statistics: Path | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)


@dataclass(frozen=True)
class Real:
    """Real images to compare with.

    Attributes:
        images: What all sets are compared with.
        to_reconstruct: Other images where there are enough, else the same; None if none fit Stage 1.
        training: Images of the training; None if none are known.
        moments: Published ones to use instead of the images' own.
        is_toy: Whether they are toy scenes that are drawn, from any camera.
    """

    images: ImageSet
    to_reconstruct: ImageSet | None
    training: ImageSet | None
    moments: Moments | None
    is_toy: bool


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        protocol: How.
        network: In whose features.
        weights: Of Stage 1; None where no scene is rendered.
        sets: Against `real`.
        real: The real images.
        tokens: Held-out bits per code, measured already; None without a token store.
        samples: What draws the samples; None where they are given.
        warnings: What a reader of the figures should know.
    """

    protocol: Protocol
    network: FeatureNetwork
    weights: LoadedWeights | None
    sets: Sequence[Compared]
    real: Real
    tokens: dict[str, Any] | None
    samples: Samples | None
    warnings: Sequence[str]
    asked: Asked

    def measure(self, progress: Progress) -> GenerationResult:
        """Measure all of it; see `evaluate_generation`."""
        began = time.perf_counter()
        judge = self._judge(progress)
        trained = time.perf_counter() - began
        result = evaluate_generation(
            self.protocol,
            self.network,
            self.real.images,
            self.sets,
            judge=judge,
            real_moments=self.real.moments,
            statistics=self.asked.statistics,
            seed=self.asked.seed,
            progress=progress,
        )
        result.conditions["seconds"] = {
            "classifier": trained,
            "sampling": 0.0 if self.samples is None else self.samples.seconds,
            "distances": result.conditions.pop("seconds_of_distances"),
            "all": time.perf_counter() - began,
        }
        result.conditions["device"] = self.asked.device.type
        return result

    def _judge(self, progress: Progress) -> Judge | None:
        """A classifier, where the images are of toy scenes and the samples have classes."""
        samples = self.sets[0].images
        shown = {samples.class_names[i] for i in samples.class_index.unique().tolist() if i >= 0}
        if not self.asked.classifier_scenes or not shown or not shown <= set(CLASS_NAMES):
            return None
        return toy_judge(
            int(self.real.images.description["size_px"]),
            scenes=self.asked.classifier_scenes,
            statistics=self.asked.statistics,
            progress=progress,
        )


def plan_generation(asked: Asked) -> Plan:
    """Open everything that is asked for and find out what does not fit together.

    Raises:
        UsageError: Options that contradict each other, or too few images.
        UnavailableError: Weights or a package are missing.
        InputMissingError, DataError, UnsafeFileError: A file is missing, damaged, or another one.
    """
    protocol = protocol_of(asked.protocol, asked.count)
    if asked.samples is not None:
        _check_given(asked)
    yaws = _yaws(asked.yaws)
    network = load_feature_network(protocol.network, weights=asked.inception, device=asked.device)
    if asked.samples is not None:
        return _plan_given(asked, asked.samples, protocol, network)
    prior = load_prior(asked.prior, asked.device)
    weights = load_weights(asked.weights, asked.device)
    prior.check_stage1(weights)
    names = prior.tokens.class_names
    chosen, only = _classes(asked, names)
    sharpening = Sharpening(**{**prior.recipe.sampling.model_dump(), **asked.sharpening})
    size = weights.recipe.model.image_size
    real = _real(asked, protocol, network, class_names=names, only=only, size_px=size, count=protocol.samples)
    counts = class_counts(chosen, protocol.samples, names, real.images if protocol.labels == "data" else None)
    samples = Samples(prior, counts, seed=asked.seed, sharpening=sharpening)
    sets = [Compared("samples", sampled_set("samples", weights, samples)), *_bounds(weights, real)]
    for yaw in yaws:
        turned = None
        if real.is_toy:
            turned = _toys(f"held-out images, yaw {yaw:g}", asked, protocol.samples, size, only, yaw_deg=yaw)
        images = sampled_set(f"samples, yaw {yaw:g}", weights, samples, yaw_deg=yaw)
        sets.append(Compared(f"yaw {yaw:g}", images, turned))
    tokens = _tokens(asked, prior)
    warnings = _warnings(protocol, sets, real)
    if asked.classes is None and only is not None:
        warnings.append(f"only the {len(only)} classes of toy scenes, of {len(names)}: --data with shards for others")
    return Plan(protocol, network, weights, sets, real, tokens, samples, warnings, asked)


def _classes(asked: Asked, names: Sequence[str]) -> tuple[list[int], list[str] | None]:
    """The classes to sample, and their names where they are not all: of toy scenes those that there are of them."""
    toys = [i for i, name in enumerate(names) if name in CLASS_NAMES]
    if asked.classes is None and asked.data in (None, TOYSCENES) and 0 < len(toys) < len(names):
        return toys, [names[i] for i in toys]
    chosen = pick_classes(asked.classes, names)
    return chosen, None if asked.classes is None or not names else [names[i] for i in chosen]


def _check_given(asked: Asked) -> None:
    """Raise `UsageError` for options that say how to sample, where the samples are there already."""
    said = {
        "--count": asked.count,
        "--class": asked.classes,
        "--prior": asked.prior,
        "--yaws": asked.yaws,
        "--tokens": asked.tokens,
        "--temperature, --top-k, --top-p or --guidance": asked.sharpening or None,
    }
    for name, value in said.items():
        if value is not None:
            raise UsageError(f"{name} says how to sample, and --samples has the samples", remedy="one of the two")


def _plan_given(asked: Asked, path: Path, protocol: Protocol, network: FeatureNetwork) -> Plan:
    """A plan for samples in a folder or a file."""
    weights = None if asked.weights is None else load_weights(asked.weights, asked.device)
    size = None if weights is None else weights.recipe.model.image_size
    names: Sequence[str] = ()
    if asked.data == TOYSCENES:
        names = CLASS_NAMES
    elif asked.data is not None and (Path(asked.data) / MANIFEST_NAME).is_file():
        names = ShardFolder(Path(asked.data)).class_names
    if path.suffix.lower() == ".npz" and not path.is_dir():
        given = npz_set("samples", path, class_names=names)
    else:
        given = folder_set("samples", path, size_px=size, class_names=names)
    check_count(given, 4)
    protocol = protocol_of(asked.protocol, len(given))
    side = given.description["size_px"]
    size = size or (side if isinstance(side, int) else _SIZE_PX)
    real = _real(asked, protocol, network, class_names=(), only=None, size_px=size, count=len(given))
    sets = [Compared("samples", given), *_bounds(weights, real)]
    return Plan(protocol, network, weights, sets, real, None, None, _warnings(protocol, sets, real), asked)


def _real(
    asked: Asked,
    protocol: Protocol,
    network: FeatureNetwork,
    *,
    class_names: Sequence[str],
    only: Sequence[str] | None,
    size_px: int,
    count: int,
) -> Real:
    """The real images that `--data` names, at a side of `size_px`, those of the classes `only` where some are named."""
    data = asked.data
    if data is None:
        shown = class_names if only is None else only
        if not shown or not set(shown) <= set(CLASS_NAMES):
            raise UsageError(
                "it is not known what real images to compare with", remedy="--data with shards, or toyscenes"
            )
        data = TOYSCENES
    training = None if asked.training is None else _training(asked.training, count, size_px, only, asked.seed)
    path = Path(data)
    moments = published_moments(path, network) if path.suffix.lower() == ".npz" and path.is_file() else None
    if protocol.name.startswith("adm") and moments is None:
        raise UsageError(
            "the protocol adm compares with the mean and covariance of ADM's own file",
            remedy="--data VIRTUAL_imagenet256_labeled.npz",
        )
    if data == TOYSCENES:
        images = _toys("held-out images", asked, count, size_px, only)
        others = _toys("reconstructed images", asked, count, size_px, only, first=count)
        if training is None:
            training = toy_set(
                "training images", count, seed=0, purpose="train", size_px=size_px, classes=_toy_classes(only)
            )
        return Real(images, others, training, None, True)
    if (path / MANIFEST_NAME).is_file():
        folder = ShardFolder(path)
        rows = pick_rows(folder, None, seed=asked.seed, classes=only)
        wanted = len(rows) if protocol.all_real else count
        images = shard_set("held-out images", folder, rows[:wanted], size_px=size_px)
        check_count(images, wanted)
        # Other images where there are enough: reconstructions of the same ones would be nearer by that alone.
        second = rows[wanted : wanted + count] if len(rows) >= wanted + count else rows[:count]
        others = shard_set("reconstructed images", folder, second, size_px=size_px)
        return Real(images, others, training, None, False)
    if only is not None:
        raise UsageError(
            f"--class needs real images of these classes alone, and which they are is not known ({data})",
            remedy="--data with shards, or toyscenes",
        )
    if path.suffix.lower() == ".npz":
        images = npz_set("held-out images", path)
        fits = images.description["size_px"] == size_px
        return Real(images, images if fits else None, training, moments, False)
    if not path.is_dir():
        raise InputMissingError(f"no such data ({data})", remedy=f"{TOYSCENES}, shards, a folder of images, or an .npz")
    images = folder_set("held-out images", path, size_px=size_px)
    return Real(images, images, training, None, False)


def _toys(
    name: str,
    asked: Asked,
    count: int,
    size_px: int,
    only: Sequence[str] | None,
    *,
    first: int = 0,
    yaw_deg: float = 0.0,
) -> ImageSet:
    return toy_set(
        name,
        count,
        seed=asked.seed,
        purpose="eval",
        size_px=size_px,
        first=first,
        classes=_toy_classes(only),
        yaw_deg=yaw_deg,
    )


def _toy_classes(only: Sequence[str] | None) -> list[int] | None:
    if only is None or set(only) == set(CLASS_NAMES):
        return None
    unknown = [name for name in only if name not in CLASS_NAMES]
    if unknown:
        raise UsageError(f"no toy scene is of the class {unknown[0]!r}", remedy="--data with shards of that class")
    return [CLASS_NAMES.index(name) for name in only]


def _training(path: Path, count: int, size_px: int, only: Sequence[str] | None, seed: int) -> ImageSet:
    folder = ShardFolder(path)
    images = shard_set("training images", folder, pick_rows(folder, count, seed=seed, classes=only), size_px=size_px)
    check_count(images, count)
    return images


def _bounds(weights: LoadedWeights | None, real: Real) -> list[Compared]:
    """What samples are read beside: the reconstructions' floor, and images of the training."""
    found = []
    if weights is not None and real.to_reconstruct is not None:
        found.append(Compared("reconstructions", reconstructed_set("reconstructions", weights, real.to_reconstruct)))
    if real.training is not None:
        found.append(Compared("training", real.training))
    return found


def _tokens(asked: Asked, prior: LoadedPrior) -> dict[str, Any] | None:
    if asked.tokens is None:
        return None
    began = time.perf_counter()
    return {**prior_bits(prior, TokenStore(asked.tokens)), "seconds": time.perf_counter() - began}


def _yaws(text: str | None) -> list[float]:
    """Angles in degrees from text. Raises `UsageError`."""
    try:
        found = [] if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--yaws {text}: not numbers with commas between", remedy="--yaws -20,20") from error
    for yaw in found:
        if not (math.isfinite(yaw) and abs(yaw) <= _MAX_YAW_DEG):
            raise UsageError(f"--yaws {yaw:g}: out of range", remedy=f"at most {_MAX_YAW_DEG:g} degrees")
    return found


def _warnings(protocol: Protocol, sets: Sequence[Compared], real: Real) -> list[str]:
    """What keeps figures from comparing with others."""
    found = []
    if "," in protocol.name and protocol.network == "inception":
        found.append(f"not the protocol that others publish: {protocol.name} instead of its own number")
    count = len(sets[0].images)
    if not protocol.all_real and len(real.images) != count:
        found.append(f"{count} samples against {len(real.images)} real images: a Frechet distance depends on both")
    if any(c.key == "reconstructions" for c in sets) and real.to_reconstruct is not None:
        same = real.to_reconstruct.description == real.images.description
        rows = real.to_reconstruct.description.get("rows_sha256")
        if same or (rows is not None and rows == real.images.description.get("rows_sha256")):
            found.append("the floor is of reconstructions of the very images that they are compared with")
    return found
