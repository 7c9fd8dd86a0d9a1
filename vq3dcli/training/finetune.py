"""Fine-tuning: a fresh model takes the weights of another; the optimizer and the schedule start anew.

Of Stage 1 every tensor must have the shape that the recipe gives it, but for those that a change of resolution or
codebook leaves a clear meaning:

    positions, the planes' base   resampled to the new grid (Dosovitskiy et al., ICLR 2021, sec. 3.2, for positions)
    codebook                      the codes that both have; further ones keep their random start, and those that stay
                                  unused are revived from encoder outputs like any dead code
    embedding of patches          that of images alone, where the encoder now sees their disparity, too

Training-only parts that no weights file holds, such as the auxiliary head, keep their random start. The quantizer's
statistics come along, and with them whether it quantises: a file that did goes on from the first image.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.config.schema import DepthRecipe, Stage1Recipe
from vq3dcli.errors import RecipeError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.model.prior import Prior
from vq3dcli.weights_file import TRAINING_ONLY, LoadedWeights, TokenFacts, load_depth, load_prior, load_weights

_log = logging.getLogger(__name__)

# Keys of [model] that change what tensors mean and leave their shapes ...
_SAME_SHAPES = ("encoder_heads", "decoder_heads", "space")
# ... and those that may change.
_ADAPTABLE = ("image_size", "codebook_size", "auxiliary_head")


class Initialised(NamedTuple):
    """Where the weights came from and what became of them."""

    source: LoadedWeights
    adapted: tuple[str, ...]  # tensors that were resampled, cut or extended
    fresh: tuple[str, ...]  # tensors that keep their random start


@torch.no_grad()
def initialise(model: Autoencoder, recipe: Stage1Recipe, path: Path) -> Initialised:
    """Load the weights of a Stage 1 file, the folder of a run, or a checkpoint, into a freshly built model, in place.

    Raises `RecipeError`: they do not fit the recipe; names every tensor that does not, and the keys to change; else as
    `weights_file.load_weights`.
    """
    loaded = load_weights(path)
    source, target = loaded.model.state_dict(), model.state_dict()
    taken: dict[str, Tensor] = {}
    adapted, misfits = [], []
    for name in dict.fromkeys([*target, *source]):
        if name.startswith(TRAINING_ONLY) or (name.startswith("depth_network.") and name not in source):
            continue
        old, new = source.get(name), target.get(name)
        if old is not None and new is not None and old.shape == new.shape:
            taken[name] = old
        elif old is not None and new is not None and (fitted := _adapted(name, old, new)) is not None:
            taken[name] = fitted
            adapted.append(name)
        else:
            misfits.append(f"{name} ({_shape(old)} in the weights, {_shape(new)} in the recipe)")
    before, after = loaded.recipe.model.model_dump(), recipe.model.model_dump()
    changed = [key for key in after if before[key] != after[key]]
    misfits += [f"model.{key} ({before[key]}, {after[key]})" for key in _SAME_SHAPES if key in changed]
    if misfits:
        remedy = " ".join(f"--set model.{key}={before[key]}" for key in changed if key not in _ADAPTABLE)
        raise RecipeError(
            f"the weights do not fit the recipe ({loaded.path}): {', '.join(misfits)}",
            remedy=remedy or "weights that the same version of vq3d wrote",
        )
    model.load_state_dict(taken, strict=False)
    if loaded.recipe.camera != recipe.camera:
        _log.warning("the weights were trained with another [camera] section: their geometry starts distorted")
    fresh = tuple(name for name in target if name not in taken)
    _log.info("initialised from %s, %s; adapted: %s", loaded.path, loaded.sha256[:12], ", ".join(adapted) or "nothing")
    return Initialised(loaded, tuple(adapted), fresh)


def freeze_codes(model: Autoencoder, start: Initialised | None = None) -> None:
    """Train the decoder alone from now on: the same images keep the same codes, and priors over them stay good.

    As Stable Diffusion's autoencoders were fine-tuned, whose latents had to stay those of the diffusion model (model
    card of stabilityai/sd-vae-ft-mse). `start` says where the weights came from, to check; None where a run goes on.

    Raises `RecipeError`: the codes are untrained, or those of another image size or codebook size.
    """
    if not bool(model.quantizer.active):
        raise RecipeError(
            "training.freeze_codes keeps the codes of weights to start from, and there are none that quantise",
            remedy="--init with trained weights, or --set training.freeze_codes=false",
        )
    moved = [] if start is None else [name for name in start.adapted if name.startswith(("encoder.", "quantizer."))]
    if start is not None and moved:
        raise RecipeError(
            f"training.freeze_codes keeps codes, and the recipe changes {moved[0]} ({start.source.path})",
            remedy="model.image_size and model.codebook_size of the weights, or --set training.freeze_codes=false",
        )
    for part in (model.embed_patches, model.encoder, model.to_code, model.quantizer):
        part.requires_grad_(False)


@torch.no_grad()
def initialise_prior(model: Prior, tokens: TokenFacts, path: Path) -> str:
    """A fresh prior, built for `tokens` on the CPU, takes another's weights, in place; returns their file's hash.

    All shapes must agree, but for two things. Classes of a name that both know come along, others start at random. And
    the fresh prior may be deeper: its further blocks, spread evenly among the others, end in zeros as all new ones do,
    so that it computes what the other one does (as identity layers of Net2Net, Chen et al., ICLR 2016).

    Raises `RecipeError`: the weights do not fit the recipe, have other codes, or belong to tokens of a Stage 1 that is
    neither that of the tokens nor one that its training began from; else as `weights_file.load_prior`.
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
    source, fewer = model.state_dict(), len(model.blocks)
    if layers <= fewer:
        return source
    place = {layer: (layer + 1) * layers // fewer - 1 for layer in range(fewer)}  # the last one stays the last
    inside = {name: value for name, value in source.items() if not name.startswith("blocks.")}
    for name in source.keys() - inside.keys():
        _, layer, rest = name.split(".", 2)
        inside[f"blocks.{place[int(layer)]}.{rest}"] = source[name]
    further = tuple(f"blocks.{layer}." for layer in range(layers) if layer not in place.values())
    return inside | {name: value for name, value in target.items() if name.startswith(further)}


def initialise_depth(model: DepthNetwork, recipe: DepthRecipe, path: Path) -> str:
    """A depth network takes another's weights, in place; returns the file's hash.

    Raises `RecipeError`: its shape is another; else as `weights_file.load_depth`.
    """
    loaded = load_depth(path)
    shape = loaded.recipe.model
    of_both = [(each.backbone or each.encoder, each.widths) for each in (shape, recipe.model)]
    if of_both[0] != of_both[1]:
        raise RecipeError(
            f"the weights to start from have another shape ({path}): encoder {shape.encoder}, "
            f"model.widths {list(shape.widths)}",
            remedy="--set these, model.encoder as the folder of the same backbone",
        )
    model.load_state_dict(loaded.model.state_dict())
    return loaded.sha256


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(str(side) for side in tensor.shape) or "scalar"


def _adapted(name: str, old: Tensor, new: Tensor) -> Tensor | None:
    """The tensor `old` in the shape of `new`, or None where that has no clear meaning."""
    if name.endswith(".positions") and old.shape[-1] == new.shape[-1]:
        side, wanted = round(old.shape[1] ** 0.5), round(new.shape[1] ** 0.5)
        grid = old.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        return _resampled(grid, wanted).permute(0, 2, 3, 1).reshape(new.shape)
    if name == "plane_head.base" and old.shape[-1] == new.shape[-1]:
        planes = old[0].permute(0, 3, 1, 2)
        return _resampled(planes, new.shape[2]).permute(0, 2, 3, 1)[None]
    if name == "embed_patches.weight" and len(old) == len(new) and old.shape[1] * 4 == new.shape[1] * 3:
        # The image as before, of its disparity nothing yet.
        return torch.cat([old, old.new_zeros(len(old), new.shape[1] - old.shape[1])], 1)
    if name == "quantizer.codebook" and old.shape[1] == new.shape[1]:
        both = min(len(old), len(new))
        return torch.cat([old[:both].to(new.device), new[both:]])
    return None


def _resampled(grid: Tensor, side: int) -> Tensor:
    """Square grids `[N, C, H, W]` to `[N, C, side, side]`; cell centres keep their place in the image."""
    # With `antialias` the bicubic kernel is the one that keeps straight lines straight, also when it enlarges.
    return functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
