"""Weights files of Stage 1, of the prior and of the depth network: safetensors with a header, never a pickle.

The header holds the kind, the format version, the recipe and a card; it is all that inference needs. A prior's codes
mean something to one Stage 1 alone, so its header says which.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from vq3dcli.checkpoint import AVERAGE, MANIFEST, newest_whole
from vq3dcli.config.schema import DepthRecipe, Recipe, Stage1Recipe, Stage2Recipe
from vq3dcli.errors import DataError, DivergedError, InputMissingError, UnavailableError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder, build_depth_network, build_prior
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.model.draw_codes import sampling_dtype
from vq3dcli.model.prior import Prior, axial_rotation
from vq3dcli.sealed import first_problem
from vq3dcli.tensor_file import check_tensors, first_not_finite, read_tensors, shapes_alone, write_tensors

_log = logging.getLogger(__name__)

# What a weights file leaves out: it serves training only.
TRAINING_ONLY = ("auxiliary_head.", "quantizer.window_counts")

# What names the weights of the package where others are named by a path; a file of that name is `./embedded`.
EMBEDDED = "embedded"

Header = TypeVar("Header", bound=BaseModel)
Module = TypeVar("Module", bound=nn.Module)


# What each is called, and what the embedded one is called.
_CALLED = {
    "stage1": ("a Stage 1 weights file", "weights"),
    "stage2": ("a prior's weights file", "prior"),
    "depth": ("a depth network's weights file", "depth network"),
    "scene": ("a saved scene", ""),
}
_VERSIONS = {"stage1": 3, "stage2": 1, "depth": 1}


class TokenFacts(BaseModel):
    """What a prior's codes are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # hash of the Stage 1 weights file that made them and can decode them
    stage1_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    codebook_size: int = Field(ge=1, le=65536)  # number of codes K
    length: int = Field(ge=1, le=2**18)  # codes an image L
    class_names: tuple[str, ...]  # by class index
    # hashes of the weights that the Stage 1's training began from, the nearest first
    stage1_ancestors: tuple[str, ...] = ()


class _Card(BaseModel):
    """What is used of a card; all else is for people."""

    model_config = ConfigDict(extra="allow")

    init_sha256: str | None = None
    init_ancestors: list[str] = []
    codes_of: list[str] = []
    recognised: list[str] | None = None


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int
    card: _Card


class _Stage1Header(_Header):
    recipe: Stage1Recipe


class _PriorHeader(_Header):
    recipe: Stage2Recipe
    tokens: TokenFacts


class _DepthHeader(_Header):
    recipe: DepthRecipe


@dataclass(frozen=True)
class _Loaded:
    """A model in evaluation mode and where it came from."""

    path: str  # the file
    sha256: str  # the file's hash
    card: dict[str, Any] = field(repr=False)  # what the file says of itself: data, images seen, figures
    model: nn.Module = field(repr=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class LoadedWeights(_Loaded):
    """An autoencoder ready for inference, float32, and the recipe that it was trained with."""

    model: Autoencoder = field(repr=False)
    recipe: Stage1Recipe = field(repr=False)

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Hashes of the weights files that training began from (`training.init`), the nearest first."""
        first = self.card.get("init_sha256")
        return () if first is None else (first, *self.card.get("init_ancestors", ()))

    @property
    def codes_of(self) -> tuple[str, ...]:
        """Hashes of the weights files whose codes mean the same here, this one first.

        The others are those that it was fine-tuned from with `training.freeze_codes`.
        """
        return (self.sha256, *self.card.get("codes_of", ()))


@dataclass(frozen=True)
class LoadedPrior(_Loaded):
    """A prior ready for sampling, the recipe that it was trained with, and what its codes are."""

    model: Prior = field(repr=False)
    recipe: Stage2Recipe = field(repr=False)
    tokens: TokenFacts = field(repr=False)

    @property
    def recognised(self) -> list[int]:
        """Classes whose samples a viewer recognises, by index: those that the card names, all without such a card."""
        chosen = self.card.get("recognised")
        return [i for i, name in enumerate(self.tokens.class_names) if chosen is None or name in chosen]

    def check_stage1(self, stage1: LoadedWeights) -> None:
        """Raise `DataError` unless the codes are those of these Stage 1 weights."""
        if self.tokens.stage1_sha256 not in stage1.codes_of:
            raise DataError(
                f"a prior over the codes of another Stage 1 ({self.path}): of weights "
                f"{self.tokens.stage1_sha256[:12]}, not {stage1.sha256[:12]} ({stage1.path})",
                remedy="--weights with the file that its tokens were made with, or another --prior",
            )


@dataclass(frozen=True)
class LoadedDepth(_Loaded):
    """A depth network ready for inference, float32, and the recipe that it was trained with."""

    model: DepthNetwork = field(repr=False)
    recipe: DepthRecipe = field(repr=False)


def embedded_path(kind: str) -> Path:
    """Where the package keeps its own weights of a recipe's `kind`; the file may be missing in a source tree."""
    return Path(str(resources.files("vq3dcli.weights"))) / f"{kind}.safetensors"


def weights_header(recipe: Recipe, card: Mapping[str, Any], tokens: TokenFacts | None = None) -> dict[str, Any]:
    """What a weights file says of itself, JSON values; a prior's needs `tokens`."""
    dumped = recipe.model_dump(mode="json")
    # A file to be shared names no path of the machine it was made on; the card has the hash of what it started from.
    dumped["training"]["init"] = ""
    if isinstance(recipe, DepthRecipe) and recipe.model.backbone:
        dumped["model"]["encoder"] = str(recipe.model.backbone["model_type"])
    header = {"format": recipe.kind, "format_version": _VERSIONS[recipe.kind], "recipe": dumped}
    return {**header, **({} if tokens is None else {"tokens": tokens.model_dump(mode="json")}), "card": dict(card)}


def save_weights(
    path: Path, model: nn.Module, recipe: Recipe, card: Mapping[str, Any], tokens: TokenFacts | None = None
) -> str:
    """Write a weights file, its floating-point tensors rounded to fp16; a prior's needs `tokens`. Returns its SHA-256.

    Raises `DivergedError`: weights are not finite in fp16.
    """
    state = model.state_dict().items()
    saved = {name: _rounded(value) for name, value in state if not name.startswith(TRAINING_ONLY)}
    if name := first_not_finite(saved):
        raise DivergedError(
            f"weights that fp16 cannot hold, first {name}, are not exported ({path})",
            remedy="a lower training.learning_rate",
        )
    return write_tensors(path, saved, weights_header(recipe, card, tokens))


def load_weights(path: Path | str | None = None, device: str | torch.device = "cpu") -> LoadedWeights:
    """Read a Stage 1 weights file.

    Args:
        path: A weights file, a run's folder, or a checkpoint; None or `embedded` for the embedded ones.

    Raises `UnavailableError`: this installation has no embedded weights; else as `tensor_file.read_tensors`.
    """
    file, header, tensors, sha256 = _read(path, "stage1", _Stage1Header)
    recipe = header.recipe
    tensors = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
    tensors["quantizer.window_counts"] = torch.zeros(recipe.model.codebook_size)
    inference = recipe.model_copy(update={"model": recipe.model.model_copy(update={"auxiliary_head": False})})
    layers = recipe.model.encoder_layers + recipe.model.decoder_layers
    model = _filled(file, tensors, layers, lambda: build_autoencoder(inference))
    card = header.card.model_dump(exclude_unset=True)
    return LoadedWeights(str(file), sha256, card, model.to(device), recipe)


def load_prior(
    path: Path | str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedPrior:
    """Read a prior's weights file; arguments and errors as of `load_weights`.

    `dtype` is the model's; by default what `sampling_dtype` says, float32 on a CPU.
    """
    file, header, tensors, sha256 = _read(path, "stage2", _PriorHeader)
    shape, facts = header.recipe.model, header.tokens
    codes = {"codebook_size": facts.codebook_size, "length": facts.length, "classes": len(facts.class_names)}
    model = _filled(file, tensors, shape.layers, lambda: build_prior(header.recipe, **codes))
    model.rotation = axial_rotation(math.isqrt(facts.length), shape.width // shape.heads)
    model.to(device, dtype or sampling_dtype(torch.device(device)))
    card = header.card.model_dump(exclude_unset=True)
    return LoadedPrior(str(file), sha256, card, model, header.recipe, facts)


def load_depth(path: Path | str | None = None, device: str | torch.device = "cpu") -> LoadedDepth:
    """Read a depth network's weights file; arguments and errors as of `load_weights`."""
    file, header, tensors, sha256 = _read(path, "depth", _DepthHeader)
    model = _filled(file, tensors, 0, lambda: build_depth_network(header.recipe))
    if header.recipe.model.backbone:  # networks of transformers compute some of what no file holds
        state = model.state_dict()
        model = build_depth_network(header.recipe)
        model.load_state_dict(state)
        model.requires_grad_(False).eval()
    model.to(device).to(memory_format=torch.channels_last)
    card = header.card.model_dump(exclude_unset=True)
    return LoadedDepth(str(file), sha256, card, model, header.recipe)


def prior_as_loaded(model: Prior) -> Prior:
    """A copy of a prior in training as its weights file will give it to sampling: rounded, in sampling's dtype.

    In evaluation mode, on the same device; the copy's tensors are all that it takes of memory.
    """
    dtype = sampling_dtype(model.positions.device)
    rounded: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach().half().to(dtype), requires_grad=False) for weight in model.parameters()
    }
    return copy.deepcopy(model, rounded).eval()


def checked_header(path: Path, values: Mapping[str, Any], schema: type[Header], kind: str, known: int) -> Header:
    """The header of a file of ours whose `format` and `format_version` should be `kind` and `known`.

    Raises `DataError`: it is of another kind, of another version, or says what no such file says.
    """
    format_, version, what = values.get("format"), values.get("format_version"), _CALLED[kind][0]
    if format_ != kind:
        other = _CALLED.get(str(format_), ("something else",))[0]
        raise DataError(f"not {what} ({path}): {other}", remedy=f"{what} that vq3d wrote")
    if isinstance(version, int) and version != known:
        age = "newer" if version > known else "older"
        raise DataError(f"format {version}, {age} than {known} ({path})", remedy=f"the {age} vq3d that wrote it")
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise DataError(
            f"{what} without a sound header ({path}): {first_problem(error)}", remedy="a file of the same version"
        ) from error


def _read(path: Path | str | None, kind: str, schema: type[Header]) -> tuple[Path, Header, dict[str, Tensor], str]:
    """The file that a path means, with its checked header, its tensors and its hash."""
    if path is None or str(path) == EMBEDDED:
        path = embedded_path(kind)
        if not path.exists():
            raise UnavailableError(
                f"this installation has no embedded {_CALLED[kind][1]}", remedy=f"a file that train-{kind} wrote"
            )
    file = _file_of(Path(path), f"train-{kind}")
    values, tensors, sha256 = read_tensors(file, what="weights")
    header = checked_header(file, values, schema, kind, _VERSIONS[kind])
    if file.name == AVERAGE:
        seen, images = values["card"].get("images_seen"), values["recipe"]["training"]["images"]
        _log.info("weights of a run at %s of %d images (%s)", seen, images, file)
    return file, header, tensors, sha256


def _file_of(path: Path, command: str) -> Path:
    """A file itself; of a run its weights, or the average of its newest whole checkpoint; of a checkpoint its average.

    Any file of a checkpoint means its average, too.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file() and (folder / AVERAGE).is_file():
        return folder / AVERAGE
    file = path / "weights.safetensors"
    if not path.is_dir() or file.exists() or not (path / "checkpoints").is_dir():
        return file if path.is_dir() else path
    if checkpoint := newest_whole(path / "checkpoints", check=("average",)):
        return checkpoint / AVERAGE
    raise InputMissingError(f"this run has saved nothing yet ({path})", remedy=f"the same {command} command again")


def _filled(path: Path, tensors: dict[str, Tensor], layers: int, build: Callable[[], Module]) -> Module:
    """The model of a header with the tensors of its file, rounded as in a weights file, float32, for inference.

    It is built without memory until the tensors are known to be those that it has: a header may say anything. They are
    taken out of `tensors`, so that nothing is in memory twice for long; each of the header's `layers` has some.
    """
    misfit = f"weights do not fit their recipe ({path})"
    if layers > len(tensors):
        raise DataError(f"{misfit}: {layers} layers of {len(tensors)} tensors", remedy="another copy of the file")
    try:
        with shapes_alone():
            model = build()
    except (AssertionError, RuntimeError, ValueError, OverflowError) as error:
        raise DataError(f"weights of an impossible shape ({path}): {error}", remedy="another copy") from error
    expected = model.state_dict()
    check_tensors(misfit, expected, tensors)
    state = {name: _rounded(tensors.pop(name)).to(value.dtype) for name, value in expected.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _rounded(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value
