"""A contact sheet of photos beside their disparity labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.data.images import decode_image, encode_png, resize
from vq3dcli.data.shard_format import DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION
from vq3dcli.data.shard_reader import ShardFolder, decode_disparity, label_folder
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import make_folder, write_bytes

_CELL_PX = 128
_COUNT = 32
_COLUMNS = 4  # pairs


def write_preview(shards: Path, name: str, path: Path, *, count: int = _COUNT) -> None:
    """Write a PNG of up to `count` images, evenly spread over the data set, each with its label.

    Near is pale, far is dark, each label over its own range; what is wrong with a label stands above it.

    Args:
        shards: A finished shard folder of images.
        name: Of the labels, which are finished too.
    """
    images, labels = ShardFolder(shards), ShardFolder(label_folder(shards, name))
    position = {key: i for i, key in enumerate(labels.keys)}
    total = images.num_samples
    chosen = [i for i in sorted({k * total // count for k in range(count)}) if images.entry(i).key in position]
    cells: list[Tensor] = []
    texts: list[str] = []
    for i in chosen:
        key = images.entry(i).key
        picture = _picture(images, i)
        members = labels.read(position[key])
        label = decode_disparity(
            members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name=f"{labels.path}, key {key}"
        )
        lo, hi = label.info.lo, label.info.hi
        shown = colour_map((label.values - lo) / (hi - lo) if hi > lo else torch.zeros_like(label.values))
        cells.append(torch.cat([picture, resize(shown, _CELL_PX, _CELL_PX)], dim=-1))
        texts.append(" ".join([key, *label.info.flags]))
    if cells:
        make_folder(path.parent)
        write_bytes(path, encode_png(grid(cells, _COLUMNS, labels=texts)))


def _picture(images: ShardFolder, i: int) -> Tensor:
    extension = images.image_extension(i)
    name = f"{images.path}, key {images.entry(i).key}"
    image = decode_image(images.read(i, [extension])[extension], name=name, apply_orientation=False)
    return resize(image, _CELL_PX, _CELL_PX)
