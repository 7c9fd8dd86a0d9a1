"""What a step of Stage 2 depends on and what a checkpoint holds: the prior, its average, its optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.errors import RecipeError
from vq3dcli.model.build import build_prior
from vq3dcli.model.prior import Prior
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.ema import average_of
from vq3dcli.training.optim import OptimizerLike, build_optimizer
from vq3dcli.training.resume import manifest_of, parts_of, restore
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.skipping import Skipped
from vq3dcli.weights_file import TokenFacts, load_prior, weights_header

_BETAS = (0.9, 0.95)  # as LlamaGen (Sun et al., 2024, sec. 3.1)


@dataclass
class PriorState:
    """A run at a moment.

    Attributes:
        model: What is trained.
        average: Its moving average, which is exported.
        optimizer: Of the model.
        images_seen: Images seen so far.
        skipped: Steps that were passed over.
        init_sha256: Hash of the weights that the run started from; empty for a random start.
    """

    model: Prior
    average: Prior
    optimizer: OptimizerLike
    images_seen: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    init_sha256: str = ""


def start_or_resume_prior(
    folder: RunFolder, recipe: Stage2Recipe, tokens: TokenFacts, *, device: torch.device, ranks: Ranks
) -> PriorState:
    """The state of the newest checkpoint, or else that of a new run, from `training.init` if the recipe names it.

    Args:
        folder: The run's folder.
        recipe: The resolved recipe.
        tokens: What it is trained on.
        device: Where to train.
        ranks: This process among those of the run.

    Raises:
        DataError: The checkpoint is damaged, or of another model.
        RecipeError: The weights to start from do not fit the recipe or the tokens.
        InputMissingError, UnsafeFileError: As `weights_file.load_prior`.
    """
    schedule = recipe.training
    model = build_prior(
        recipe, codebook_size=tokens.codebook_size, length=tokens.length, classes=len(tokens.class_names)
    )
    saved = folder.newest(ranks)
    init_sha256 = initialise_prior(model, tokens, Path(schedule.init)) if saved is None and schedule.init else ""
    model = model.to(device)
    state = PriorState(
        model=model,
        average=average_of(model),
        optimizer=build_optimizer(
            model,
            kind=schedule.optimizer,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            precision=schedule.precision,
            betas=_BETAS,
        ),
        init_sha256=init_sha256,
    )
    if saved is not None:
        restore(state, saved, folder.checkpoints, device=device, ranks=ranks)
    return state


def save_prior_state(folder: RunFolder, recipe: Stage2Recipe, tokens: TokenFacts, state: PriorState) -> None:
    """Write a checkpoint. Raises `OutputError` or `StorageError`."""
    header = weights_header(recipe, folder.card(state.images_seen, state.init_sha256), tokens)
    folder.save(
        state.images_seen, parts_of(state), manifest_of(state, recipe), header, keep=recipe.training.keep_checkpoints
    )


@torch.no_grad()
def initialise_prior(model: Prior, tokens: TokenFacts, path: Path) -> str:
    """Fine-tuning: a fresh prior takes another's weights, in place; the optimizer and the schedule start anew.

    All shapes must agree, but for two things. Classes of a name that both know come along, others start at random. And
    the fresh prior may be deeper: its further blocks, spread evenly among the others, end in zeros as all new ones do,
    so that it computes what the other one does (as identity layers of Net2Net, Chen et al., ICLR 2016).

    Args:
        model: Built for `tokens`, on the CPU.
        tokens: What it will be trained on.
        path: A prior's weights file, the folder of a run, or a checkpoint.

    Returns:
        The file's hash.

    Raises:
        RecipeError: The weights do not fit the recipe, or belong to tokens of a Stage 1 that is neither that of the
            tokens nor one that its training began from, or have other codes.
        InputMissingError, UnsafeFileError, DataError: As `weights_file.load_prior`.
    """
    loaded = load_prior(path)
    # Fine-tuning moves codes little and keeps their numbers: a prior of the ancestor's codes is a good start.
    if loaded.tokens.stage1_sha256 not in (tokens.stage1_sha256, *tokens.stage1_ancestors):
        raise RecipeError(
            f"the weights to start from are of another Stage 1 ({loaded.path}): of "
            f"{loaded.tokens.stage1_sha256[:12]}, the tokens are of {tokens.stage1_sha256[:12]}",
            remedy="vq3d tokenize with that Stage 1, or no training.init",
        )
    before, after = ((facts.length, facts.codebook_size) for facts in (loaded.tokens, tokens))
    if before != after:  # fine-tuning may change the image's size and the codebook's
        raise RecipeError(
            f"the weights to start from are of other codes ({loaded.path}): {before[0]} of {before[1]} an image, the "
            f"tokens are {after[0]} of {after[1]}",
            remedy="no training.init",
        )
    target = model.state_dict()
    source = _deepened(loaded.model, target, len(model.blocks))
    classes = "class_embedding.weight"
    old, new = source.pop(classes), target.pop(classes)
    wrong = [name for name in {**target, **source} if name not in source or name not in target]
    wrong += [name for name in target if name in source and source[name].shape != target[name].shape]
    if old.shape[1] != new.shape[1]:
        wrong.append(classes)
    if loaded.model.heads != model.heads:
        wrong.append("heads")  # the same shapes, another meaning
    if wrong:
        shape = loaded.recipe.model
        raise RecipeError(
            f"the weights do not fit the recipe ({loaded.path}): {len(wrong)} tensors, first {wrong[0]}",
            remedy=f"--set model.width={shape.width} --set model.layers={shape.layers} "
            f"--set model.heads={shape.heads} --set model.tied_head={str(shape.tied_head).lower()}",
        )
    rows = {name: row for row, name in enumerate(loaded.tokens.class_names)}
    for row, name in enumerate(tokens.class_names):
        if name in rows:
            new[row] = old[rows[name]]
    new[-1] = old[-1]  # no class
    model.load_state_dict({**source, classes: new})
    return loaded.sha256


def _deepened(model: Prior, target: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A prior's weights with its blocks at their places among `layers`, between them those of `target`."""
    source, found = model.state_dict(), len(model.blocks)
    if layers <= found:
        return source
    place = {layer: (layer + 1) * layers // found - 1 for layer in range(found)}  # the last one stays the last
    inside = {name: value for name, value in source.items() if not name.startswith("blocks.")}
    for name in source.keys() - inside.keys():
        _, layer, rest = name.split(".", 2)
        inside[f"blocks.{place[int(layer)]}.{rest}"] = source[name]
    further = tuple(f"blocks.{layer}." for layer in range(layers) if layer not in place.values())
    return inside | {name: value for name, value in target.items() if name.startswith(further)}
