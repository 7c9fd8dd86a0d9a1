"""What a step depends on and what a checkpoint holds: models, optimizers, discriminators and a few scalars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vq3dcli.checkpoint import Parts
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.adversarial import Adversary
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.ema import average_of
from vq3dcli.training.initialise import freeze_codes, initialise
from vq3dcli.training.optim import OptimizerLike, build_optimizer
from vq3dcli.training.resume import manifest_of, parts_of, restore
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.skipping import Skipped
from vq3dcli.weights_file import weights_header


@dataclass
class RunState:
    """A run at a moment.

    Attributes:
        model: What is trained.
        average: Its moving average, which is exported.
        optimizer: Of the model.
        adversary: The discriminators, with their optimizers.
        images_seen: Images seen so far.
        chroma: Running mean of the reconstructions' share of their targets' colourfulness.
        skipped: Steps that were passed over.
        init_sha256: Hash of the weights that the run started from; empty for a random start.
        init_ancestors: Hashes of those that they started from, the nearest first.
        init_codes_of: Hashes of the weights whose codes mean the same in those that the run started from.
    """

    model: Autoencoder
    average: Autoencoder
    optimizer: OptimizerLike
    adversary: Adversary
    images_seen: int = 0
    chroma: float = 0.0
    skipped: Skipped = field(default_factory=Skipped)
    init_sha256: str = ""
    init_ancestors: tuple[str, ...] = ()
    init_codes_of: tuple[str, ...] = ()


def start_or_resume(
    folder: RunFolder, recipe: Stage1Recipe, *, classes: int, device: torch.device, ranks: Ranks
) -> RunState:
    """The state of the newest checkpoint, or else that of a new run, from `training.init` if the recipe names it.

    Args:
        folder: The run's folder.
        recipe: The resolved recipe.
        classes: Classes of the data, for class-conditional discriminators.
        device: Where to train.
        ranks: This process among those of the run.

    Raises:
        DataError: The checkpoint is damaged, or of another model.
        RecipeError: The weights to start from do not fit the recipe, or the discriminators not the data.
        InputMissingError, UnsafeFileError: As `weights_file.load_weights`.
    """
    schedule = recipe.training
    model = build_autoencoder(recipe).to(device)
    saved = folder.newest(ranks)
    start = initialise(model, recipe, Path(schedule.init)) if saved is None and schedule.init else None
    state = RunState(
        model=model,
        average=average_of(model),
        optimizer=build_optimizer(
            model,
            kind=schedule.optimizer,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            precision=schedule.precision,
        ),
        adversary=Adversary(recipe, classes=classes, device=device, ranks=ranks),
        init_sha256="" if start is None else start.sha256,
        init_ancestors=() if start is None else start.ancestors,
        init_codes_of=() if start is None else start.codes_of,
    )
    if saved is None:
        if schedule.freeze_codes:
            freeze_codes(model, start)
        return state

    def more(parts: Parts, manifest: Mapping[str, Any]) -> None:
        if recipe.adversarial.on:
            state.adversary.restore(parts["adversarial"])
        state.chroma = float(manifest["chroma"])
        state.init_ancestors = tuple(map(str, manifest["init_ancestors"]))
        state.init_codes_of = tuple(map(str, manifest["init_codes_of"]))

    restore(state, saved, folder.checkpoints, device=device, ranks=ranks, more=more)
    assert math.isfinite(state.chroma)
    if schedule.freeze_codes:
        freeze_codes(model)
    return state


def card_of(folder: RunFolder, recipe: Stage1Recipe, state: RunState) -> dict[str, Any]:
    """What the weights say of how they came to be, at this moment."""
    card = folder.card(state.images_seen, state.init_sha256)
    if state.init_sha256:
        card["init_ancestors"] = list(state.init_ancestors)
        if recipe.training.freeze_codes:
            card["codes_of"] = list(state.init_codes_of)
    return card


def save_state(folder: RunFolder, recipe: Stage1Recipe, state: RunState) -> None:
    """Write a checkpoint. Raises `OutputError` or `StorageError`."""
    parts = parts_of(state)
    if recipe.adversarial.on:
        parts["adversarial"] = state.adversary.tensors()
    manifest = {
        **manifest_of(state, recipe),
        "chroma": state.chroma,
        "init_ancestors": list(state.init_ancestors),
        "init_codes_of": list(state.init_codes_of),
    }
    header = weights_header(recipe, card_of(folder, recipe, state))
    folder.save(state.images_seen, parts, manifest, header, keep=recipe.training.keep_checkpoints)
