"""What a training run needs from its folders: a loader, and the facts that must stay the same over its life."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vq3dcli.config.schema import DepthRecipe, Stage1Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.errors import InputMissingError
from vq3dcli.files import sha256_file
from vq3dcli.training.distributed import Ranks


def open_loader(
    recipe: Stage1Recipe | DepthRecipe,
    data: Sequence[Path],
    labels: str | Sequence[str | None] | None,
    ranks: Ranks,
    shares: Sequence[float] | None = None,
) -> TrainingLoader:
    """This rank's loader over folders of shards, which together are one data set.

    A depth network makes its own crops: it gets images as they are stored, up to twice its input.

    Args:
        labels: Name of the disparity labels beside the shards, of all folders or one for each; None for none.
        shares: Of the stream, one a folder; None mixes them by their samples.

    Raises:
        InputMissingError, DataError, UsageError: As `TrainingLoader`.
        InputMissingError: The recipe wants novel views, and no folder has any.
    """
    schedule = recipe.training
    if isinstance(recipe, DepthRecipe):
        stored = [ShardFolder(folder).manifest.image_size for folder in data]
        size, crop = min([2 * recipe.model.input_px, *stored]), False
    else:
        size, crop = recipe.model.image_size, recipe.training.crop
    novel = isinstance(recipe, Stage1Recipe) and recipe.loss.novel
    loader = TrainingLoader(
        data,
        labels=labels,
        batch_size=schedule.batch_size,
        size=size,
        seed=schedule.seed,
        shares=shares,
        flip=schedule.flip,
        crop=crop,
        rank=ranks.rank,
        world_size=ranks.world_size,
        views=int(novel),
        max_bad=schedule.max_bad,
    )
    if novel and loader.num_with_views == 0:
        raise InputMissingError(
            f"losses at novel views are weighted, and no sample has a view ({', '.join(map(str, data))})",
            remedy="vq3d prepare-data toyscenes or meshscenes with --views 1, or --set of 0 for loss.novel_l2, "
            "novel_l1, novel_depth and novel_perceptual",
        )
    return loader


def run_facts(
    recipe: Stage1Recipe | DepthRecipe,
    loader: TrainingLoader,
    perceptual_weights: Path | None = None,
    shares: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Facts of a run beside its recipe, JSON values; a run that continues with others is refused."""
    names = hashlib.sha256("\n".join(loader.class_names).encode()).hexdigest()[:12]
    facts: dict[str, Any] = {
        "data": loader.sha256[:12],
        "samples": loader.num_samples,
        "labelled": loader.num_labelled,
        "labels": ", ".join(loader.labels if len(set(loader.labels)) > 1 else loader.labels[:1]),
        "classes": f"{len(loader.class_names)}, {names}",
    }
    if shares is not None:
        facts["shares"] = ", ".join(f"{share / sum(shares):.3f}" for share in shares)
    if perceptual_weights is not None and isinstance(recipe, Stage1Recipe) and recipe.loss.any_perceptual:
        facts["perceptual_weights"] = sha256_file(perceptual_weights)
    return facts
