"""The prior's weights file: as those of Stage 1 (`checkpoint`), and what its codes mean.

Codes mean something to one Stage 1 weights file alone, so the header holds that file's hash, with the number of codes,
their number an image and the names of the classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from vq3dcli.checkpoint import LoadedWeights, checked_header, filled, say_images_seen, weights_of_run, write_weights
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.model.build import build_prior
from vq3dcli.model.prior import Prior, axial_rotation
from vq3dcli.model.sampling import sampling_dtype
from vq3dcli.tensor_file import read_tensors

FORMAT_VERSION = 1


class TokenFacts(BaseModel):
    """What a prior's codes are.

    Attributes:
        stage1_sha256: Hash of the Stage 1 weights file that made them and can decode them.
        codebook_size: Number of codes K.
        length: Codes an image L.
        class_names: By class index.
        stage1_ancestors: Hashes of the weights that the Stage 1's training began from, the nearest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage1_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    codebook_size: int = Field(ge=1, le=65536)
    length: int = Field(ge=1, le=2**18)
    class_names: tuple[str, ...]
    stage1_ancestors: tuple[str, ...] = ()


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int
    recipe: Stage2Recipe
    tokens: TokenFacts
    card: dict[str, Any]


@dataclass(frozen=True)
class LoadedPrior:
    """A prior ready for sampling and where it came from.

    Attributes:
        model: The prior, in evaluation mode.
        recipe: The recipe it was trained with.
        tokens: What its codes are.
        path: The file.
        sha256: The file's hash.
        card: What the file says of itself: images seen, figures.
    """

    model: Prior = field(repr=False)
    recipe: Stage2Recipe = field(repr=False)
    tokens: TokenFacts = field(repr=False)
    path: str
    sha256: str
    card: dict[str, Any] = field(repr=False)

    def check_stage1(self, stage1: LoadedWeights) -> None:
        """Raise `DataError` unless the codes are those of these Stage 1 weights."""
        if self.tokens.stage1_sha256 not in stage1.codes_of:
            raise DataError(
                f"a prior over the codes of another Stage 1 ({self.path}): of weights "
                f"{self.tokens.stage1_sha256[:12]}, not {stage1.sha256[:12]} ({stage1.path})",
                remedy="--weights with the file that its tokens were made with, or another --prior",
            )


def embedded_prior_path() -> Path:
    """Where the package keeps its own prior; the file may be missing."""
    return Path(str(resources.files("vq3dcli.weights"))) / "stage2.safetensors"


def save_prior(path: Path, model: Prior, recipe: Stage2Recipe, tokens: TokenFacts, card: Mapping[str, Any]) -> str:
    """Write a prior's weights file; floating-point tensors are rounded to fp16.

    Returns:
        The file's SHA-256.
    """
    return write_weights(path, model.state_dict(), prior_header(recipe, tokens, card))


def prior_header(recipe: Stage2Recipe, tokens: TokenFacts, card: Mapping[str, Any]) -> dict[str, Any]:
    """What a prior's weights file says of itself, JSON values."""
    # A file to be shared names no path of the machine it was made on; the card has the hash of what it started from.
    shared = recipe.model_copy(update={"training": recipe.training.model_copy(update={"init": ""})})
    return {
        "format": "stage2",
        "format_version": FORMAT_VERSION,
        "recipe": shared.model_dump(mode="json"),
        "tokens": tokens.model_dump(mode="json"),
        "card": dict(card),
    }


def as_loaded(model: Prior) -> Prior:
    """A copy of a prior in training as its weights file will give it to sampling: rounded, in sampling's dtype.

    Returns:
        In evaluation mode, on the same device; the copy's tensors are all that it takes of memory.
    """
    dtype = sampling_dtype(model.positions.device)
    rounded: dict[int, object] = {
        id(weight): torch.nn.Parameter(weight.detach().half().to(dtype), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, rounded).eval()


def load_prior(
    path: Path | str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedPrior:
    """Read a prior's weights file.

    Args:
        path: A weights file, a run's folder, or a checkpoint; None for the embedded one.
        device: Where the model goes.
        dtype: Of the model. Default: what `sampling_dtype` says, float32 on a CPU.

    Raises:
        InputMissingError: There is no such file.
        UnsafeFileError: The file is a pickle.
        DataError: The file is damaged, or is no prior of ours.
        UnavailableError: This installation has no embedded prior.
    """
    if path is None:
        path = embedded_prior_path()
        if not path.exists():
            raise UnavailableError(
                "this installation has no embedded prior", remedy="--prior with a file that train-stage2 wrote"
            )
    path = weights_of_run(Path(path), "train-stage2")
    values, tensors, sha256 = read_tensors(path, what="weights")
    header = checked_header(path, values, _Header, "stage2", FORMAT_VERSION, "a prior's weights file")
    recipe, facts = header.recipe, header.tokens
    say_images_seen(path, recipe, header.card)
    model = filled(
        path,
        tensors,
        recipe.model.layers,
        lambda: build_prior(
            recipe, codebook_size=facts.codebook_size, length=facts.length, classes=len(facts.class_names)
        ),
    )
    model.rotation = axial_rotation(math.isqrt(facts.length), recipe.model.width // recipe.model.heads)
    model.requires_grad_(False).eval().to(device, dtype or sampling_dtype(torch.device(device)))
    return LoadedPrior(model, recipe, facts, str(path), sha256, header.card)
