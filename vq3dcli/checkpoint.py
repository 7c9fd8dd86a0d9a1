"""Weights files and training checkpoints: safetensors and JSON, never a pickle.

A weights file is one safetensors file whose metadata holds the format version, the recipe and a card; it is all that
inference needs. A checkpoint is a folder, renamed whole, that holds everything that training needs to continue to
the bit: weights, average, optimizer and a manifest with the hash of each file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.config.upgrade import upgraded_stage1
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UnsafeFileError, Vq3dError
from vq3dcli.files import atomic_path, sha256_file, sync_folder, write_error, write_json
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.field import RAW_GAIN

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
_CHECKPOINT_REMEDY = "delete that checkpoint, and the run continues from the one before"
# Zip archives (torch.save), pickle protocols 2 to 5, and gzip around either.
_PICKLE_SIGNATURES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")


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

    model: Autoencoder
    recipe: Stage1Recipe
    path: str
    sha256: str
    card: dict[str, Any]

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
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("auxiliary_head.", "quantizer.window_counts"))
    }
    # A file to be shared names no path of the machine it was made on; the card has the hash of what it started from.
    shared = recipe.model_copy(update={"training": recipe.training.model_copy(update={"init": ""})})
    header = {
        "format": "stage1",
        "format_version": FORMAT_VERSION,
        "recipe": shared.model_dump(mode="json"),
        "card": dict(card),
    }
    return write_weights(path, tensors, header)


def write_weights(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write tensors, floating-point ones rounded to fp16, with a header of JSON values; returns the file's SHA-256."""
    rounded = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in tensors.items()
    }
    # One entry: safetensors writes several in random order, and the same weights would have another hash each time.
    metadata = {"vq3d": json.dumps(dict(header), sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(rounded, temporary, metadata)
        temporary.chmod(0o644)
    return sha256_file(path)


def load_weights(path: Path | None = None, device: str | torch.device = "cpu") -> LoadedWeights:
    """Read a weights file.

    Args:
        path: A weights file or a run's folder; None for the embedded ones.
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
    path = weights_of_run(path, "train-stage1")
    metadata, tensors = read_weights(path)
    format_version, recipe, card = _read_header(path, metadata)
    _convert(tensors, format_version)
    inference = recipe.model_copy(update={"model": recipe.model.model_copy(update={"auxiliary_head": False})})
    model = build_autoencoder(inference)
    state = model.state_dict()
    tensors["quantizer.window_counts"] = state["quantizer.window_counts"]
    check_tensors(f"weights do not fit their recipe ({path})", state, tensors)
    model.load_state_dict({name: tensors[name].to(value.dtype) for name, value in state.items()})
    model.requires_grad_(False).eval().to(device)
    return LoadedWeights(model, recipe, str(path), sha256_file(path), card)


def weights_of_run(path: Path, command: str) -> Path:
    """The weights file in a run's folder, or `path` itself if it is no folder. Raises `InputMissingError`."""
    if not path.is_dir():
        return path
    file = path / "weights.safetensors"
    if (path / "checkpoints").is_dir() and not file.exists():
        raise InputMissingError(f"this run has not finished ({path})", remedy=f"the same {command} command again")
    return file


def _convert(tensors: dict[str, Tensor], format_version: int) -> None:
    """Bring the tensors of an older format to today's, in place."""
    if format_version < 2:
        # The field multiplies its raw density by a gain since format 2.
        for name in ("field_mlp.out.weight", "field_mlp.out.bias"):
            if name in tensors:  # what is missing is named later
                tensors[name] = tensors[name].float()
                tensors[name][0] /= RAW_GAIN


def _read_header(path: Path, metadata: Mapping[str, str]) -> tuple[int, Stage1Recipe, dict[str, Any]]:
    """Format version, recipe and card of a weights file. Raises `DataError`."""
    try:
        header = dict(json.loads(metadata.get("vq3d", "{}")))
        if header.get("format") != "stage1":
            raise DataError(f"not a Stage 1 weights file ({path})", remedy="a file that train-stage1 wrote")
        version = int(header["format_version"])
        if version > FORMAT_VERSION:
            raise DataError(
                f"weights of format {version}, newer than {FORMAT_VERSION} ({path})",
                remedy="a newer vq3d",
            )
        recipe = upgraded_stage1(header["recipe"]) if version < 3 else header["recipe"]
        return version, Stage1Recipe.model_validate(recipe), dict(header["card"])
    except (KeyError, ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"weights without a sound recipe ({path}): {reason}", remedy="weights written by the same version"
        ) from error


def check_tensors(message: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise `DataError` with `message` unless names and shapes are those expected."""
    wrong = [n for n, v in expected.items() if n not in found or found[n].shape != v.shape]
    wrong += [name for name in found if name not in expected]
    if wrong:
        raise DataError(
            f"{message}: {len(wrong)} tensors, first {wrong[0]}", remedy="the version of vq3d that wrote them"
        )


def read_weights(path: Path, *, what: str = "weights") -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, which error messages call `what`.

    Raises:
        InputMissingError: There is no such file, or it cannot be read.
        UnsafeFileError: It is a pickle.
        DataError: It is damaged.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(9)
    except FileNotFoundError as error:
        raise InputMissingError(f"no such {what} file ({path})", remedy="check the path") from error
    except OSError as error:
        raise InputMissingError(f"cannot read {what} ({path}): {error.strerror}", remedy="check the path") from error
    # The first eight bytes of safetensors are a length, which may look like a pickle's; its header follows.
    if head.startswith(_PICKLE_SIGNATURES) and head[8:] != b"{":
        raise UnsafeFileError(
            f"refused {what} ({path}): a pickle or an archive, and loading one can run any code",
            remedy="a .safetensors file",
        )
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"damaged {what} ({path}): {error}", remedy="another copy of the file") from error
    return metadata, tensors


def write_checkpoint(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint folder whole: into a temporary folder, flushed, hashed, then renamed.

    Args:
        folder: Its final name; replaced if it exists.
        parts: File stem to named tensors.
        manifest: JSON values to keep beside them.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for stem, tensors in parts.items():
            path = temporary / f"{stem}.safetensors"
            save_file({name: value.cpu() for name, value in tensors.items()}, path)
            path.chmod(0o644)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            hashes[path.name] = sha256_file(path)
        write_json(temporary / MANIFEST, {**manifest, "format_version": FORMAT_VERSION, "sha256": hashes})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise write_error(folder, error if isinstance(error, OSError) else OSError(5, str(error))) from error
    except Vq3dError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class Parts(Mapping[str, dict[str, Tensor]]):
    """Parts of a checkpoint by name, each read when it is asked for: together they may not fit memory.

    Args:
        files: By name.

    Raises:
        DataError: On reading a part whose file is damaged or missing.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        path = self._files[name]
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"damaged checkpoint ({path}): {error}", remedy=_CHECKPOINT_REMEDY) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_checkpoint(folder: Path, *, check_hashes: bool = True) -> tuple[Parts, dict[str, Any]]:
    """Open a checkpoint folder.

    Args:
        folder: What `write_checkpoint` wrote.
        check_hashes: Read every byte and compare with the manifest.

    Raises:
        DataError: Names the file that is damaged or missing.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        hashes = manifest["sha256"]
        if manifest["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"checkpoint of format {manifest['format_version']}, not {FORMAT_VERSION} ({folder})",
                remedy="the version of vq3d that wrote it",
            )
        files = {}
        for name, digest in hashes.items():
            if check_hashes and sha256_file(folder / name) != digest:
                raise DataError(
                    f"damaged checkpoint ({folder / name}): its hash differs from the manifest",
                    remedy=_CHECKPOINT_REMEDY,
                )
            files[Path(name).stem] = folder / name
    except InputMissingError as error:
        raise DataError(f"damaged checkpoint ({folder}): {error.message}", remedy=_CHECKPOINT_REMEDY) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"no {error} in its manifest" if isinstance(error, KeyError) else error
        raise DataError(f"damaged checkpoint ({folder}): {reason}", remedy=_CHECKPOINT_REMEDY) from error
    return Parts(files), manifest
