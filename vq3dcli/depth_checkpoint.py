"""The depth network's weights file: as those of Stage 1 (`checkpoint`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from vq3dcli.checkpoint import checked_header, filled, say_images_seen, weights_of_run, write_weights
from vq3dcli.config.schema import DepthRecipe
from vq3dcli.errors import UnavailableError
from vq3dcli.model.build import build_depth_network
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.tensor_file import read_tensors

FORMAT_VERSION = 1


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int
    recipe: DepthRecipe
    card: dict[str, Any]


@dataclass(frozen=True)
class LoadedDepth:
    """A depth network ready for inference and where it came from.

    Attributes:
        model: In evaluation mode, float32.
        recipe: The recipe it was trained with.
        path: The file.
        sha256: The file's hash.
        card: What the file says of itself: images seen, figures.
    """

    model: DepthNetwork
    recipe: DepthRecipe
    path: str
    sha256: str
    card: dict[str, Any]


def embedded_depth_path() -> Path:
    """Where the package keeps its own depth network; the file may be missing."""
    return Path(str(resources.files("vq3dcli.weights"))) / "depth.safetensors"


def save_depth(path: Path, model: DepthNetwork, recipe: DepthRecipe, card: Mapping[str, Any]) -> str:
    """Write a depth network's weights file; floating-point tensors are rounded to fp16. Returns the file's SHA-256."""
    return write_weights(path, model.state_dict(), depth_header(recipe, card))


def depth_header(recipe: DepthRecipe, card: Mapping[str, Any]) -> dict[str, Any]:
    """What a weights file says of itself, JSON values."""
    # A file to be shared names no path of the machine it was made on; the card has the hash of what it started from.
    shared = recipe.model_copy(update={"training": recipe.training.model_copy(update={"init": ""})})
    return {
        "format": "depth",
        "format_version": FORMAT_VERSION,
        "recipe": shared.model_dump(mode="json"),
        "card": dict(card),
    }


def load_depth(path: Path | None = None, device: str | torch.device = "cpu") -> LoadedDepth:
    """Read a depth network's weights file.

    Args:
        path: A weights file or a run's folder; None for the embedded one.
        device: Where the model goes.

    Raises:
        InputMissingError: There is no such file.
        UnsafeFileError: The file is a pickle.
        DataError: The file is damaged, or is no depth network of ours.
        UnavailableError: This installation has no embedded depth network.
    """
    if path is None:
        path = embedded_depth_path()
        if not path.exists():
            raise UnavailableError(
                "this installation has no embedded depth network", remedy="a file that train-depth wrote"
            )
    path = weights_of_run(path, "train-depth")
    values, tensors, sha256 = read_tensors(path, what="weights")
    header = checked_header(path, values, _Header, "depth", FORMAT_VERSION, "a depth network's weights file")
    say_images_seen(path, header.recipe, header.card)
    model = filled(path, tensors, 0, lambda: build_depth_network(header.recipe))
    model.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)
    return LoadedDepth(model, header.recipe, str(path), sha256, header.card)
