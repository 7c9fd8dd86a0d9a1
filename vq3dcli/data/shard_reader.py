"""Reading shard folders: any sample in any order, by positional reads through the index, every byte checked."""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import io
import math
import re
import time
import weakref
from collections.abc import Collection
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data import jpeg_damage
from vq3dcli.data.images import decode_image
from vq3dcli.data.open_files import OpenFile, OpenFiles
from vq3dcli.data.shard_format import (
    DISPARITY_EXTENSION,
    DISPARITY_FOLDER,
    DISPARITY_INFO_EXTENSION,
    DISPARITY_LEVELS,
    IMAGE_EXTENSIONS,
    MANIFEST_NAME,
    SUMS_NAME,
    DisparityInfo,
    Manifest,
    Member,
    SampleEntry,
    parse_record,
    sample_key,
)
from vq3dcli.data.shard_index import PREPARE_AGAIN, FolderIndex, open_index
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import read_bytes, read_error, sha256_bytes
from vq3dcli.remote.cache import address, ensure, mirror_of

# What `encode_levels` writes: format 1.0, rows first.
_LEVELS = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d{1,5}), (\d{1,5})\), \} *\n",
    re.DOTALL,
)
# Bytes between two members that are read with them: less than a second read costs.
_GAP = 4096
# What network storage answers for a while: a file that was moved behind an open handle, a server that is away. Seconds
# until each further try.
_PASSING = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN}
_PAUSES = (0.1, 1.0, 5.0)
_LABEL_AGAIN = "vq3d depth-labels again, with --force"


_open_files = OpenFiles()


class Disparity(NamedTuple):
    """A label: `levels` uint16 `[h, w]`, and what is known about it."""

    levels: Tensor
    info: DisparityInfo

    @property
    def values(self) -> Tensor:
        """The disparity, float32 `[h, w]`."""
        return disparity_of(self.levels, self.info.lo, self.info.hi - self.info.lo)

    @property
    def relief(self) -> Tensor:
        """The disparity over its own range, float32 `[h, w]` in [0, 1]; 0 where it has none."""
        return disparity_of(self.levels, 0.0, float(self.info.hi > self.info.lo))


def disparity_of(levels: Tensor, lo: Tensor | float, extent: Tensor | float) -> Tensor:
    """Disparity float32 of levels of any shape."""
    # The quotient comes first: it is exactly 1 at the top level, so s never leaves [0, 1] by rounding.
    return levels.to(torch.float32) / DISPARITY_LEVELS * extent + lo


class ShardFolder:
    """A finished shard folder, or the mirror of one; threads may share one.

    Raises `InputMissingError`: not a shard folder, or an unfinished one; `DataError`: a damaged manifest; a damaged
    index, when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = mirror_of(path)
        if not path.is_dir():
            raise InputMissingError(f"no such folder of shards ({path})", remedy="check the path, or vq3d prepare-data")
        if not (path / MANIFEST_NAME).exists():
            raise InputMissingError(
                f"no finished shards ({path}): {MANIFEST_NAME} is missing",
                remedy="vq3d prepare-data into this folder, until it ends",
            )
        text = read_bytes(path / MANIFEST_NAME, PREPARE_AGAIN)
        self.manifest = parse_record(text, Manifest, name=str(path / MANIFEST_NAME), remedy=PREPARE_AGAIN)
        self.sha256 = sha256_bytes(text)  # of its manifest
        # Everything else is found from the manifest's hashes; its own is in the list of them all.
        ensure(path / SUMS_NAME)
        sums = read_bytes(path / SUMS_NAME, PREPARE_AGAIN)
        if f"{self.sha256}  {MANIFEST_NAME}\n".encode() not in sums:
            raise DataError(
                f"damaged manifest, or damaged {SUMS_NAME} ({path / MANIFEST_NAME})",
                remedy=f"vq3d inspect {path} --verify",
            )
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        self._tars = [path / f"{shard.name}.tar" for shard in self.manifest.shards]
        weakref.finalize(self, _open_files.forget, id(self))

    @property
    def num_samples(self) -> int:
        """Samples in the folder."""
        return self.manifest.num_samples

    @property
    def class_names(self) -> list[str]:
        """By class index."""
        return self.manifest.class_names

    @cached_property
    def index(self) -> FolderIndex:
        """Keys, classes and members of all samples."""
        return open_index(self.path, self.manifest, self.sha256)

    @property
    def keys(self) -> list[str]:
        """Keys of all samples in order."""
        return [sample_key(int(key)) for key in self.index.keys]

    @property
    def class_index(self) -> Tensor:
        """Class of each sample, int64 `[num_samples]`, -1 where it has none."""
        return torch.from_numpy(self.index.class_index.astype(np.int64))

    def entry(self, i: int) -> SampleEntry:
        """What the index says about sample `i`."""
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of {self.num_samples}")
        return self.index.entry(i)

    def name(self, i: int) -> str:
        """What messages call sample `i`."""
        return f"{self.path}, key {sample_key(int(self.index.keys[i]))}"

    def read(self, i: int, extensions: Collection[str] | None = None) -> dict[str, bytes]:
        """Members of sample `i` by extension, all or the named ones that it has.

        Raises `DataError`: the bytes are not those that were written; names the shard and the key; `InputMissingError`:
        there is no such shard.
        """
        entry = self.entry(i)
        wanted = {e: m for e, m in entry.members.items() if extensions is None or e in extensions}
        path = self._tars[self._shard_of(i)]
        pauses = iter(_PAUSES)
        while True:
            try:
                members = _read_members(_open_files.get(id(self), path), wanted)
                break
            except FileNotFoundError as error:
                if self.bring(i):
                    continue
                raise InputMissingError(f"no such shard ({path})", remedy=PREPARE_AGAIN) from error
            except OSError as error:
                pause = next(pauses, None) if error.errno in _PASSING else None
                if pause is None:
                    raise read_error(path, error) from error
            _open_files.forget(id(self))  # a handle that is stale stays so
            time.sleep(pause)
        for extension, data in members.items():
            if sha256_bytes(data) != wanted[extension].sha256:
                raise DataError(f"damaged shard ({path}, key {entry.key}, member {extension})", remedy=PREPARE_AGAIN)
        return members

    def _shard_of(self, i: int) -> int:
        return bisect.bisect_right(self._ends, i)

    def bring(self, i: int) -> bool:
        """Of a mirror fetch the shard of sample `i`, unless it is here; false for other folders.

        Raises `InputMissingError`, `UnavailableError`, `DataError` or `StorageError`: as `remote.fetch.fetch`.
        """
        number = self._shard_of(i)
        shard = self.manifest.shards[number]
        return ensure(self._tars[number], sha256=shard.sha256, size=shard.size)

    def image(self, i: int) -> Tensor:
        """The picture of sample `i`, uint8 `[3, T, T]`, T the stored side. Raises as `read`."""
        extension, side = self.image_extension(i), self.manifest.stored_size
        data = self.read(i, [extension])[extension]
        # At once, without Pillow's look at the header: what is stored has neither a profile nor another size.
        plain = jpeg_damage.decode(data, side, side, scratch=True) if jpeg_damage.is_jpeg(data) else None
        if plain is not None:
            return plain[0].contiguous()
        image = decode_image(data, name=self.name(i), apply_orientation=False)
        if image.shape[1:] != (side, side):
            raise DataError(f"stored image is not {side} x {side} pixels ({self.name(i)})", remedy=PREPARE_AGAIN)
        return image

    def disparity(self, i: int) -> Disparity:
        """Sample `i` of a folder of labels. Raises as `read`."""
        members, name = self.read(i, (DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION)), self.name(i)
        try:
            return decode_disparity(members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name=name)
        except KeyError as error:
            raise DataError(f"sample without a label ({name})", remedy=_LABEL_AGAIN) from error

    def image_extension(self, i: int) -> str:
        """Extension of the picture of sample `i`."""
        members = self.entry(i).members
        for extension in IMAGE_EXTENSIONS:
            if extension in members:
                return extension
        raise DataError(f"sample without an image ({self.name(i)})", remedy=PREPARE_AGAIN)

    def image_sha256(self, i: int) -> str:
        """Hash of the picture of sample `i`, by which labels know it."""
        return self.entry(i).members[self.image_extension(i)].sha256

    def close(self) -> None:
        """Close the open shards; they open again when they are read."""
        _open_files.forget(id(self))


def _read_members(file: OpenFile, members: dict[str, Member]) -> dict[str, bytes]:
    """Bytes of members; of those that lie together by one read."""
    start = min((m.offset for m in members.values()), default=0)
    stop = max((m.offset + m.size for m in members.values()), default=0)
    if stop - start > sum(m.size for m in members.values()) + _GAP:
        return {extension: file.read(m.offset, m.size) for extension, m in members.items()}
    data = file.read(start, stop - start)
    return {e: data[m.offset - start : m.offset - start + m.size] for e, m in members.items()}


def open_images(path: Path, *, least_px: int = 1, of: str = "") -> ShardFolder:
    """A shard folder of images, of a side of at least `least_px` for training, which `of` names in the message.

    Raises `UsageError`: it holds labels, or the images are smaller; else as `ShardFolder`.
    """
    folder = ShardFolder(path)
    require_images(folder, folder.manifest.image_size, least_px, of)
    return folder


def require_images(folder: ShardFolder, side_px: int, least_px: int, of: str) -> None:
    """Raise `UsageError` for a folder of labels, and for images of fewer pixels a side than what `of` names."""
    if folder.manifest.kind != "images":
        raise UsageError(f"holds labels, not images ({folder.path})", remedy="the shard folder above it")
    if least_px > side_px:
        raise UsageError(
            f"the images are smaller ({side_px}) than {of} ({least_px}) ({folder.path})",
            remedy=f"vq3d prepare-data with --size {least_px}",
        )


class LabelFolder:
    """The disparity labels `name` of a shard folder.

    Raises `InputMissingError`: there are none of that name, or they are unfinished; names those that there are;
    `DataError`: they are damaged, or were made for other images.
    """

    def __init__(self, images: ShardFolder, name: str) -> None:
        self._images = images
        model = f"MODEL --name {name}"
        if name == "exact":  # which only data with a disparity of their own can have
            model = name if images.manifest.own_disparity else "MODEL"
        self._remedy = f"vq3d depth-labels {address(images.path) or images.path} --model {model}"
        path = label_folder(images.path, name)
        with contextlib.suppress(InputMissingError):
            path = mirror_of(path)
        if not (path / MANIFEST_NAME).is_file():
            raise self._missing(name)
        self.shards = ShardFolder(path)  # where they lie
        self.sha256 = self.shards.sha256  # of their manifest
        if self.shards.manifest.options.get("images_manifest_sha256") not in (None, images.sha256):
            raise DataError(f"labels of other images ({path})", remedy=f"{self._remedy} --force")
        self.kind = self.shards.disparity(0).info.kind if len(self) else "relative"  # of all labels

    def _missing(self, name: str) -> InputMissingError:
        there = labels_there(self._images.path)
        listed = ", ".join(f"{known}" if finished else f"{known} (unfinished)" for known, finished in there.items())
        others = f"; the labels there: {listed}" if there else "; there are none"
        if name in there:
            what = f"the disparity labels {name} are unfinished ({label_folder(self._images.path, name)})"
            return InputMissingError(what + (others if len(there) > 1 else ""), remedy=f"{self._remedy}, until it ends")
        finished = [f"--labels {known}" for known, ended in there.items() if ended]
        return InputMissingError(
            f"no disparity labels called {name} ({self._images.path}){others}",
            remedy=", or ".join([*finished, self._remedy]),
        )

    def __len__(self) -> int:
        return self.shards.num_samples

    def bring(self, i: int) -> None:
        """Of a mirror fetch the shard of the label of image sample `i`. Raises as `ShardFolder.bring`."""
        position = self.shards.index.position(int(self._images.index.keys[i]))
        if position is not None:
            self.shards.bring(position)

    def read(self, i: int) -> Disparity | None:
        """The label of image sample `i`; None if there is none, or if it is flagged (`DisparityInfo.flags`)."""
        position = self.shards.index.position(int(self._images.index.keys[i]))
        if position is None:
            return None
        label, name = self.shards.disparity(position), self.shards.name(position)
        if label.info.sha256 != self._images.image_sha256(i):
            raise DataError(f"labels of another image ({name})", remedy=f"{self._remedy} --force")
        if label.info.kind != self.kind:
            raise DataError(
                f"a {label.info.kind} label among {self.kind} ones ({name})", remedy=f"{self._remedy} --force"
            )
        return None if label.info.flags else label


def labels_there(images: Path) -> dict[str, bool]:
    """Names of the disparity labels of a shard folder, sorted, and whether they are finished."""
    parent = images / DISPARITY_FOLDER
    folders = sorted(parent.iterdir()) if parent.is_dir() else []
    return {f.name: (f / MANIFEST_NAME).is_file() for f in folders if f.is_dir() and not f.name.startswith(".")}


def label_folder(images: Path, name: str) -> Path:
    """Where the labels `name` of the shard folder `images` lie."""
    return images / DISPARITY_FOLDER / name


def decode_disparity(array: bytes, info: bytes, *, name: str) -> Disparity:
    """A label from the bytes of its two members. Raises `DataError`."""
    record = parse_record(info, DisparityInfo, name=name, remedy=_LABEL_AGAIN)
    return Disparity(decode_levels(array, name=name), record)


def decode_levels(array: bytes, *, name: str) -> Tensor:
    """Levels uint16 `[h, w]` from the bytes of a `.npy` file. Raises `DataError`; never unpickles."""
    # numpy's own reader takes archives and any shape, and gives memory before it looks at the data.
    head = _LEVELS.match(array)
    shape = (int(head[1]), int(head[2])) if head else (0, 0)
    if head is None or not all(shape) or len(array) - head.end() != 2 * math.prod(shape):
        raise DataError(f"disparity is not a uint16 image ({name})", remedy=_LABEL_AGAIN)
    return torch.from_numpy(np.frombuffer(array, "<u2", offset=head.end()).reshape(shape).copy())


def encode_levels(levels: Tensor) -> bytes:
    """Bytes of a uint16 `.npy` file of integer levels 0..65535 `[h, w]`."""
    buffer = io.BytesIO()
    np.save(buffer, levels.cpu().contiguous().numpy().astype(np.uint16), allow_pickle=False)
    return buffer.getvalue()


def resize_label(values: Tensor, side: int) -> Tensor:
    """Nearest neighbour: a mixture of near and far across an edge would be a surface that is nowhere."""
    if values.shape == (side, side):
        return values
    rows, columns = (_nearest(size, side) for size in values.shape)
    return values.index_select(0, rows).index_select(1, columns)  # brackets take no uint16 before torch 2.9


@functools.lru_cache(maxsize=16)
def _nearest(size: int, side: int) -> Tensor:
    """Which of `size` places is nearest to each of `side`."""
    places = torch.arange(size, dtype=torch.float32)[None, None]
    return functional.interpolate(places, size=side, mode="nearest-exact")[0, 0].long()
