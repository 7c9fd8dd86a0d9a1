"""Photos for the surfaces of toy scenes, from shards, a folder or a tar of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.data.ahead import ahead
from vq3dcli.data.images import decode_square, resize
from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder, open_images
from vq3dcli.data.stream import evenly
from vq3dcli.data_tools.sources.entry import Entry
from vq3dcli.data_tools.sources.folder import folder_source
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.toyscenes.photos import SIDE_PX, PhotoBank

MAX_PHOTOS = 2000  # 130 MB of texels

_log = logging.getLogger(__name__)


def read_photo_bank(path: Path, *, leave_out: Path) -> PhotoBank:
    """The centre squares of photos, at most MAX_PHOTOS of them, evenly spread over all.

    `path` is a shard folder, a folder of images, or a tar of images; files that are no images are passed over.

    Raises `InputMissingError`: there is nothing; `DataError`: there is no image; `UsageError`: the shards hold labels.
    """
    readers: list[Callable[[], Tensor | None]]
    if (path / MANIFEST_NAME).is_file():
        folder = open_images(path)
        readers = [partial(_shown, folder, i) for i in range(folder.num_samples)]
    else:
        entries = folder_source(path, leave_out=leave_out, classes="none").entries
        readers = [partial(_decoded, entry) for entry in entries if not entry.reject]
    chosen = [readers[i] for i in evenly(len(readers), MAX_PHOTOS)]
    if len(readers) > MAX_PHOTOS:
        _log.info("%d of the %d photos are used", MAX_PHOTOS, len(readers))
    photos = [photo for photo in ahead(lambda read: read(), chosen) if photo is not None]
    if not photos:
        raise DataError(f"no photos in it ({path})", remedy="a folder of images, or shards of vq3d prepare-data")
    if len(photos) < len(chosen):
        _log.warning("%d of %d files are no photos (%s)", len(chosen) - len(photos), len(chosen), path)
    return PhotoBank(torch.stack(photos))


def _shown(folder: ShardFolder, i: int) -> Tensor:
    return resize(folder.image(i), SIDE_PX, SIDE_PX)


def _decoded(entry: Entry) -> Tensor | None:
    try:
        return decode_square(Reader().read(entry.place), SIDE_PX, name=entry.path).image.contiguous()
    except (DataError, InputMissingError):  # also a link to nowhere
        return None
