"""Measure reconstructions of images against the images, pair by pair and as sets, and how the codes are used.

    images -> reconstructor -> reconstructions, codes -> PSNR, SSIM, LPIPS of each pair; by class; worst and best
                                                      -> distance between the two sets, codes in use

The canonical camera looks at each scene with 96 samples a ray, and colours are rounded to 8 bits: what is measured is
what a user gets, through the codes, not what the decoder could give.

Legend: N images, B images of a batch, S side in pixels, L codes of an image, K codes of the codebook.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import UnavailableError, UsageError
from vq3dcli.export.charts import Series, bar_chart, histogram, series_chart
from vq3dcli.export.page import Html, Section, paragraph
from vq3dcli.export.sheet import grid
from vq3dcli.losses.perceptual import PerceptualDistance, build_perceptual
from vq3dcli.metrics.distribution import moments
from vq3dcli.metrics.features import FeatureNetwork, FeatureNetworkName, load_feature_network
from vq3dcli.metrics.image import perceptual, psnr, ssim
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.quantizer import perplexity
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.generation import set_distances
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, open_images
from vq3dcli.pipelines.evaluation.measured_set import Tensors, in_parts
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder, versions
from vq3dcli.pipelines.sampling.record import shown_name
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.weights.third_party import LPIPS_TRUNKS, cached_path
from vq3dcli.weights_file import LoadedWeights

PROTOCOL = "reconstruction-1"
_AT_ONCE = 16
_SHOWN = 8
_SMALLEST_SSIM_PX = 11
_SMALLEST_LPIPS_PX = 32
_ENOUGH_IMAGES = 2048
_SHEET_TEXT = (
    "The worst pairs by PSNR, then the best: above the image, below its reconstruction. Numbers are places in the set."
)
_CODES_TEXT = (
    "Codes in the order of their use. A flat curve uses the whole codebook; a cliff is a codebook that collapsed."
)

_log = logging.getLogger(__name__)


Reconstructor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images uint8 `[B, 3, S, S]` to reconstructions like them and their codes int64 `[B, L]`, on the CPU; L may be 0."""


class Pair(NamedTuple):
    """An image beside its reconstruction, ordered by how near they are."""

    psnr: float
    number: int
    image: Tensor
    rgb: Tensor


@dataclass(frozen=True)
class ReconstructionResult:
    """Figures by name (`classes`: of each class, `codes`: use of the codebook) and what they depend on, JSON values.

    Beside them the PSNR of each image, float64 `[N]`, how often each code was used, int64 `[K]`, and the pairs that are
    farthest apart, the worst first, and nearest, the best first.
    """

    figures: dict[str, Any]
    conditions: dict[str, Any]
    psnr: Tensor = field(repr=False)
    code_counts: Tensor = field(repr=False)
    worst: list[Pair] = field(repr=False)
    best: list[Pair] = field(repr=False)


@exact_rendering()
def measure_reconstruction(
    data: str,
    weights: LoadedWeights,
    *,
    count: int | None,
    seed: int,
    features: FeatureNetworkName | Literal["none"] | None,
    inception: Path | None,
    lpips: Literal["alex", "vgg", "none"] | None,
    lpips_weights: Path | None,
    out: Path | None,
    counting: Counting,
    part: Part = WHOLE,
) -> Evaluation:
    """What `vq3d evaluate reconstruction` does; its options say what the arguments are, and raise its errors."""
    device = weights.device
    network = None
    name = features or ("efficientnet-lite1" if inception is None else "inception")
    if name != "none":
        try:
            network = load_feature_network(name, weights=inception, device=device)
        except UnavailableError as error:
            if features is not None or inception is not None:
                raise
            _log.warning("the distance between the sets is left out: %s", error)
    distance = _lpips(weights, lpips, lpips_weights)
    size = weights.recipe.model.image_size
    images = open_images(data, count=count, seed=seed, size_px=size)
    evaluation_folder(out, "reconstruction", "reconstruction.png")
    with counting("measuring", "images") as progress:
        result = evaluate_reconstruction(
            model_reconstructor(weights),
            images,
            codebook_size=weights.recipe.model.codebook_size,
            network=network,
            lpips=distance,
            seed=seed,
            part=part,
            statistics=None if out is None or part == WHOLE else out / "statistics",
            facts={"stage1_sha256": weights.sha256, "device": device.type},
            on_images=adding(progress, len(images)),
        )
    if network is not None and len(images) < _ENOUGH_IMAGES:
        _log.warning("a Frechet distance of %d images is biased: compare only equal counts, better 2048", len(images))
    return Evaluation(
        f"{PROTOCOL}, {size} px",
        len(images),
        {**result.figures, "conditions": {**result.conditions, "device": device.type}},
        table(result),
        title="Reconstruction",
        subtitle=f"{len(images)} {images.name} at {size} px, seed {seed}",
        charts=reconstruction_charts(result),
        sections=[Section("Codes", [paragraph(_CODES_TEXT)])] if len(result.code_counts) else [],
        sheet=pair_sheet(result),
        sheet_text=_SHEET_TEXT,
        seed=seed,
        weights=weights,
    )


def _lpips(weights: LoadedWeights, name: str | None, file: Path | None) -> PerceptualDistance | None:
    """LPIPS as asked for; unasked, where its weights are here and it is not the network of the model's own loss."""
    if name == "none":
        return None
    loss = weights.recipe.loss
    trained_with = loss.perceptual_network if loss.any_perceptual else "none"
    asked = name is not None or file is not None
    network = f"lpips-{name or ('vgg' if trained_with == 'lpips-alex' and not asked else 'alex')}"
    other = "vgg" if network == "lpips-alex" else "alex"
    if network == trained_with:
        raise UsageError(
            f"{network} is this model's perceptual loss: as a metric it would flatter the model",
            remedy=f"the network {other}",
        )
    if not asked and not cached_path(LPIPS_TRUNKS[network]).is_file():
        _log.warning(
            "LPIPS is left out: its weights are not here; --lpips %s fetches them, --lpips none is silent", network[6:]
        )
        return None
    device = weights.device
    try:
        return build_perceptual(network, file, option="--lpips-weights", without="--lpips none", device=device)
    except UnavailableError as error:
        if asked:
            raise
        _log.warning("LPIPS is left out: %s", error)
        return None


def model_reconstructor(weights: LoadedWeights) -> Reconstructor:
    """The reconstructor of trained weights, for images of their size."""
    device = weights.device

    def reconstruct(images: Tensor) -> tuple[Tensor, Tensor]:
        scene = reconstruct_scene(weights.model, images.to(device))
        camera = build_canonical_camera(weights.recipe, images.shape[-1], len(images))
        return scene.render(camera, samples=EVALUATION_SAMPLES).rgb.cpu(), scene.codes.cpu()

    return reconstruct


@exact_rendering()
@torch.inference_mode()
def evaluate_reconstruction(
    reconstruct: Reconstructor,
    images: ImageSet,
    *,
    codebook_size: int = 0,
    network: FeatureNetwork | None = None,
    lpips: PerceptualDistance | None = None,
    seed: int = 0,
    part: Part = WHOLE,
    statistics: Path | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
    on_images: Callable[[int], object] = lambda count: None,
) -> ReconstructionResult:
    """Reconstruct each image once and compare.

    Parts share a folder of `statistics`; `facts` are what these depend on of the reconstructor.
    `codebook_size` is 0 for a model without codes; without `network` there is no distance between the sets. `seed` is
    that of its subsets; `on_images` is called with the number of images just measured.

    Raises:
        UsageError: No images, or fewer than two where there are features.
        DataError: An image that cannot be read.
        OthersAtWorkError: As `in_parts`.
    """
    if len(images) < (1 if network is None else 2):
        raise UsageError(
            f"too few images to measure ({images.name}): {len(images)}", remedy="more, or --features none for one"
        )

    def look(rows: range) -> Tensors:
        start, joined = rows.start, list[Tensors]()
        for part in (part for batch in images.read(rows.start, rows.stop) for part in batch.split(_AT_ONCE)):
            rgb, codes = reconstruct(part)
            seen = {
                "psnr": psnr(rgb, part),
                "rows": torch.arange(start, start + len(part)),
                "pairs": torch.stack([part, rgb], 1),
                "counts": torch.bincount(codes.flatten(), minlength=codebook_size)[None, :codebook_size],
            }
            if min(part.shape[-2:]) >= _SMALLEST_SSIM_PX:
                seen["ssim"] = ssim(rgb, part)
            if lpips is not None and min(part.shape[-2:]) >= _SMALLEST_LPIPS_PX:
                seen[lpips.network.replace("-", "_")] = perceptual(lpips, rgb, part)
            if network is not None:
                seen |= {"real features": network(part), "own features": network(rgb)}
            joined = [_joined([*joined, seen], rows.start)]
            start += len(part)
            on_images(len(part))
        return joined[0]

    conditions = {
        "protocol": PROTOCOL,
        "images": dict(images.description),
        "rendering": f"{EVALUATION_SAMPLES} samples a ray, canonical camera, colours to 8 bits",
        "features": None if network is None else network.facts(),
        "lpips": None
        if lpips is None
        else {"network": lpips.network.removeprefix("lpips-"), "sha256": LPIPS_TRUNKS[lpips.network].sha256},
        "seed": seed,
        "threads": torch.get_num_threads(),
        "versions": versions(**({} if network is None else network.versions)),
    }
    own_facts = {**conditions, "codebook_size": codebook_size, **facts}
    joined = in_parts(images, look, _joined, part=part, folder=statistics, kind="reconstruction", facts=own_facts)[0]
    counts, real, own = joined["counts"][0], joined.get("real features"), joined.get("own features")
    numbered = zip(joined["rows"].tolist(), joined["pairs"], strict=True)
    pairs = [Pair(joined["psnr"][number].item(), number, *pair) for number, pair in numbered]
    joined = {name: joined[name] for name in ("psnr", "ssim", "lpips_alex", "lpips_vgg") if name in joined}
    worst = sorted(pairs, key=lambda pair: pair.psnr)[:_SHOWN]
    best = sorted(pairs, key=lambda pair: -pair.psnr)[:_SHOWN]
    figures: dict[str, Any] = {"images": len(images)}
    for name, value in joined.items():
        figures |= {name: value.mean().item(), f"{name}_std": value.std(correction=0).item()}
        figures[f"{name}_median"] = value.quantile(0.5).item()
    if network is not None and real is not None and own is not None:
        figures |= set_distances(network, real, own, (moments([real]), moments([own])), seed, prefix="r")
    if codebook_size:
        figures["codes"] = code_usage(counts, len(images))
    figures["classes"] = {
        shown_name(name): {"images": len(rows), **{key: value[rows].mean().item() for key, value in joined.items()}}
        for index, name in enumerate(images.class_names)
        if len(rows := (images.class_index == index).nonzero()[:, 0])
    }
    return ReconstructionResult(figures, conditions, joined["psnr"], counts, worst, best)


def _joined(parts: Iterable[Tensors], first: int = 0) -> Tensors:
    """What was seen of consecutive images from number `first` on; of the pairs those that a sheet may show."""
    parts = list(parts)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    decibels = joined["psnr"][joined["rows"] - first]
    shown = torch.cat([order.argsort(stable=True)[:_SHOWN] for order in (decibels, -decibels)]).unique()
    joined |= {name: joined[name][shown] for name in ("rows", "pairs")}
    return {**joined, "counts": joined["counts"].sum(0, keepdim=True)}


def code_usage(counts: Tensor, images: int) -> dict[str, float | int]:
    """How the codebook is used: `counts` `[K]` of each code over so many images.

    `perplexity` is the effective number of codes, at most K and at most the number of codes that were seen, so that
    few images keep it low; `bits_per_image` is what an entropy coder that knows only these counts would take.
    """
    total, used, effective = int(counts.sum()), int((counts > 0).sum()), float(perplexity(counts))
    return {
        "codebook": len(counts),
        "used": used,
        "used_share": used / len(counts),
        "perplexity": effective,
        "codes_seen": total,
        "bits_per_image": total / max(images, 1) * float(torch.tensor(effective).log2()),
    }


def table(result: ReconstructionResult) -> list[list[object]]:
    """Rows for a reader: all images, then each class."""
    figures = result.figures
    pairwise = [name for name in figures if f"{name}_median" in figures]
    rows: list[list[object]] = [["", "images", *pairwise]]
    for name, row in {"all": figures, **figures["classes"]}.items():
        rows.append([name, row["images"], *(row.get(key) for key in pairwise)])
    distances = [name for name in figures if name.startswith(("frechet_", "kernel_", "rfid", "rkid"))]
    rows += [[], ["set", ""], *([name, figures[name]] for name in distances if not name.endswith("_subsets"))]
    rows += [[f"codes, {name.replace('_', ' ')}", value] for name, value in figures.get("codes", {}).items()]
    return rows


def pair_sheet(result: ReconstructionResult) -> Tensor:
    """A contact sheet uint8 `[3, H, W]`: the worst pairs, then the best; above the image, below its reconstruction."""
    tiles: list[Tensor] = []
    labels: list[str] = []
    for pairs in (result.worst, result.best):
        tiles += [pair.image for pair in pairs] + [pair.rgb for pair in pairs]
        labels += [f"{pair.psnr:.1f} dB" for pair in pairs] + [f"no. {pair.number}" for pair in pairs]
    return grid(tiles, columns=len(result.worst), labels=labels)


def reconstruction_charts(result: ReconstructionResult) -> list[Html]:
    """Histogram of PSNR, share of each code, and PSNR by class, the lowest and highest of many."""
    charts = [histogram("images by PSNR, dB", result.psnr.tolist(), x_label="dB")]
    if len(result.code_counts):
        share = (result.code_counts.double() / result.code_counts.sum().clamp(min=1)).sort(descending=True).values
        rank = [float(number) for number in range(len(share))]
        even = [1.0 / len(share)] * len(share)
        curves = [Series("used", rank, share.tolist()), Series("all alike", rank, even, dashed=True)]
        charts.append(series_chart("share of each code", curves, x_label="rank", from_zero=True))
    by_class = sorted(((n, float(row["psnr"])) for n, row in result.figures["classes"].items()), key=lambda c: c[1])
    if by_class:
        shown = by_class if len(by_class) <= 60 else [*by_class[:30], *by_class[-30:]]
        charts.append(bar_chart("PSNR, dB, by class", shown))
    return charts
