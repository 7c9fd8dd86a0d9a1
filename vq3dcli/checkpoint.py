"""Training checkpoints: a folder, renamed whole, with everything that training needs to continue to the bit.

Safetensors and JSON, never a pickle: weights, average, optimizer, and a manifest with the hash of each file and its
own. The average is written as a weights file (`weights_file`), and taken for one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vq3dcli.errors import DataError, InputMissingError, Vq3dError
from vq3dcli.files import sha256_file, sync_folder, text_path, write_error
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.tensor_file import check_finite, save_tensors, write_tensors

_log = logging.getLogger(__name__)

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
AVERAGE = "average.safetensors"
_REMEDY = "delete that checkpoint, and the run continues from the one before"


def write_checkpoint(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder whole, in place of one that exists: a temporary one is flushed, hashed, then renamed.

    `manifest` are JSON values to keep beside the parts; `header` is that of the average as a weights file, which it
    else is not.
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
    except (OSError, Vq3dError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise


class Parts(Mapping[str, dict[str, Tensor]]):
    """Parts of a checkpoint by name, each read when it is asked for: together they may not fit memory.

    Raises `DataError`: on reading a part whose file is damaged or missing, or has weights that are not finite; for a
    part that is not there.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        path = self._files[name]
        try:
            with text_path(path) as name_of_text:
                tensors = load_file(name_of_text)
        except (OSError, SafetensorError) as error:
            raise DataError(f"damaged checkpoint ({path}): {error}", remedy=_REMEDY) from error
        if name in ("weights", "average"):
            check_finite(tensors, f"damaged checkpoint ({path})", remedy=_REMEDY)
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_checkpoint(folder: Path, *, check: Collection[str] | None = None) -> tuple[Parts, dict[str, Any]]:
    """Open a checkpoint folder, whose manifest's own hash is always compared.

    Every byte of the parts in `check`, None for all, is compared with the manifest. Raises `DataError`: names the file
    that is damaged or missing.
    """
    path = folder / MANIFEST
    try:
        manifest = read_sealed_json(path, what="checkpoint", remedy=_REMEDY)
        hashes = manifest.get("sha256")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"checkpoint of format {manifest.get('format_version')}, not {FORMAT_VERSION} ({folder})",
                remedy="the version of vq3d that wrote it",
            )
        numbered = re.fullmatch(r"images-(\d+)", folder.name)
        if numbered and manifest.get("images_seen") != int(numbered[1]):
            raise DataError(f"damaged checkpoint ({path}): not that of its folder", remedy=_REMEDY)
        if not isinstance(hashes, dict) or not all(re.fullmatch(r"\w+\.safetensors", name) for name in hashes):
            raise DataError(f"damaged checkpoint ({path}): no hashes of its parts", remedy=_REMEDY)
        files = {Path(name).stem: folder / name for name in hashes}
        for file in files.values() if check is None else [folder / f"{name}.safetensors" for name in check]:
            if sha256_file(file) != hashes.get(file.name):
                raise DataError(f"damaged checkpoint ({file}): its hash differs from the manifest", remedy=_REMEDY)
    except InputMissingError as error:
        raise DataError(f"damaged checkpoint ({folder}): {error.message}", remedy=_REMEDY) from error
    except OSError as error:
        raise DataError(f"damaged checkpoint ({folder}): {error}", remedy=_REMEDY) from error
    return Parts(files), manifest


def newest_whole(folder: Path, *, check: Collection[str] | None = None) -> Path | None:
    """The newest checkpoint in a folder that is whole, or whose parts in `check` are; None without any.

    Damaged ones are passed over with a warning. Raises `DataError`: there are checkpoints, but all are damaged.
    """
    saved = saved_checkpoints(folder)
    for checkpoint in reversed(saved):
        try:
            parts, _ = read_checkpoint(checkpoint, check=check)
            for name in ("weights", "average") if check is None else ():
                parts[name]  # raises for numbers that are not finite
            return checkpoint
        except DataError as error:
            _log.warning("%s; taking an older checkpoint", error.message)
    if saved:
        raise DataError(f"every checkpoint is damaged ({folder})", remedy="another run, or another --out")
    return None


def saved_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the oldest first; none where there is no such folder."""
    return sorted(path for path in folder.glob("images-*") if re.fullmatch(r"images-\d{12}", path.name))
