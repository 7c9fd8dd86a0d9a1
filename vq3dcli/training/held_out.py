"""What a run is judged by while it trains, on images that never do.

Stage 1: its averaged model's pictures and geometry. A prior: bits per code, beside what counting achieves.

Legend: N images, C classes, K codes. Class C stands for images without a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.token_store import TokenLoader
from vq3dcli.losses.depth import LABEL_METRIC
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.metrics.geometry import spearman, ssi_error
from vq3dcli.metrics.image import psnr
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.training.distributed import Ranks

_CHUNK_IMAGES = 1024
_SCENES_AT_ONCE = 8


def held_out_views(
    model: Autoencoder, recipe: Stage1Recipe, images: Batch, *, device: torch.device, ranks: Ranks
) -> dict[str, float]:
    """Means over images, which ranks share: PSNR; rank correlation and error of disparity; PSNR of exact views.

    Disparity where labels are exact, views where there are any; as `vq3d evaluate geometry`, but for what is skipped as
    empty. `images` are all of them, the same on every rank; `model` is the averaged one.
    """
    names = ("psnr", "spearman", "ssi_error", "novel_psnr")
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    size = recipe.model.image_size
    for row in range(ranks.rank * _SCENES_AT_ONCE, len(images.image), ranks.world_size * _SCENES_AT_ONCE):
        rows = slice(row, row + _SCENES_AT_ONCE)
        image, exact = images.image[rows], images.label_kind[rows] == LABEL_METRIC
        scene, camera = reconstruct_scene(model, image.to(device)), build_canonical_camera(recipe, size, len(image))
        view = scene.render(camera, samples=EVALUATION_SAMPLES)
        s, s_true = view.s.cpu()[exact], images.s[rows][exact]
        values = [psnr(view.rgb.cpu(), image), spearman(s, s_true), ssi_error(s, s_true), torch.zeros(0)]
        others = None if images.views is None else images.views.of_rows(row, row + len(image))
        if others is not None and len(others.row):
            poses = camera.cam_to_world.index_copy(0, others.row, others.cam_to_world)
            seen = scene.render(replace(camera, cam_to_world=poses), samples=EVALUATION_SAMPLES).rgb.cpu()
            values[3] = psnr(seen[others.row], others.image)
        sums += torch.stack([torch.tensor([float(each.sum()), len(each)], dtype=torch.float64) for each in values])
    return {
        f"held_out_{name}": total / count
        for name, (total, count) in zip(names, ranks.sum(sums.to(device)).tolist(), strict=True)
        if count
    }


@dataclass(frozen=True)
class HeldOut:
    """Bits per code of held-out images."""

    images: Tensor  # how many images of each class, `[C + 1]`
    bits: Tensor  # their mean bits per code, `[C + 1]`, NaN for classes without one

    @property
    def mean(self) -> float:
        """Over images; NaN without any."""
        return self.mean_over(self.images)

    def mean_over(self, images: Tensor) -> float:
        """Over so many images of each class, `[C + 1]`; classes without bits do not count. NaN without any."""
        images = torch.where(self.bits.isnan(), 0.0, images)
        return float((self.bits.nan_to_num() * images).sum() / images.sum())


@torch.no_grad()
def held_out_bits(
    model: nn.Module,
    loader: TokenLoader,
    *,
    batch_size: int,
    autocast_dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks,
) -> HeldOut:
    """Measure a prior on the plain views of all held-out images, given their class; ranks share the work.

    The model is in evaluation mode; `autocast_dtype` is bfloat16 for mixed precision.
    """
    classes = len(loader.store.class_names)
    nats = torch.zeros(classes + 1, dtype=torch.float64, device=device)
    images = torch.zeros_like(nats)
    batches = loader.held_out_images.split(batch_size)
    for first in range(0, len(batches), ranks.world_size):
        # Ranks that share a prior's tensors must all compute as often: one without a batch takes the last, for nothing.
        number = first + ranks.rank
        batch = loader.held_out_batch(batches[min(number, len(batches) - 1)])
        tokens, class_index = batch.tokens.to(device), batch.class_index.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast_dtype == torch.bfloat16):
            logits = model(tokens, class_index)
        if number >= len(batches):
            continue
        row = torch.where(class_index < 0, classes, class_index)
        nats.index_add_(0, row, token_nats(logits, tokens).double().mean(1))
        images.index_add_(0, row, torch.ones_like(row, dtype=torch.float64))
    nats, images = ranks.sum(nats), ranks.sum(images)
    return HeldOut(images.cpu(), (nats / images * BITS_PER_NAT).cpu())


def unigram_bits(loader: TokenLoader, ranks: Ranks, device: torch.device) -> HeldOut:
    """Entropy of the training codes of each class, all views, whatever their place: what counting them achieves.

    Its mean weighs classes by their images: the entropy of a code given the class. Ranks share the counting, for a data
    set of ImageNet's size has ten billion codes; `device` is one where they can sum.
    """
    store = loader.store
    classes, size = len(store.class_names), store.codebook_size
    counts = torch.zeros(classes + 1, size, dtype=torch.int64)
    mine = loader.train_images[ranks.rank :: ranks.world_size]
    row = store.class_index[mine]
    row = torch.where(row < 0, classes, row)
    # Class by class: the counts of one stay in a processor's cache.
    for class_row in row.unique().tolist():
        for image in mine[row == class_row].split(_CHUNK_IMAGES):
            codes = store.tokens[image.numpy()].ravel()
            counts[class_row] += torch.from_numpy(np.bincount(codes, minlength=size))
    images = ranks.sum(torch.bincount(row, minlength=classes + 1).double().to(device)).cpu()
    share = ranks.sum(counts.to(device)).cpu().double()
    total = share.sum(1, keepdim=True)
    share = share / total
    bits = -(share * share.clamp_min(torch.finfo(torch.float64).tiny).log2()).sum(1)  # 0 log 0 is 0
    return HeldOut(images, bits)


def by_class(measured: HeldOut, unigram: HeldOut, class_names: Sequence[str]) -> dict[str, Any]:
    """Both as JSON values: in all, then of each class that has held-out images."""
    names = [*class_names, "no class"]
    rows = {
        names[i]: {
            "images": int(measured.images[i]),
            "bits": float(measured.bits[i]),
            "unigram_bits": float(unigram.bits[i]) if unigram.images[i] > 0 else None,
        }
        for i in range(len(names))
        if measured.images[i] > 0
    }
    # Both over the same images: a small data set may not hold out its classes in the proportion in which they train.
    comparable = torch.where(unigram.bits.isnan(), 0.0, measured.images)
    counted = unigram.mean_over(comparable)
    return {
        "images": int(measured.images.sum()),
        "bits": measured.mean,
        "unigram_bits": counted if math.isfinite(counted) else None,
        "share": measured.mean_over(comparable) / counted if counted > 0 else None,
        "classes": rows,
    }
