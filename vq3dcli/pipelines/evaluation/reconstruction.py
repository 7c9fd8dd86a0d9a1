"""Measure reconstructions of images against the images, pair by pair and as sets, and how the codes are used.

    images -> reconstructor -> reconstructions, codes -> PSNR, SSIM, LPIPS of each pair; by class; worst and best
                                                      -> distance between the two sets, codes in use

The canonical camera looks at each scene with 96 samples a ray, and colours are rounded to 8 bits: what is measured is
what a user gets, through the codes, not what the decoder could give.

Legend: N images, B images of a batch, S side in pixels, L codes of an image, K codes of the codebook.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import UsageError
from vq3dcli.export.sheet import grid
from vq3dcli.metrics.distribution import frechet_distance, kernel_distance, moments
from vq3dcli.metrics.features import FeatureNetwork, distance_name
from vq3dcli.metrics.image import psnr, ssim
from vq3dcli.metrics.perceptual import Lpips
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.quantizer import perplexity
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.data import classes_of
from vq3dcli.pipelines.evaluation.generation import versions
from vq3dcli.pipelines.evaluation.geometry import EVALUATION_SAMPLES
from vq3dcli.pipelines.evaluation.image_sets import ImageSet
from vq3dcli.pipelines.sampling.record import shown_name
from vq3dcli.weights_file import LoadedWeights

PROTOCOL = "reconstruction-1"
_AT_ONCE = 16
_SHOWN = 8
_SMALLEST_SSIM_PX = 11
_SMALLEST_LPIPS_PX = 32


class Reconstruction(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        rgb: uint8 `[B, 3, S, S]` on the CPU.
        codes: int64 `[B, L]` on the CPU; L is 0 for a model without codes.
    """

    rgb: Tensor
    codes: Tensor


Reconstructor = Callable[[Tensor], Reconstruction]
"""Images uint8 `[B, 3, S, S]` to their reconstructions."""


class Pair(NamedTuple):
    """An image beside its reconstruction, ordered by how near they are."""

    psnr: float
    number: int
    image: Tensor
    rgb: Tensor


@dataclass(frozen=True)
class ReconstructionResult:
    """What was measured.

    Attributes:
        figures: By name, JSON values; `classes` has those of each class, `codes` the use of the codebook.
        conditions: What the figures depend on, JSON values.
        psnr: Of each image, float64 `[N]`.
        code_counts: How often each code was used, int64 `[K]`.
        worst: The pairs that are farthest apart, the worst first.
        best: The nearest, the best first.
    """

    figures: dict[str, Any]
    conditions: dict[str, Any]
    psnr: Tensor = field(repr=False)
    code_counts: Tensor = field(repr=False)
    worst: list[Pair] = field(repr=False)
    best: list[Pair] = field(repr=False)


def model_reconstructor(weights: LoadedWeights) -> Reconstructor:
    """The reconstructor of trained weights, for images of their size."""
    device = next(weights.model.parameters()).device

    def reconstruct(images: Tensor) -> Reconstruction:
        scene = reconstruct_scene(weights.model, images.to(device))
        camera = build_canonical_camera(weights.recipe, images.shape[-1], len(images))
        return Reconstruction(scene.render(camera, samples=EVALUATION_SAMPLES).rgb.cpu(), scene.codes.cpu())

    return reconstruct


@torch.inference_mode()
def evaluate_reconstruction(
    reconstruct: Reconstructor,
    images: ImageSet,
    *,
    codebook_size: int = 0,
    network: FeatureNetwork | None = None,
    lpips: Lpips | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
) -> ReconstructionResult:
    """Reconstruct each image once and compare.

    Args:
        reconstruct: The model.
        images: What it is given.
        codebook_size: K; 0 for a model without codes.
        network: Features for the distance between the sets; None leaves it out.
        lpips: None leaves it out.
        seed: Of the subsets of the kernel distance.
        on_images: Called with the number of images just measured.

    Raises:
        UsageError: No images, or fewer than two where there are features.
        DataError: An image that cannot be read.
    """
    if len(images) < (1 if network is None else 2):
        raise UsageError(
            f"too few images to measure ({images.name}): {len(images)}", remedy="more, or --features none for one"
        )
    values: dict[str, list[Tensor]] = {}
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    counts = torch.zeros(codebook_size, dtype=torch.int64)
    worst: list[Pair] = []
    best: list[Pair] = []
    seconds = {"reconstructions": 0.0, "figures": 0.0}
    done = 0
    for batch in images.batches():
        for part in batch.split(_AT_ONCE):
            began = time.perf_counter()
            rgb, codes = reconstruct(part)
            seconds["reconstructions"] += time.perf_counter() - began
            began = time.perf_counter()
            found = {"psnr": psnr(rgb, part)}
            if min(part.shape[-2:]) >= _SMALLEST_SSIM_PX:
                found["ssim"] = ssim(rgb, part)
            if lpips is not None and min(part.shape[-2:]) >= _SMALLEST_LPIPS_PX:
                found[f"lpips_{lpips.network}"] = lpips(rgb, part)
            for name, value in found.items():
                values.setdefault(name, []).append(value.double().cpu())
            if network is not None:
                for kept, pictures in zip(features, (part, rgb), strict=True):
                    kept.append(network(pictures).float().cpu())
            if codebook_size:
                counts += torch.bincount(codes.flatten(), minlength=codebook_size)
            pairs = [
                Pair(value, done + i, part[i].clone(), rgb[i].clone()) for i, value in enumerate(found["psnr"].tolist())
            ]
            worst = heapq.nsmallest(_SHOWN, [*worst, *pairs], key=lambda pair: (pair.psnr, pair.number))
            best = heapq.nsmallest(_SHOWN, [*best, *pairs], key=lambda pair: (-pair.psnr, pair.number))
            seconds["figures"] += time.perf_counter() - began
            done += len(part)
            on_images(len(part))
    joined = {name: torch.cat(parts) for name, parts in values.items()}
    began = time.perf_counter()
    figures: dict[str, Any] = {"images": done, **_spread(joined)}
    if network is not None:
        figures |= _distances(network, torch.cat(features[0]), torch.cat(features[1]), seed)
    if codebook_size:
        figures["codes"] = code_usage(counts, done)
    figures["classes"] = {
        shown_name(name): {"images": len(rows), **{key: value[rows].mean().item() for key, value in joined.items()}}
        for name, rows in classes_of(images).items()
    }
    seconds["distances"] = time.perf_counter() - began
    conditions = {
        "protocol": PROTOCOL,
        "images": dict(images.description),
        "rendering": f"{EVALUATION_SAMPLES} samples a ray, canonical camera, colours to 8 bits",
        "features": None
        if network is None
        else {"network": network.name, "sha256": network.weights_sha256, "resize": network.resize},
        "lpips": None if lpips is None else {"network": lpips.network, "sha256": lpips.weights_sha256},
        "seed": seed,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "versions": versions(network),
    }
    return ReconstructionResult(figures, conditions, joined["psnr"], counts, worst, best)


def code_usage(counts: Tensor, images: int) -> dict[str, float | int]:
    """How the codebook is used: `counts` `[K]` of each code over so many images.

    `perplexity` is the effective number of codes, at most K and at most the number of codes that were seen, so that
    few images keep it low; `bits_per_image` is what an entropy coder that knows only these counts would take.
    """
    total = int(counts.sum())
    effective = float(perplexity(counts))
    return {
        "codebook": len(counts),
        "used": int((counts > 0).sum()),
        "used_share": int((counts > 0).sum()) / len(counts),
        "perplexity": effective,
        "codes_seen": total,
        "bits_per_image": total / max(images, 1) * float(torch.tensor(effective).log2()),
    }


def _spread(values: dict[str, Tensor]) -> dict[str, float]:
    """Mean of each figure, then its standard deviation over images and its median."""
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= {
            name: value.mean().item(),
            f"{name}_std": value.std(correction=0).item(),
            f"{name}_median": value.quantile(0.5).item(),
        }
    return found


def _distances(network: FeatureNetwork, real: Tensor, own: Tensor, seed: int) -> dict[str, Any]:
    """Frechet and kernel distance of the reconstructions from their originals; with Inception's features `rfid`."""
    frechet, kernel = distance_name(network, "frechet"), distance_name(network, "kernel")
    if frechet == "fid":
        frechet, kernel = "rfid", "rkid"
    estimate = kernel_distance(real, own, seed=seed)
    return {
        frechet: frechet_distance(moments([real]), moments([own])),
        kernel: estimate.mean,
        f"{kernel}_std": estimate.std,
        f"{kernel}_subsets": [estimate.subsets, estimate.subset_size],
    }


def table(result: ReconstructionResult) -> list[list[object]]:
    """Rows for a reader: all images, then each class."""
    figures = result.figures
    pairwise = [name for name in figures if f"{name}_median" in figures]
    rows: list[list[object]] = [["", "images", *pairwise]]
    rows.append(["all", figures["images"], *(figures[name] for name in pairwise)])
    rows += [
        [name, found["images"], *(found.get(key) for key in pairwise)] for name, found in figures["classes"].items()
    ]
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
