"""Sets of images to measure: toy scenes, shards, a folder, ADM's file, reconstructions and samples, each one described.

A set tells what it is made of in JSON values (`description`), so that what was measured on it can be kept and found
again: equal descriptions mean equal images. No description names a path.

Legend: N images, B images of a batch, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli.data.ahead import ahead
from vq3dcli.data.arrays import ArrayHeader, npz_header, npz_rows, read_npz
from vq3dcli.data.images import SUFFIXES, read_image, resize, to_square
from vq3dcli.data.pillow import FORMATS
from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data.shard_reader import ShardFolder, require_images
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import sha256_bytes, sha256_file
from vq3dcli.pipelines.sampling.record import read_record
from vq3dcli.pipelines.sampling.sample import RECORD_NAME
from vq3dcli.rendering.cameras import pivot_camera
from vq3dcli.seeding import generator
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes

TOYSCENES = "toyscenes"
NO_CLASS = -1
_TOY_SCENES, _IMAGES = 256, 2048
_BATCH = 64
_MOST_PIXELS = 1 << 22  # of an image in a file of many: a batch of them takes 0.8 GB
_SCENES_LOOKED_AT = 4096


@dataclass(frozen=True)
class ImageSet:
    """Images that come in batches, as often as they are asked for."""

    name: str  # what a table calls them
    class_index: Tensor  # of each image, int64 `[N]`, below 0 for none
    class_names: tuple[str, ...]  # by class index
    description: Mapping[str, Any]  # what the images are, as JSON values; equal for equal images
    read: Callable[[int, int], Iterator[Tensor]]  # the images from one to before another, as `batches`
    step: int = _BATCH  # images that are made together: their bits are the same where `read` begins at multiples of it

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.class_index)

    def batches(self) -> Iterator[Tensor]:
        """Begin a new pass: uint8 `[B, 3, S, S]` on the CPU, in order."""
        return self.read(0, len(self))


def open_images(data: str, *, count: int | None, seed: int, size_px: int) -> ImageSet:
    """The images that `data` names, at a side of `size_px`, in an order that depends on the seed alone.

    Args:
        data: `toyscenes` (evaluation scenes, which no training sees), a folder of shards, a folder of images, whose
            folders in it are the classes, or an `.npz` file in ADM's format at that size.
        count: How many at most; None for 256 toy scenes and 2048 images.

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
    kinds = f"{TOYSCENES}, shards, a folder of images, or an .npz"
    if path.exists():
        raise DataError(f"not a data set ({data})", remedy=kinds)
    raise InputMissingError(f"no such data ({data})", remedy=kinds)


def toy_set(
    name: str,
    count: int,
    *,
    seed: int,
    purpose: str,
    size_px: int,
    first: int = 0,
    classes: Sequence[int] | None = None,
    yaw_deg: float = 0.0,
) -> ImageSet:
    """Exact toy scenes, drawn when they are asked for.

    Args:
        purpose: "eval" for scenes that no training has seen, "train" for those of training.
        first: How many scenes to pass over.
        yaw_deg: Of the camera around the pivot; 0 is the canonical view.
    """
    numbers, class_index = _toy_numbers(first + count, seed=seed, purpose=purpose, classes=classes)[:, first:]

    def draw(part: Tensor) -> Tensor:
        yaw_rad = torch.full((len(part),), np.deg2rad(yaw_deg), dtype=torch.float32)
        camera = pivot_camera(yaw_rad, torch.zeros_like(yaw_rad), height_px=size_px, width_px=size_px)
        return render_scenes(sample_scenes(part, seed=seed, purpose=purpose), camera).rgb

    def read(start: int, stop: int) -> Iterator[Tensor]:
        # Most operations on a batch are too small for PyTorch to split over its threads.
        yield from ahead(draw, numbers[start:stop].split(_BATCH), threads=torch.get_num_threads())

    description = {
        "kind": "toy scenes",
        "seed": seed,
        "purpose": purpose,
        "first": first,
        "count": count,
        "classes": None if classes is None else sorted(classes),
        "yaw_deg": yaw_deg,
        "size_px": size_px,
        "quantisation": "8 bits a channel",
        # Other code may draw other pictures of the same numbers.
        "first_image_sha256": sha256_bytes(draw(numbers[:1]).numpy().tobytes()),
    }
    return ImageSet(name, class_index, CLASS_NAMES, description, read)


def _toy_numbers(count: int, *, seed: int, purpose: str, classes: Sequence[int] | None) -> Tensor:
    """Numbers of the first `count` scenes of some classes, and their classes, int64 `[2, count]`."""
    parts: list[Tensor] = []
    wanted = torch.tensor(range(len(CLASS_NAMES)) if classes is None else classes)
    while sum(part.shape[1] for part in parts) < count:
        index = torch.arange(_SCENES_LOOKED_AT) + len(parts) * _SCENES_LOOKED_AT
        class_index = sample_scenes(index, seed=seed, purpose=purpose).class_index
        parts.append(torch.stack([index, class_index])[:, torch.isin(class_index, wanted)])
    return torch.cat(parts, 1)[:, :count]


def shard_set(name: str, folder: ShardFolder, rows: Tensor, *, size_px: int) -> ImageSet:
    """Images of the samples `rows` int64 `[N]` of a shard folder, whole, resized to `size_px` where they are larger.

    Raises `UsageError`: the images are smaller, or the folder holds labels.
    """
    stored = folder.manifest.stored_size
    require_images(folder, stored, size_px, "those to compare")
    description = {
        "kind": "shards",
        "manifest_sha256": folder.sha256,
        "count": len(rows),
        "rows_sha256": sha256_bytes(rows.numpy().tobytes()),
        "size_px": size_px,
        "resize": "none" if stored == size_px else f"{stored} to {size_px}, bicubic with antialiasing, to 8 bits",
        "quantisation": "8 bits a channel, as stored",
    }
    read = _reader(lambda i: resize(folder.image(i), size_px, size_px), rows.tolist())
    return ImageSet(name, folder.class_index[rows], tuple(folder.class_names), description, read)


def pick_rows(folder: ShardFolder, count: int | None, *, seed: int, classes: Sequence[str] | None) -> Tensor:
    """Numbers of at most `count` samples of a shard folder in random order, those of the named `classes` alone."""
    rows = torch.arange(folder.num_samples)
    if classes is not None:
        wanted = [number for number, name in enumerate(folder.class_names) if name in set(classes)]
        rows = rows[torch.isin(folder.class_index, torch.tensor(wanted, dtype=torch.int64))]
    return rows[torch.randperm(len(rows), generator=generator(seed, "evaluate-generation/rows"))[:count]]


def _some(total: int, count: int | None, seed: int, purpose: str) -> Tensor:
    """Numbers below `total`, ascending: all, or `count` at random."""
    if count is None or count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator(seed, purpose))[:count].sort().values


def folder_set(
    name: str,
    folder: Path,
    *,
    size_px: int | None = None,
    class_names: Sequence[str] | None = (),
    count: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """A folder of images, in the order of their names, folders in it included.

    What `vq3d sample` wrote is read by its record, which knows the classes; elsewhere the class is the folder that an
    image lies in. Images of another size than the first one's are cropped to the centre square and resized.

    Args:
        size_px: S; the first image's own size by default.
        class_names: Names of classes to know; others are none. None for all that there are.

    Raises `InputMissingError`: there is no such folder; `DataError`: it holds no image, or one that cannot be decoded.
    """
    if not folder.is_dir():
        raise InputMissingError(f"no such folder of images ({folder})", remedy="check the path")
    files = _files_of(folder)
    if not files:
        raise DataError(f"no images in this folder ({folder})", remedy=f"images as {', '.join(FORMATS)}")
    if class_names is None:
        class_names = sorted({text for _, text in files if text})
    files = [files[i] for i in _some(len(files), count, seed, "folder-set/files").tolist()]
    first = read_image(folder / files[0][0])
    side = size_px or min(first.shape[1:])
    known = {text.casefold(): number for number, text in enumerate(class_names)}
    class_index = torch.tensor([known.get(text.casefold(), NO_CLASS) for _, text in files], dtype=torch.int64)
    digest = sha256_bytes("".join(f"{sha256_file(folder / file)} {text}\n" for file, text in files).encode())
    description = {
        "kind": "folder",
        "listing_sha256": digest,
        "count": len(files),
        "size_px": side,
        "resize": "images of another size: the centre square, bicubic with antialiasing, to 8 bits",
        "quantisation": "as stored: "
        + ", ".join(f"{n} {s}" for s, n in sorted(Counter(Path(file).suffix.lower() for file, _ in files).items())),
        "classes": list(class_names),
    }
    read = _reader(lambda i: to_square(read_image(folder / files[i][0]), side, fit="crop"), range(len(files)))
    return ImageSet(name, class_index, tuple(class_names), description, read)


def _files_of(folder: Path) -> list[tuple[str, str]]:
    record = folder / RECORD_NAME
    if record.is_file():
        return [(sample.file, sample.class_name or "") for sample in read_record(record).samples]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [(str(p.relative_to(folder)), p.parent.name if p.parent != folder else "") for p in paths]


def npz_set(
    name: str, path: Path, *, class_names: Sequence[str] = (), count: int | None = None, seed: int = 0
) -> ImageSet:
    """Images of a file in ADM's format (Dhariwal and Nichol, 2021): `arr_0` uint8 `[N, H, W, 3]`, labels in `arr_1`.

    At most `count` images are chosen at random; `class_names` are by label.

    Raises `InputMissingError` or `DataError`: there is no such file, or it is another one.
    """
    images = npz_header(path, "arr_0")
    if images is None or not _are_adm_images(images):
        what = "no arr_0" if images is None else f"arr_0 is {images.dtype} {list(images.shape)}"
        raise DataError(f"not images in ADM's format ({path}): {what}", remedy="arr_0 as uint8 [N, height, width, 3]")
    total, height, width, _ = images.shape
    labels = read_npz(path, ["arr_1"]).get("arr_1")
    if labels is not None and (labels.shape != (total,) or labels.dtype.kind not in "iu"):
        raise DataError(
            f"not labels in ADM's format ({path}): arr_1 is {labels.dtype} {list(labels.shape)}",
            remedy=f"arr_1 as {total} whole numbers",
        )
    class_index = torch.full((total,), NO_CLASS)
    if labels is not None and class_names:
        class_index = torch.from_numpy(labels.astype(np.int64))
        class_index = torch.where((class_index >= 0) & (class_index < len(class_names)), class_index, NO_CLASS)
    rows = _some(total, count, seed, "npz-set/rows")
    chosen = {"rows_sha256": sha256_bytes(rows.numpy().tobytes())} if len(rows) < total else {}

    def read(start: int, stop: int) -> Iterator[Tensor]:
        pictures = npz_rows(path, "arr_0", rows[start:stop].tolist())
        while batch := list(itertools.islice(pictures, _BATCH)):
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()

    description = {
        "kind": "npz",
        "sha256": sha256_file(path),
        **chosen,
        "count": len(rows),
        "size_px": width if height == width else [height, width],
        "resize": "none",
        "quantisation": "8 bits a channel, as stored",
        "classes": list(class_names),
    }
    return ImageSet(name, class_index[rows], tuple(class_names), description, read)


def _are_adm_images(header: ArrayHeader) -> bool:
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.fortran_order:
        return False
    total, height, width, channels = header.shape
    return total > 0 and channels == 3 and 0 < height * width <= _MOST_PIXELS


def _reader(read: Callable[[int], Tensor], rows: Sequence[int]) -> Callable[[int, int], Iterator[Tensor]]:
    """Batches of images that are decoded in threads."""

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        parts = [rows[first : min(first + _BATCH, stop)] for first in range(start, stop, _BATCH)]
        yield from ahead(lambda part: torch.stack([read(i) for i in part]), parts)

    return batches
