"""Measure samples against real images: distances between sets, precision and recall, and whether a class is recognised.

    samples              -+
    novel views           +-> measured sets -> figures of each against the real images
    reconstructions       |                    (Stage 1's are the floor that no prior gets below)
    images of training   -+

The definitions are those of the named protocols below. FID, KID and the Inception score are Inception's alone; in other
features the distances have names of their own, since their values do not compare.

Legend: N images, D features.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.data.arrays import read_npz
from vq3dcli.errors import DataError, UsageError
from vq3dcli.export.sheet import grid
from vq3dcli.metrics.distribution import Moments, frechet_distance, kernel_distance
from vq3dcli.metrics.features import FeatureNetwork, FeatureNetworkName, InceptionFeatures, distance_name
from vq3dcli.metrics.inception_score import inception_score
from vq3dcli.metrics.manifold import precision_recall
from vq3dcli.pipelines.evaluation.image_sets import ImageSet
from vq3dcli.pipelines.evaluation.measured_set import Judge, MeasuredSet, measure_set
from vq3dcli.pipelines.sampling.record import shown_name

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress of a part: called with its name and its number of images, yields what counts them."""


@dataclass(frozen=True)
class Protocol:
    """A named way to measure.

    Attributes:
        name: As `--protocol` says it.
        network: Whose features.
        samples: How many samples.
        labels: `even` for as many samples of each class as can be, `data` for the proportions of the real images.
        all_real: Whether all real images count, or as many as there are samples.
        definition: In one line.
    """

    name: str
    network: FeatureNetworkName
    samples: int
    labels: str
    all_real: bool
    definition: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "offline-1",
            "efficientnet-lite1",
            2048,
            "even",
            False,
            "as many samples as real images, in the features of EfficientNet-Lite1, which a loss never sees",
        ),
        Protocol(
            "adm",
            "inception",
            50_000,
            "even",
            True,
            "50,000 samples against the mean, covariance and images of ADM's file (Dhariwal and Nichol, 2021)",
        ),
        Protocol(
            "fid50k_full",
            "inception",
            50_000,
            "data",
            True,
            "50,000 samples with the data's classes against all real images (EG3D, Chan et al., 2022; 3DGP, 2023)",
        ),
    )
}
DEFAULT_PROTOCOL = "offline-1"


@dataclass(frozen=True)
class Compared:
    """A set to measure, and against what.

    Attributes:
        key: Of its figures in the report.
        images: The set.
        real: The real images to compare it with; None for those that all sets are compared with.
    """

    key: str
    images: ImageSet
    real: ImageSet | None = None


@dataclass(frozen=True)
class GenerationResult:
    """What was measured.

    Attributes:
        figures: By the key of a set, then by figure.
        conditions: Protocol, counts, hashes, resize and quantisation, versions, and the seconds of each part.
        sets: What was measured, by key; the real images under "real".
    """

    figures: dict[str, dict[str, Any]]
    conditions: dict[str, Any]
    sets: dict[str, MeasuredSet] = field(repr=False)


def evaluate_generation(
    protocol: Protocol,
    network: FeatureNetwork,
    real: ImageSet,
    sets: Sequence[Compared],
    *,
    judge: Judge | None = None,
    real_moments: Moments | None = None,
    statistics: Path | None = None,
    seed: int = 0,
    progress: Progress,
) -> GenerationResult:
    """Measure sets of images against real ones.

    Args:
        protocol: For its name and definition.
        network: Its features.
        real: Real images, the same for all sets that name no others.
        sets: What to measure; "samples" gets an Inception score where the network is Inception.
        judge: Says which class an image shows; None for none.
        real_moments: Published moments to use instead of those of `real`.
        statistics: Folder where what is measured is kept; None keeps nothing.
        seed: Of subsets.
        progress: Shows the progress of each part.

    Raises:
        UsageError: A set has too few images.
        DataError: Images or features that cannot be used.
    """
    measured: dict[str, MeasuredSet] = {}

    def measure(key: str, images: ImageSet) -> MeasuredSet:
        if key not in measured:
            with progress(f"measuring {images.name}", len(images)) as advance:
                measured[key] = measure_set(images, network, judge, statistics=statistics, on_images=advance)
        return measured[key]

    base = measure("real", real)
    moments = real_moments or base.moments
    figures: dict[str, dict[str, Any]] = {}
    seconds_of_distances = 0.0
    if judge is not None:
        figures["real"] = {"images": len(real), "recognised": recognised(base, judge)}
    for compared in sets:
        own = measure(compared.key, compared.images)
        against = base if compared.real is None else measure(f"real, {compared.key}", compared.real)
        began = time.perf_counter()
        figures[compared.key] = {
            "images": len(compared.images),
            **compare(network, against, own, moments if compared.real is None else against.moments, seed=seed),
        }
        if compared.key == "samples" and isinstance(network, InceptionFeatures):
            score = inception_score(network.class_logits(own.features), seed=seed)
            figures[compared.key] |= {"inception_score": score.mean, "inception_score_std": score.std}
        if judge is not None:
            figures[compared.key]["recognised"] = recognised(own, judge)
        seconds_of_distances += time.perf_counter() - began
    conditions = {
        "protocol": {"name": protocol.name, "definition": protocol.definition, "labels": protocol.labels},
        "features": {
            "network": network.name,
            "sha256": network.weights_sha256,
            "dimensions": network.dimensions,
            "resize": network.resize,
        },
        "classifier": None if judge is None else dict(judge.description),
        "real_moments": "published" if real_moments is not None else "measured",
        "seed": seed,
        "sets": {key: _told(found) for key, found in measured.items()},
        "seconds_of_distances": seconds_of_distances,
        "threads": torch.get_num_threads(),
        "versions": versions(network),
    }
    return GenerationResult(figures, conditions, measured)


def compare(
    network: FeatureNetwork, real: MeasuredSet, own: MeasuredSet, real_moments: Moments, *, seed: int
) -> dict[str, Any]:
    """Figures of one set against the real images, by name; precision and recall where there are enough images."""
    kernel = kernel_distance(real.features, own.features, seed=seed)
    key = distance_name(network, "kernel")
    reach = precision_recall(real.features, own.features)
    return {
        distance_name(network, "frechet"): frechet_distance(real_moments, own.moments),
        key: kernel.mean,
        f"{key}_std": kernel.std,
        f"{key}_subsets": [kernel.subsets, kernel.subset_size],
        "precision": reach.precision,
        "recall": reach.recall,
        "neighbours": reach.neighbours,
    }


def recognised(found: MeasuredSet, judge: Judge) -> dict[str, float | None]:
    """Part of the images that the judge sees in their class: "all" of those with a class it knows, then by class."""
    names = found.images.class_names
    number = torch.tensor([judge.class_names.index(n) if n in judge.class_names else -1 for n in names] or [-1])
    class_index = found.images.class_index
    wanted = torch.where(class_index < 0, -1, number[class_index.clamp(min=0)])
    right = (found.seen_class == wanted).double()
    told: dict[str, float | None] = {"all": _mean(right[wanted >= 0])}
    for index, name in enumerate(judge.class_names):
        if (wanted == index).any():
            told[name] = _mean(right[wanted == index])
    return told


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


def published_moments(path: Path, network: FeatureNetwork) -> Moments | None:
    """Mean and covariance in a file of ADM's (`mu`, `sigma`), where the network is Inception; None without them.

    Raises:
        InputMissingError, DataError: There is no such file, or its arrays do not fit.
    """
    arrays = read_npz(path, ["mu", "sigma"])
    if len(arrays) < 2 or not isinstance(network, InceptionFeatures):
        return None
    mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    size = network.dimensions
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise DataError(
            f"not Inception's statistics ({path}): mu is {list(mean.shape)}, sigma {list(covariance.shape)}",
            remedy="the file that ADM publishes",
        )
    return Moments(0, mean, covariance)


def protocol_of(name: str, samples: int | None) -> Protocol:
    """A named protocol; with another number of samples it is named after it, since it no longer compares.

    Raises:
        UsageError: There is no such protocol.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol is called {name!r}", remedy=f"--protocol {'|'.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if samples is None or samples == protocol.samples:
        return protocol
    return replace(protocol, name=f"{name}, {samples} samples", samples=samples)


def table(result: GenerationResult, network: FeatureNetwork) -> list[list[object]]:
    """Rows for a reader: a set each, the heading first; then the classes, where a judge looked at them."""
    frechet, kernel = distance_name(network, "frechet"), distance_name(network, "kernel")
    rows: list[list[object]] = [["", "images", frechet, kernel, "precision", "recall", "recognised"]]
    for key, found in result.figures.items():
        seen = found.get("recognised", {}).get("all")
        name = result.sets[key].images.name
        rows.append([name, found["images"], *(found.get(k) for k in (frechet, kernel, "precision", "recall")), seen])
    judged = {key: found["recognised"] for key, found in result.figures.items() if "recognised" in found}
    classes = list(dict.fromkeys(name for found in judged.values() for name in found if name != "all"))
    if classes:
        rows += [[], ["recognised", *(result.sets[key].images.name for key in judged)]]
        rows += [[shown_name(name), *(found.get(name) for found in judged.values())] for name in classes]
    return rows


def sample_sheet(found: MeasuredSet) -> Tensor:
    """A contact sheet uint8 `[3, H, W]` of the first pictures of each class, named above the first of them."""
    names = {-1: "", **dict(enumerate(map(shown_name, found.images.class_names)))}
    order = found.picture_class.argsort(stable=True)
    classes = found.picture_class[order].tolist()
    labels = [names[c] if i == 0 or classes[i - 1] != c else "" for i, c in enumerate(classes)]
    return grid(found.pictures[order], columns=8, labels=labels if any(labels) else None)


def versions(network: FeatureNetwork | None) -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {
        "vq3d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if isinstance(network, InceptionFeatures):
        from importlib.metadata import version

        found["torch-fidelity"] = version("torch-fidelity")
    return found


def _told(found: MeasuredSet) -> dict[str, Any]:
    return {
        "name": found.images.name,
        "count": len(found.images),
        "features_kept": len(found.features),
        "images": dict(found.images.description),
        "seconds": dict(found.seconds),
        "from_statistics": found.kept,
    }


def check_count(images: ImageSet, wanted: int) -> None:
    """Raise `UsageError` where a set has fewer images than are wanted."""
    if len(images) < wanted:
        raise UsageError(
            f"too few images ({images.name}): {len(images)}, and {wanted} are wanted",
            remedy=f"-n {max(len(images), 2)}",
        )
