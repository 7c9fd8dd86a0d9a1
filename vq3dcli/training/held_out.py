"""What a prior is judged by while it trains: bits per code of images that never train, beside what counting achieves.

Legend: N images, C classes, K codes. Class C stands for images without a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vq3dcli.data.tokens import TokenLoader
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.training.distributed import Ranks

_CHUNK_IMAGES = 4096


@dataclass(frozen=True)
class HeldOut:
    """Bits per code of held-out images.

    Attributes:
        images: How many images of each class, `[C + 1]`.
        bits: Their mean bits per code, `[C + 1]`, NaN for classes without one.
    """

    images: Tensor
    bits: Tensor

    @property
    def mean(self) -> float:
        """Over images; NaN without any."""
        return float((self.bits.nan_to_num() * self.images).sum() / self.images.sum())


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

    Args:
        model: The prior, in evaluation mode.
        loader: Knows what is held out.
        batch_size: At once.
        autocast_dtype: bfloat16 for mixed precision.
        device: Where to compute.
        ranks: This process among those of the run.
    """
    classes = len(loader.store.class_names)
    nats = torch.zeros(classes + 1, dtype=torch.float64, device=device)
    images = torch.zeros_like(nats)
    for number, batch in enumerate(loader.held_out_batches(batch_size)):
        if number % ranks.world_size != ranks.rank:
            continue
        tokens, class_index = batch.tokens.to(device), batch.class_index.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast_dtype == torch.bfloat16):
            logits = model(tokens, class_index)
        row = torch.where(class_index < 0, classes, class_index)
        nats.index_add_(0, row, token_nats(logits, tokens).double().mean(1))
        images.index_add_(0, row, torch.ones_like(row, dtype=torch.float64))
    nats, images = ranks.sum(nats), ranks.sum(images)
    return HeldOut(images.cpu(), (nats / images * BITS_PER_NAT).cpu())


def unigram_bits(loader: TokenLoader) -> HeldOut:
    """Entropy of the training codes of each class, all views, whatever their place: what counting them achieves.

    Its mean weighs classes by their images: the entropy of a code given the class.
    """
    store = loader.store
    classes, size = len(store.class_names), store.codebook_size
    counts = np.zeros((classes + 1) * size, np.int64)
    images = torch.zeros(classes + 1, dtype=torch.float64)
    for image in loader.train_images.split(_CHUNK_IMAGES):
        row = store.class_index[image]
        row = torch.where(row < 0, classes, row)
        images.index_add_(0, row, torch.ones(len(row), dtype=torch.float64))
        cell = row.numpy()[:, None, None] * size + store.tokens[image.numpy()].astype(np.int64)
        counts += np.bincount(cell.ravel(), minlength=len(counts))
    share = torch.from_numpy(counts.reshape(classes + 1, size)).double()
    total = share.sum(1, keepdim=True)
    share = share / total
    bits = -(share * share.clamp_min(torch.finfo(torch.float64).tiny).log2()).sum(1)  # 0 log 0 is 0
    return HeldOut(images, bits)


def by_class(found: HeldOut, unigram: HeldOut, class_names: Sequence[str]) -> dict[str, Any]:
    """Both as JSON values: in all, then of each class that has held-out images."""
    names = [*class_names, "no class"]
    rows = {
        names[i]: {
            "images": int(found.images[i]),
            "bits": float(found.bits[i]),
            "unigram_bits": float(unigram.bits[i]) if unigram.images[i] > 0 else None,
        }
        for i in range(len(names))
        if found.images[i] > 0
    }
    return {"images": int(found.images.sum()), "bits": found.mean, "unigram_bits": unigram.mean, "classes": rows}
