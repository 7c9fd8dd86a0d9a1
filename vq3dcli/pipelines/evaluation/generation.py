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

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vq3dcli.data.arrays import read_npz
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import DataError, UsageError
from vq3dcli.export.charts import bar_chart
from vq3dcli.export.page import Html
from vq3dcli.export.sheet import grid
from vq3dcli.metrics.distribution import Moments, frechet_distance, inception_score, kernel_distance, precision_recall
from vq3dcli.metrics.features import FeatureNetwork, FeatureNetworkName, distance_name
from vq3dcli.pipelines.evaluation.image_sets import ImageSet
from vq3dcli.pipelines.evaluation.measured_set import Classifier, MeasuredSet, OthersAtWorkError, measure_set
from vq3dcli.pipelines.evaluation.page import versions
from vq3dcli.pipelines.sampling.record import shown_name
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.rendering.render import exact_rendering


@dataclass(frozen=True)
class Protocol:
    """A named way to measure: whose features, how many samples, and a definition in one line.

    `labels` is `even` for as many samples of each class as can be, `data` for the proportions of the real images;
    `all_real` says whether all real images count, or as many as there are samples.
    """

    name: str
    network: FeatureNetworkName
    samples: int
    labels: str
    all_real: bool
    definition: str


_OFFLINE = "as many samples as real images, in the features of EfficientNet-Lite1, which a loss never sees"
_ADM = "50,000 samples against the mean, covariance and images of ADM's file (Dhariwal and Nichol, 2021)"
_FULL = "50,000 samples with the data's classes against all real images (EG3D, Chan et al., 2022; 3DGP, 2023)"
PROTOCOLS = {
    "offline-1": Protocol("offline-1", "efficientnet-lite1", 2048, "even", False, _OFFLINE),
    "adm": Protocol("adm", "inception", 50_000, "even", True, _ADM),
    "fid50k_full": Protocol("fid50k_full", "inception", 50_000, "data", True, _FULL),
}


class Compared(NamedTuple):
    """A set to measure, the key of its figures, and the real images to compare it with where it has its own."""

    key: str
    images: ImageSet
    real: ImageSet | None = None


@dataclass(frozen=True)
class GenerationResult:
    """Figures by the key of a set and their name, what they depend on, and the measured sets, "real" among them."""

    figures: dict[str, dict[str, Any]]
    conditions: dict[str, Any]
    sets: dict[str, MeasuredSet] = field(repr=False)


@exact_rendering()
def evaluate_generation(
    protocol: Protocol,
    network: FeatureNetwork,
    real: ImageSet,
    sets: Sequence[Compared],
    *,
    classifier: Classifier | None = None,
    real_moments: Moments | None = None,
    statistics: Path | None = None,
    part: Part = WHOLE,
    seed: int = 0,
    counting: Counting,
) -> GenerationResult:
    """Measure sets of images against real ones; parts share the folder of `statistics`.

    Args:
        real: Real images, the same for all sets that name no others.
        sets: What to measure; "samples" gets an Inception score where the network is Inception.
        real_moments: Published moments to use instead of those of `real`.

    Raises:
        UsageError: A set has too few images.
        DataError: Images or features that cannot be used.
        OthersAtWorkError: As `in_parts`.
    """
    measured: dict[str, MeasuredSet] = {}
    wanted = {"real": real}
    for compared in sets:
        wanted[compared.key] = compared.images
        if compared.real is not None:
            wanted[f"real, {compared.key}"] = compared.real
    for _ in range(2):  # once more: other parts may have ended while this one was at its last set
        for key, images in wanted.items():
            if key not in measured:
                with suppress(OthersAtWorkError), counting(f"measuring {images.name}", "images") as count:
                    on_images = adding(count, len(images))
                    measured[key] = measure_set(
                        images, network, classifier, statistics=statistics, part=part, on_images=on_images
                    )
    if len(measured) < len(wanted):
        raise OthersAtWorkError
    base = measured["real"]
    figures: dict[str, dict[str, Any]] = {}
    if classifier is not None:
        figures["real"] = {"images": len(real), "recognised": recognised(base, classifier)}
    for compared in sets:
        own = measured[compared.key]
        against = measured["real" if compared.real is None else f"real, {compared.key}"]
        moments = real_moments if compared.real is None and real_moments is not None else against.moments
        row: dict[str, Any] = {"images": len(compared.images)}
        row |= set_distances(network, against.features, own.features, (moments, own.moments), seed)
        row |= precision_recall(against.features, own.features)._asdict()
        if compared.key == "samples" and network.logits is not None:
            score = inception_score(network.logits(own.features), seed=seed)
            row |= {"inception_score": score.mean, "inception_score_std": score.std}
        if classifier is not None:
            row["recognised"] = recognised(own, classifier)
        figures[compared.key] = row
    conditions = {
        "protocol": {"name": protocol.name, "definition": protocol.definition, "labels": protocol.labels},
        "features": {**network.facts(), "dimensions": network.dimensions},
        "classifier": None if classifier is None else dict(classifier.description),
        "real_moments": "published" if real_moments is not None else "measured",
        "seed": seed,
        "sets": {
            key: {
                "name": one.images.name,
                "count": len(one.images),
                "features_kept": len(one.features),
                "images": dict(one.images.description),
                "from_statistics": one.kept,
            }
            for key, one in measured.items()
        },
        "threads": torch.get_num_threads(),
        "versions": versions(**network.versions),
    }
    return GenerationResult(figures, conditions, measured)


def set_distances(
    network: FeatureNetwork, real: Tensor, own: Tensor, moments: tuple[Moments, Moments], seed: int, prefix: str = ""
) -> dict[str, Any]:
    """Frechet and kernel distance of features `[N, D]` and of their moments, by name; FID and KID get a prefix."""
    names = (distance_name(network, "frechet"), distance_name(network, "kernel"))
    frechet, key = (f"{prefix}{name}" if name in ("fid", "kid") else name for name in names)
    kernel = kernel_distance(real, own, seed=seed)
    return {
        frechet: frechet_distance(*moments),
        key: kernel.mean,
        f"{key}_std": kernel.std,
        f"{key}_subsets": [kernel.subsets, kernel.subset_size],
    }


def recognised(measured: MeasuredSet, classifier: Classifier) -> dict[str, float | None]:
    """Part of the images that are seen in their class: "all" of those with a class that is known, then by class."""
    names, known = measured.images.class_names, classifier.class_names
    number = torch.tensor([known.index(name) if name in known else -1 for name in names] or [-1])
    class_index = measured.images.class_index
    wanted = torch.where(class_index < 0, -1, number[class_index.clamp(min=0)])
    right = (measured.seen_class == wanted).double()
    shares: dict[str, float | None] = {"all": right[wanted >= 0].mean().item() if (wanted >= 0).any() else None}
    for index, name in enumerate(known):
        if (wanted == index).any():
            shares[name] = right[wanted == index].mean().item()
    return shares


def published_moments(data: str | None, network: FeatureNetwork) -> Moments | None:
    """Mean and covariance in a file of ADM's (`mu`, `sigma`), where the network is Inception; None without them.

    Raises `DataError`: its arrays do not fit.
    """
    path = Path(data or "")
    arrays = read_npz(path, ["mu", "sigma"]) if path.suffix.lower() == ".npz" and path.is_file() else {}
    if len(arrays) < 2 or network.logits is None:
        return None
    mean, covariance = (torch.from_numpy(np.array(arrays[name], np.float64)) for name in ("mu", "sigma"))
    size = network.dimensions
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise DataError(
            f"not Inception's statistics ({path}): mu is {list(mean.shape)}, sigma {list(covariance.shape)}",
            remedy="the file that ADM publishes",
        )
    return Moments(0, mean, covariance)


def protocol_of(name: str, samples: int | None) -> Protocol:
    """A named protocol; with another number of samples it is named after it, since it no longer compares.

    Raises `UsageError`: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol is called {name!r}", remedy=f"--protocol {'|'.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if samples is None or samples == protocol.samples:
        return protocol
    return replace(protocol, name=f"{name}, {samples} samples", samples=samples)


def table(result: GenerationResult, network: FeatureNetwork) -> list[list[object]]:
    """Rows for a reader: a set each, the heading first; then the classes, where a classifier looked at them."""
    columns = _columns(network)
    names = {key: measured.images.name for key, measured in result.sets.items()}
    rows: list[list[object]] = [["", "images", *columns, "recognised"]]
    for key, row in result.figures.items():
        seen = row.get("recognised", {}).get("all")
        rows.append([names[key], row["images"], *(row.get(column) for column in columns), seen])
    by_set = {key: row["recognised"] for key, row in result.figures.items() if "recognised" in row}
    classes = list(dict.fromkeys(name for shares in by_set.values() for name in shares if name != "all"))
    if classes:
        rows += [[], ["recognised", *(names[key] for key in by_set)]]
        rows += [[shown_name(name), *(shares.get(name) for shares in by_set.values())] for name in classes]
    return rows


def _columns(network: FeatureNetwork) -> tuple[str, ...]:
    return distance_name(network, "frechet"), distance_name(network, "kernel"), "precision", "recall"


def charts(result: GenerationResult, network: FeatureNetwork) -> list[Html]:
    """Bars of each figure by set, and of the samples' classes where a classifier looked at them."""
    bars = []
    for figure in _columns(network):
        rows = [(key, row[figure]) for key, row in result.figures.items() if figure in row]
        bars.append(bar_chart(figure, [(result.sets[key].images.name, float(value)) for key, value in rows]))
    shares = result.figures["samples"].get("recognised")
    if shares is not None:
        by_class = [(shown_name(name), part) for name, part in shares.items() if name != "all"]
        bars.append(bar_chart("part of the samples that is recognised", by_class))
    return bars


def sample_sheet(measured: MeasuredSet) -> Tensor:
    """A contact sheet uint8 `[3, H, W]` of the first pictures of each class, named above the first of them."""
    names = {-1: "", **dict(enumerate(map(shown_name, measured.images.class_names)))}
    order = measured.picture_class.argsort(stable=True)
    classes = measured.picture_class[order].tolist()
    labels = [names[c] if i == 0 or classes[i - 1] != c else "" for i, c in enumerate(classes)]
    return grid(measured.pictures[order], columns=8, labels=labels if any(labels) else None)
