"""What a training run needs: a loader, facts that stay the same over its life, and what it is watched by."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch, TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder, label_folder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import InputMissingError, UnavailableError
from vq3dcli.files import sha256_file
from vq3dcli.training.devices import Processor, find_processor
from vq3dcli.training.distributed import Ranks
from vq3dcli.weights_file import LoadedWeights, load_weights

_log = logging.getLogger(__name__)

_HELD_OUT_IMAGES = 64


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


def label_names(labels: Sequence[str] | None) -> str | list[str | None] | None:
    """What `--labels` names: of all folders, or one for each."""
    names = [None if name == "none" else name for name in labels or ["exact"]]
    return names[0] if len(names) == 1 else names


def open_held_out(recipe: Stage1Recipe, folder: Path) -> Batch:
    """Some images of a folder, always the same, with their exact disparity and an exact view, where it has these."""
    count = min(ShardFolder(folder).num_samples, _HELD_OUT_IMAGES)
    return TrainingLoader(
        [folder],
        labels="exact" if label_folder(folder, "exact").exists() else None,
        batch_size=max(count, 1),
        size=recipe.model.image_size,
        seed=0,
        flip=False,
        crop=False,
        cache_bytes=0,
        views=1,
    ).batch_at(0)


def stage1_for_sheets(store: TokenStore, weights: Path | None, device: torch.device) -> LoadedWeights | None:
    """The Stage 1 for a prior's sheets, None without one that made the tokens.

    Raises `DataError`: the one asked for did not make them.
    """
    if weights is not None:
        loaded = load_weights(weights, device)
        store.check_stage1(*loaded.codes_of)
        return loaded
    with contextlib.suppress(UnavailableError):
        loaded = load_weights(None, device)
        if store.stage1_sha256 in loaded.codes_of:
            return loaded
    _log.warning("no sheets of samples: the tokens are of other weights than the embedded ones; try: --weights STAGE1")
    return None


def full_speed(
    recipe: Stage1Recipe | Stage2Recipe,
    device: torch.device,
    processes: int,
    *,
    classes: int,
    store: TokenStore | None = None,
) -> Callable[[int], float] | None:
    """Images a second, by images seen, of GPUs that do nothing but multiply at their peak; None on a CPU.

    What is computed again to save memory counts once: a run's speed over this is its model FLOPs utilisation. `store`
    has the tokens of Stage 2.
    """
    if device.type != "cuda":
        return None
    return peak_speed(recipe, find_processor(recipe, device), processes, classes=classes, store=store)


def peak_speed(
    recipe: Stage1Recipe | Stage2Recipe,
    processor: Processor,
    processes: int,
    *,
    classes: int,
    store: TokenStore | None = None,
) -> Callable[[int], float]:
    """`full_speed` of a known processor."""
    from vq3dcli.training.trace import prior_work, stage1_work

    once = {"training": recipe.training.model_copy(update={"checkpoint_activations": False})}
    images, begin = recipe.training.batch_size // (recipe.training.accumulate * processes), 0
    if isinstance(recipe, Stage1Recipe):
        recipe, begin = recipe.model_copy(update=once), recipe.adversarial.start_images
        works = [
            stage1_work(recipe, processor, images, started=started and recipe.adversarial.on, classes=classes)
            for started in (False, True)
        ]
    else:
        assert store is not None
        codes = {"length": store.length, "codebook_size": store.codebook_size}
        works = 2 * [prior_work(recipe.model_copy(update=once), processor, images, **codes, classes=classes)]
    peak = processes * processor.flops_per_second / processor.share
    before, after = (peak * images / work.flops for work in works)
    return lambda seen: before if seen < begin else after
