"""Weights files and training checkpoints: safetensors and JSON, never a pickle.

A weights file is one safetensors file (`tensor_file`) whose header holds the format version, the recipe and a card; it
is all that inference needs. A checkpoint is a folder, renamed whole, that holds everything that training needs to
continue to the bit: weights, average, optimizer and a manifest with the hash of each file, and its own. The average is
written as a weights file, and taken for one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vq3dcli.config.schema import Recipe, Stage1Recipe
from vq3dcli.errors import DataError, DivergedError, InputMissingError, UnavailableError, Vq3dError
from vq3dcli.files import sha256_file, sync_folder, text_path, write_error
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.sealed import first_problem, read_sealed_json, write_sealed_json
from vq3dcli.tensor_file import (
    check_finite,
    check_tensors,
    first_not_finite,
    read_tensors,
    save_tensors,
    shapes_alone,
    write_tensors,
)

_log = logging.getLogger(__name__)

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
AVERAGE = "average.safetensors"
# What a weights file leaves out: it serves training only.
TRAINING_ONLY = ("auxiliary_head.", "quantizer.window_counts")
_CHECKPOINT_REMEDY = "delete that checkpoint, and the run continues from the one before"

Header = TypeVar("Header", bound=BaseModel)
Module = TypeVar("Module", bound=nn.Module)


class _Card(BaseModel):
    """What is used of a card; all else is for people."""

    model_config = ConfigDict(extra="allow")

    init_sha256: str | None = None
    init_ancestors: list[str] = []
    codes_of: list[str] = []


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int
    recipe: Stage1Recipe
    card: _Card


@dataclass(frozen=True)
class LoadedWeights:
    """A model ready for inference and where it came from.

    Attributes:
        model: The autoencoder, in evaluation mode, float32.
        recipe: The recipe it was trained with.
        path: The file.
        sha256: The file's hash.
        card: What the file says of itself: data, images seen, figures.
    """

    model: Autoencoder = field(repr=False)
    recipe: Stage1Recipe = field(repr=False)
    path: str
    sha256: str
    card: dict[str, Any] = field(repr=False)

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


def embedded_weights_path() -> Path:
    """Where the package keeps its own weights; the file may be missing in a source tree without them."""
    return Path(str(resources.files("vq3dcli.weights"))) / "stage1.safetensors"


def save_weights(path: Path, model: Autoencoder, recipe: Stage1Recipe, card: Mapping[str, Any]) -> str:
    """Write a weights file; floating-point tensors are rounded to fp16.

    Returns:
        The file's SHA-256.
    """
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    return write_weights(path, tensors, weights_header(recipe, card))


def weights_header(recipe: Stage1Recipe, card: Mapping[str, Any]) -> dict[str, Any]:
    """What a weights file says of itself, JSON values."""
    # A file to be shared names no path of the machine it was made on; the card has the hash of what it started from.
    shared = recipe.model_copy(update={"training": recipe.training.model_copy(update={"init": ""})})
    return {
        "format": "stage1",
        "format_version": FORMAT_VERSION,
        "recipe": shared.model_dump(mode="json"),
        "card": dict(card),
    }


def write_weights(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write tensors, floating-point ones rounded to fp16, with a header of JSON values; returns the file's SHA-256."""
    saved = {name: _rounded(value) for name, value in tensors.items()}
    if name := first_not_finite(saved):
        raise DivergedError(
            f"weights that fp16 cannot hold, first {name}, are not exported ({path})",
            remedy="a lower training.learning_rate",
        )
    return write_tensors(path, saved, header)


def _rounded(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def load_weights(path: Path | str | None = None, device: str | torch.device = "cpu") -> LoadedWeights:
    """Read a weights file.

    Args:
        path: A weights file, a run's folder, or a checkpoint; None for the embedded ones.
        device: Where the model goes.

    Raises:
        InputMissingError: There is no such file.
        UnsafeFileError: The file is a pickle.
        DataError: The file is damaged, or is no weights file of ours.
        UnavailableError: This installation has no embedded weights.
    """
    if path is None:
        path = embedded_weights_path()
        if not path.exists():
            raise UnavailableError(
                "this installation has no embedded weights", remedy="--weights with a file that train-stage1 wrote"
            )
    path = weights_of_run(Path(path), "train-stage1")
    values, tensors, sha256 = read_tensors(path, what="weights")
    header = checked_header(path, values, _Header, "stage1", FORMAT_VERSION, "a Stage 1 weights file")
    recipe = header.recipe
    card = header.card.model_dump(exclude_unset=True)
    say_images_seen(path, recipe, card)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
    inference = recipe.model_copy(update={"model": recipe.model.model_copy(update={"auxiliary_head": False})})
    tensors["quantizer.window_counts"] = torch.zeros(recipe.model.codebook_size)
    layers = recipe.model.encoder_layers + recipe.model.decoder_layers
    model = filled(path, tensors, layers, lambda: build_autoencoder(inference))
    model.requires_grad_(False).eval().to(device)
    return LoadedWeights(model, recipe, str(path), sha256, card)


def weights_of_run(path: Path, command: str) -> Path:
    """The weights file that a path means.

    Args:
        path: A weights file; a run's folder: its weights, or before its end the average of its newest checkpoint that
            is whole; a checkpoint's folder, or any file of it: its average.
        command: That trains such a run.

    Raises:
        InputMissingError: The run has saved nothing.
        DataError: All checkpoints of the run are damaged.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file() and (folder / AVERAGE).is_file():
        return folder / AVERAGE
    file = path / "weights.safetensors"
    if not path.is_dir() or file.exists() or not (path / "checkpoints").is_dir():
        return file if path.is_dir() else path
    saved = sorted((path / "checkpoints").glob("images-*"), reverse=True)
    for checkpoint in saved:
        try:
            read_checkpoint(checkpoint, check=("average",))
        except DataError as error:
            _log.warning("%s; taking an older checkpoint", error.message)
            continue
        return checkpoint / AVERAGE
    if saved:
        raise DataError(f"every checkpoint is damaged ({path / 'checkpoints'})", remedy="another run")
    raise InputMissingError(f"this run has saved nothing yet ({path})", remedy=f"the same {command} command again")


def say_images_seen(path: Path, recipe: Recipe, card: Mapping[str, Any]) -> None:
    """Log how far the run of a checkpoint's average had come; nothing for a weights file, which a whole run made."""
    if path.name == AVERAGE:
        _log.info("weights of a run at %s of %d images (%s)", card.get("images_seen"), recipe.training.images, path)


def checked_header(
    path: Path, values: Mapping[str, Any], schema: type[Header], kind: str, known: int, what: str
) -> Header:
    """The header of a file of ours.

    Args:
        path: The file.
        values: Its header.
        schema: What it must be.
        kind: Its `format`.
        known: The `format_version` that is known.
        what: What the file should be, for an error.

    Raises:
        DataError: It is of another kind, of another version, or says what no such file says.
    """
    found, version = values.get("format"), values.get("format_version")
    if found != kind:
        raise DataError(f"not {what} ({path}): {_kind(found)}", remedy=f"{what} that vq3d wrote")
    if isinstance(version, int) and version != known:
        age = "newer" if version > known else "older"
        raise DataError(f"format {version}, {age} than {known} ({path})", remedy=f"the {age} vq3d that wrote it")
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise DataError(
            f"{what} without a sound header ({path}): {first_problem(error)}", remedy="a file of the same version"
        ) from error


def _kind(found: object) -> str:
    known = {
        "stage1": "Stage 1 weights",
        "stage2": "a prior's weights",
        "depth": "a depth network",
        "scene": "a saved scene",
    }
    return known.get(str(found), "something else")


def filled(path: Path, tensors: dict[str, Tensor], layers: int, build: Callable[[], Module]) -> Module:
    """The model that a header describes with the tensors of its file, rounded as in a weights file, in float32.

    It is built without memory until the tensors are known to be those that it has: a header may say anything.

    Args:
        path: The file, for errors.
        tensors: All of its state; emptied, so that nothing is in memory twice for long.
        layers: How many the header says; each has tensors of its own.
        build: Builds it.

    Raises:
        DataError: The tensors are not those of such a model, or there can be none.
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
    return model


def write_checkpoint(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder whole: into a temporary folder, flushed, hashed, then renamed.

    Args:
        folder: Its final name; replaced if it exists.
        parts: File stem to named tensors.
        manifest: JSON values to keep beside them.
        header: Of the average as a weights file; without one it is none.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for stem, tensors in parts.items():
            path = temporary / f"{stem}.safetensors"
            if header is not None and path.name == AVERAGE:
                write_tensors(path, tensors, header)
            else:
                save_tensors(path, tensors)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            hashes[path.name] = sha256_file(path)
        write_sealed_json(temporary / MANIFEST, {**manifest, "format_version": FORMAT_VERSION, "sha256": hashes})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise write_error(folder, error) from error
    except Vq3dError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class Parts(Mapping[str, dict[str, Tensor]]):
    """Parts of a checkpoint by name, each read when it is asked for: together they may not fit memory.

    Args:
        files: By name.

    Raises:
        DataError: On reading a part whose file is damaged or missing, or has weights that are not finite; for a part
            that is not there.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        path = self._files[name]
        try:
            with text_path(path) as name_of_text:
                tensors = load_file(name_of_text)
        except (OSError, SafetensorError) as error:
            raise DataError(f"damaged checkpoint ({path}): {error}", remedy=_CHECKPOINT_REMEDY) from error
        if name in ("weights", "average"):
            check_finite(tensors, f"damaged checkpoint ({path})", remedy=_CHECKPOINT_REMEDY)
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_checkpoint(folder: Path, *, check: Collection[str] | None = None) -> tuple[Parts, dict[str, Any]]:
    """Open a checkpoint folder.

    Args:
        folder: What `write_checkpoint` wrote.
        check: Parts whose every byte is read and compared with the manifest, whose own hash is always compared; None
            for all of them.

    Raises:
        DataError: Names the file that is damaged or missing.
    """
    path = folder / MANIFEST
    try:
        manifest = read_sealed_json(path, what="checkpoint", remedy=_CHECKPOINT_REMEDY)
        hashes = manifest.get("sha256")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"checkpoint of format {manifest.get('format_version')}, not {FORMAT_VERSION} ({folder})",
                remedy="the version of vq3d that wrote it",
            )
        numbered = re.fullmatch(r"images-(\d+)", folder.name)
        if numbered and manifest.get("images_seen") != int(numbered[1]):
            raise DataError(f"damaged checkpoint ({path}): not that of its folder", remedy=_CHECKPOINT_REMEDY)
        if not isinstance(hashes, dict) or not all(re.fullmatch(r"\w+\.safetensors", name) for name in hashes):
            raise DataError(f"damaged checkpoint ({path}): no hashes of its parts", remedy=_CHECKPOINT_REMEDY)
        files = {Path(name).stem: folder / name for name in hashes}
        for file in files.values() if check is None else [folder / f"{name}.safetensors" for name in check]:
            if sha256_file(file) != hashes.get(file.name):
                raise DataError(
                    f"damaged checkpoint ({file}): its hash differs from the manifest", remedy=_CHECKPOINT_REMEDY
                )
    except InputMissingError as error:
        raise DataError(f"damaged checkpoint ({folder}): {error.message}", remedy=_CHECKPOINT_REMEDY) from error
    except OSError as error:
        raise DataError(f"damaged checkpoint ({folder}): {error}", remedy=_CHECKPOINT_REMEDY) from error
    return Parts(files), manifest
