"""Any folder of images as a shard folder: class folders, or one class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_tools.prepare import Options, open_source, prepare
from data_tools.sources.folder import Classes
from vq3dcli.config.defaults import MAX_BAD, SHARD_SIZE
from vq3dcli.data.schema import Manifest


def prepare_folder(
    source: Path,
    out: Path,
    *,
    size: int,
    margin: float = 1.0,
    classes: Classes = "auto",
    max_bad: float = MAX_BAD,
    shard_size: int = SHARD_SIZE,
    workers: int | None = 1,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the images of a folder as JPEG squares: `open_source` and `prepare` of the preset `folder` in one call.

    Raises:
        InputMissingError: `source` is not a folder, or there is no file in it.
        DataError: More than `max_bad` of the files are not images.
    """
    manifest = prepare(
        "folder",
        open_source("folder", source, out, classes=classes),
        out,
        Options(size, margin, shard_size),
        max_bad=max_bad,
        workers=workers,
        force=force,
        progress=progress,
    )
    assert manifest is not None  # of one part
    return manifest
