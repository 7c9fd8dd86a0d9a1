"""Reading shard folders: any sample in any order, by positional reads through the index, every byte checked."""

from __future__ import annotations

import bisect
import io
import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
    ShardEntry,
    ShardIndex,
    has_views,
    parse_record,
    read_record_bytes,
)
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import read_error, sha256_bytes, sha256_file

# What `encode_levels` writes: format 1.0, rows first.
_LEVELS = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d{1,5}), (\d{1,5})\), \} *\n",
    re.DOTALL,
)
PREPARE_AGAIN = "vq3d prepare-data again, for labels vq3d depth-labels, with --force if need be"


class _OpenFiles:
    """The shards that all folders of this process hold open: the longest unused one closes for the next."""

    MOST = 192  # of the 256 that macOS allows a process

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[int, Path], io.FileIO] = OrderedDict()
        self._lock = threading.Lock()

    def read_at(self, folder: int, path: Path, offset: int, size: int) -> bytes:
        """Read from a file as the folder object of that number opened it: since then it may have been replaced."""
        # The lock also keeps a file from being closed by another thread between looking it up and reading it.
        with self._lock:
            key = folder, path
            if key not in self._files:
                if len(self._files) >= self.MOST:
                    self._files.popitem(last=False)[1].close()
                self._files[key] = io.FileIO(path)
            self._files.move_to_end(key)
            descriptor = self._files[key].fileno()
            there = os.fstat(descriptor).st_size - offset  # of a cut shard, or of a size that nobody should believe
            return os.pread(descriptor, max(0, min(size, there)), offset)

    def close(self, folder: int) -> None:
        with self._lock:
            for key in [key for key in self._files if key[0] == folder]:
                self._files.pop(key).close()


_open_files = _OpenFiles()


class Disparity(NamedTuple):
    """A label: `values` float32 `[h, w]`, and what is known about it."""

    values: Tensor
    info: DisparityInfo


class ShardFolder:
    """A finished shard folder; threads may share one.

    Args:
        path: The folder that holds `manifest.json`.

    Attributes:
        manifest: What the folder holds.

    Raises:
        InputMissingError: Not a shard folder, or an unfinished one.
        DataError: A damaged manifest or index, when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise InputMissingError(f"no such folder of shards ({path})", remedy="check the path, or vq3d prepare-data")
        if not (path / MANIFEST_NAME).exists():
            raise InputMissingError(
                f"no finished shards ({path}): {MANIFEST_NAME} is missing",
                remedy="vq3d prepare-data into this folder, until it ends",
            )
        text = read_record_bytes(path / MANIFEST_NAME, PREPARE_AGAIN)
        self.manifest = parse_record(text, Manifest, name=str(path / MANIFEST_NAME), remedy=PREPARE_AGAIN)
        # Everything else is found from the manifest's hashes; its own is in the list of them all.
        sums = read_record_bytes(path / SUMS_NAME, PREPARE_AGAIN)
        if f"{sha256_bytes(text)}  {MANIFEST_NAME}\n".encode() not in sums:
            raise DataError(
                f"damaged manifest, or damaged {SUMS_NAME} ({path / MANIFEST_NAME})",
                remedy=f"vq3d inspect {path} --verify",
            )
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        self._indices: dict[int, ShardIndex] = {}
        weakref.finalize(self, _open_files.close, id(self))

    @property
    def num_samples(self) -> int:
        """Samples in the folder."""
        return self.manifest.num_samples

    @property
    def class_names(self) -> list[str]:
        """By class index."""
        return self.manifest.class_names

    @cached_property
    def keys(self) -> list[str]:
        """Keys of all samples in order; reads every index."""
        return [entry.key for shard in range(len(self._ends)) for entry in self.index(shard).samples]

    @cached_property
    def class_index(self) -> Tensor:
        """Class of each sample, int64 `[num_samples]`, -1 where it has none; reads every index."""
        entries = (entry for shard in range(len(self._ends)) for entry in self.index(shard).samples)
        return torch.tensor([-1 if e.class_index is None else e.class_index for e in entries], dtype=torch.int64)

    def index(self, shard: int) -> ShardIndex:
        """The index of shard number `shard` in the manifest's order."""
        if shard not in self._indices:
            listed = self.manifest.shards[shard]
            path = self.path / f"{listed.name}.index.json"
            text = read_record_bytes(path, PREPARE_AGAIN)
            if sha256_bytes(text) != listed.index_sha256:
                raise DataError(f"damaged index ({path})", remedy=PREPARE_AGAIN)
            index = parse_record(text, ShardIndex, name=str(path), remedy=PREPARE_AGAIN)
            _check_index(index, listed, self.manifest, path)
            self._indices[shard] = index
        return self._indices[shard]

    def locate(self, i: int) -> tuple[int, int]:
        """Shard number of sample `i` and its place in that shard."""
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of {self.num_samples}")
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def entry(self, i: int) -> SampleEntry:
        """What the index says about sample `i`."""
        shard, place = self.locate(i)
        return self.index(shard).samples[place]

    def read(self, i: int, extensions: Collection[str] | None = None) -> dict[str, bytes]:
        """Members of sample `i` by extension, all or the named ones that it has.

        Raises:
            DataError: The bytes are not those that were written; names the shard and the key.
        """
        shard, place = self.locate(i)
        entry = self.index(shard).samples[place]
        wanted = entry.members if extensions is None else {e: m for e, m in entry.members.items() if e in extensions}
        return {extension: self._member(shard, entry.key, extension, m) for extension, m in wanted.items()}

    def image_extension(self, i: int) -> str:
        """Extension of the image of sample `i`."""
        entry = self.entry(i)
        for extension in IMAGE_EXTENSIONS:
            if extension in entry.members:
                return extension
        raise DataError(f"sample without an image ({self.path}, key {entry.key})", remedy=PREPARE_AGAIN)

    def close(self) -> None:
        """Close the open shards; they open again when they are read."""
        _open_files.close(id(self))

    def _member(self, shard: int, key: str, extension: str, member: Member) -> bytes:
        data = self._read_at(shard, member.offset, member.size)
        if sha256_bytes(data) != member.sha256:
            name = self.path / f"{self.manifest.shards[shard].name}.tar"
            raise DataError(f"damaged shard ({name}, key {key}, member {extension})", remedy=PREPARE_AGAIN)
        return data

    def _read_at(self, shard: int, offset: int, size: int) -> bytes:
        path = self.path / f"{self.manifest.shards[shard].name}.tar"
        try:
            return _open_files.read_at(id(self), path, offset, size)
        except FileNotFoundError as error:
            raise InputMissingError(f"no such shard ({path})", remedy=PREPARE_AGAIN) from error
        except OSError as error:
            raise read_error(path, error) from error


def _check_index(index: ShardIndex, listed: ShardEntry, manifest: Manifest, path: Path) -> None:
    """Raise `DataError` for what hashes cannot tell: an index that goes neither with its manifest nor with itself."""
    wrong, classes = None, len(manifest.class_names)
    if (index.name, index.size, len(index.samples)) != (listed.name, listed.size, listed.samples):
        wrong = "not the shard that the manifest lists"
    elif any(m.offset + m.size > index.size for sample in index.samples for m in sample.members.values()):
        wrong = "members beyond the end of the shard"
    elif any(sample.class_index is not None and sample.class_index >= classes for sample in index.samples):
        wrong = f"classes beyond {classes}"
    elif not all(has_views(sample, manifest.views) for sample in index.samples):
        wrong = f"samples without the {manifest.views} views of the manifest"
    if wrong is not None:
        raise DataError(f"damaged index ({path}): {wrong}", remedy=PREPARE_AGAIN)


class LabelFolder:
    """The disparity labels `name` of a shard folder; `None` for samples that have none, or one that is of no use.

    Attributes:
        kind: Of all labels.
        sha256: Of their manifest.

    Raises:
        InputMissingError: There are none of that name, or they are unfinished; names those that there are.
        DataError: They are damaged, or were made for other images.
    """

    def __init__(self, images: ShardFolder, name: str) -> None:
        self._images = images
        model = f"MODEL --name {name}"
        if name == "exact":  # which only data with a disparity of their own can have
            model = name if images.manifest.own_disparity else "MODEL"
        self._remedy = f"vq3d depth-labels {images.path} --model {model}"
        path = label_folder(images.path, name)
        if not (path / MANIFEST_NAME).is_file():
            raise self._missing(name)
        self._labels = ShardFolder(path)
        self.sha256 = sha256_file(path / MANIFEST_NAME)
        made_for = self._labels.manifest.options.get("images_manifest_sha256")
        if made_for not in (None, sha256_file(images.path / MANIFEST_NAME)):
            raise DataError(f"labels of other images ({path})", remedy=f"{self._remedy} --force")
        self._position = {key: i for i, key in enumerate(self._labels.keys)}
        self.kind = self._read(0, str(path)).info.kind if len(self) else "relative"

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
        return self._labels.num_samples

    def read(self, i: int) -> Disparity | None:
        """The label of image sample `i`; None if there is none, or if it is flagged (`DisparityInfo.flags`)."""
        entry = self._images.entry(i)
        position = self._position.get(entry.key)
        if position is None:
            return None
        name = f"{self._labels.path}, key {entry.key}"
        label = self._read(position, name)
        if label.info.sha256 != entry.members[self._images.image_extension(i)].sha256:
            raise DataError(f"labels of another image ({name})", remedy=f"{self._remedy} --force")
        if label.info.kind != self.kind:
            raise DataError(
                f"a {label.info.kind} label among {self.kind} ones ({name})", remedy=f"{self._remedy} --force"
            )
        return None if label.info.flags else label

    def _read(self, position: int, name: str) -> Disparity:
        members = self._labels.read(position)
        return decode_disparity(members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name=name)


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
    record = parse_record(info, DisparityInfo, name=name, remedy="vq3d depth-labels again, with --force")
    levels = decode_levels(array, name=name)
    # The quotient comes first: it is exactly 1 at the top level, so s never leaves [0, 1] by rounding.
    values = levels.to(torch.float32) / DISPARITY_LEVELS * (record.hi - record.lo) + record.lo
    return Disparity(values, record)


def decode_levels(array: bytes, *, name: str) -> Tensor:
    """Levels 0..65535 as int32 `[h, w]` from the bytes of a uint16 `.npy` file. Raises `DataError`; never unpickles."""
    remedy = "vq3d depth-labels again, with --force"
    # numpy's own reader takes archives and any shape, and gives memory before it looks at the data.
    head = _LEVELS.match(array)
    shape = (int(head[1]), int(head[2])) if head else (0, 0)
    if head is None or not all(shape) or len(array) - head.end() != 2 * math.prod(shape):
        raise DataError(f"disparity is not a uint16 image ({name})", remedy=remedy)
    levels = np.frombuffer(array, "<u2", offset=head.end()).reshape(shape)
    return torch.from_numpy(levels.astype(np.int32))


def encode_levels(levels: Tensor) -> bytes:
    """Bytes of a uint16 `.npy` file of integer levels 0..65535 `[h, w]`."""
    buffer = io.BytesIO()
    np.save(buffer, levels.cpu().contiguous().numpy().astype(np.uint16), allow_pickle=False)
    return buffer.getvalue()


def resize_label(values: Tensor, side: int) -> Tensor:
    """Nearest neighbour: a mixture of near and far across an edge would be a surface that is nowhere."""
    if values.shape == (side, side):
        return values
    return functional.interpolate(values[None, None], size=(side, side), mode="nearest-exact")[0, 0]
