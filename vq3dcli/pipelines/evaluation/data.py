"""Which images an evaluation looks at: toy scenes, shards, a folder of photos or ADM's file, by one text."""

from __future__ import annotations

from pathlib import Path

import torch

from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, folder_set, npz_set, pick_rows, shard_set, toy_set

TOYSCENES = "toyscenes"
_TOY_SCENES, _IMAGES = 256, 2048


def open_images(data: str, *, count: int | None, seed: int, size_px: int) -> ImageSet:
    """The images that `data` names, at a side of `size_px`, in an order that depends on the seed alone.

    Args:
        data: `toyscenes` (evaluation scenes, which no training sees), a folder of shards, a folder of images, whose
            folders in it are the classes, or an `.npz` file in ADM's format at that size.
        count: How many at most; None for 256 toy scenes and 2048 images.
        seed: Of toy scenes and of the choice.
        size_px: S.

    Raises:
        InputMissingError: There is nothing of that name.
        DataError, UsageError: It holds no images, damaged ones, or others than are needed.
    """
    path = Path(data)
    if data == TOYSCENES:
        return toy_set("toy scenes", count or _TOY_SCENES, seed=seed, purpose="eval", size_px=size_px)
    count = count or _IMAGES
    if (path / MANIFEST_NAME).is_file():
        folder = ShardFolder(path)
        rows = pick_rows(folder, count, seed=seed, classes=None)
        if not len(rows):
            raise DataError(f"no samples in these shards ({path})", remedy="other shards")
        return shard_set("images of shards", folder, rows.sort().values, size_px=size_px)
    if path.is_dir():
        return folder_set("images of a folder", path, size_px=size_px, class_names=None, count=count, seed=seed)
    if path.suffix.lower() == ".npz":
        images = npz_set("images of a file", path, count=count, seed=seed)
        if images.description["size_px"] != size_px:
            raise DataError(
                f"images of {images.description['size_px']} pixels, and the weights take {size_px} ({path})",
                remedy="a folder of images, which are resized, or other weights",
            )
        return images
    if path.exists():
        raise DataError(f"not a data set ({data})", remedy=f"{TOYSCENES}, shards, a folder of images, or an .npz")
    raise InputMissingError(f"no such data ({data})", remedy=f"{TOYSCENES}, shards, a folder of images, or an .npz")


def classes_of(images: ImageSet) -> dict[str, torch.Tensor]:
    """Numbers of the images of each class, those that have one, by the class's name in the order of its index."""
    return {
        name: (images.class_index == index).nonzero()[:, 0]
        for index, name in enumerate(images.class_names)
        if (images.class_index == index).any()
    }
