"""The training loader: an endless stream of samples that can start at any position.

Which sample stands at position p is said by `data.stream`; its crop and flip depend only on (seed, p). So a run resumes
by images seen, and the stream does not depend on the number of ranks, on the batch size, or on threads.

Legend: B samples of this rank, n samples in all folders, S side of the training images in pixels.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.data.ahead import ahead
from vq3dcli.data.images import resize
from vq3dcli.data.shard_format import stored_size
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder, disparity_of, open_images, resize_label
from vq3dcli.data.stream import Stream, rows_of_rank
from vq3dcli.data.views import View, Views, gather_views, mirrored, read_views
from vq3dcli.errors import DataError, InputMissingError, StorageError, UsageError, Vq3dError
from vq3dcli.files import sha256_bytes
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, LABEL_RELATIVE
from vq3dcli.remote.cache import address, require_room
from vq3dcli.seeding import uniform

LABEL_KIND = {"none": LABEL_NONE, "metric": LABEL_METRIC, "relative": LABEL_RELATIVE}
CACHE_BYTES = 1 << 30
# Of a decoded sample: three bytes of colour and two of label.
CACHED_BYTES_A_PIXEL = 5


@dataclass(frozen=True)
class Batch:
    """Samples of one step on one rank."""

    image: Tensor  # uint8 `[B, 3, S, S]`
    # disparity labels float32 `[B, S, S]` at the image's pixels, in [0, 1] where metric; zeros where unlabelled
    s: Tensor
    label_kind: Tensor  # int8 `[B]`, see `LABEL_KIND`
    class_index: Tensor  # index into the loader's class names, int64 `[B]`, -1 for no class
    index: Tensor  # positions in the endless stream, int64 `[B]`
    keys: list[str]  # `folder/key` of each sample, for messages
    views: Views | None = None  # exact pictures from other cameras, where the loader was asked for them


class _Sample(NamedTuple):
    """One sample: image uint8 `[3, T, T]`; levels uint16 `[T, T]`, see `disparity_of`."""

    image: Tensor
    levels: Tensor
    lo: float
    extent: float
    label_kind: int
    class_index: int
    key: str


class TrainingLoader:
    """Batches from one or several shard folders, which together are one data set.

    Args:
        folders: Shard folders of kind `images`.
        labels: Name of the disparity labels (`disparity/NAME`) of all folders, or one for each; None for a folder
            without.
        batch_size: Of all ranks together.
        size: S. Larger stored images are resized, so that a crop has the same margin at any size.
        shares: Of the stream, one a folder, see `data.stream.Stream`; None mixes the folders by their samples.
        crop: Cut at a random place of images that were stored with a margin; otherwise the whole image is resized.
        rank: This process takes rows `rank * B ... (rank + 1) * B - 1` of each global batch.
        world_size: Number of processes; must divide `batch_size`.
        cache_bytes: Decoded samples are kept in memory if all of them fit into this.
        views: Views a sample that a batch holds, at most; a sample with more gets different ones at every position.
        max_bad: Fraction of the samples, rounded up, that may be damaged: in their places stand the next in the folder.

    Attributes:
        bad: Names of damaged samples that were met, and what is wrong with them. All ranks may share what they met.
        num_with_views: Samples that have views, over all folders.
        sha256: Of what the stream is made of: the manifests of images and labels, in the order of the folders.
        class_names: Union of the folders' classes, in the order of first appearance.

    Raises `InputMissingError`, `DataError` or `UsageError`: at once for what is missing or contradicts, labels
    included; `DataError` and `StorageError` from `batches` for more damaged samples than may be, naming shard and key.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        labels: str | Sequence[str | None] | None = "exact",
        batch_size: int,
        size: int,
        seed: int,
        shares: Sequence[float] | None = None,
        flip: bool,
        crop: bool,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int = CACHE_BYTES,
        views: int = 0,
        max_bad: float = 0.0,
    ) -> None:
        self._rows = rows_of_rank(batch_size, rank, world_size)
        self._folders = [open_images(folder, least_px=size, of="the training size") for folder in folders]
        names = _label_names(labels, len(folders))
        self.labels = tuple(name or "none" for name in names)  # name of each folder's labels, `none` for those without
        self._labels = _open_labels(self._folders, names)
        self.num_samples = sum(folder.num_samples for folder in self._folders)  # n
        if self.num_samples == 0:
            raise DataError(f"no samples in {', '.join(map(str, folders)) or 'no folders'}", remedy="other folders")
        self.num_with_views = sum(folder.num_samples for folder in self._folders if folder.manifest.views)
        self._stream = Stream([folder.num_samples for folder in self._folders], seed, shares)
        there = [label for label in self._labels if label is not None]
        self.num_labelled = sum(map(len, there))  # samples with a label, over all folders
        self.metric_labels = any(label.kind == "metric" for label in there)  # whether any labels are metric
        manifests = [
            (images.sha256, label.sha256 if label else "")
            for images, label in zip(self._folders, self._labels, strict=True)
        ]
        self.sha256 = sha256_bytes(json.dumps(manifests).encode())
        self.class_names = list(dict.fromkeys(name for folder in self._folders for name in folder.class_names))
        self._class_of = [[*map(self.class_names.index, folder.class_names), -1] for folder in self._folders]
        self._size, self._seed, self._flip, self._views = size, seed, flip, views
        self.batch_size = batch_size
        self.bad: dict[str, str] = {}
        self._most_bad, self._bad_lock = math.ceil(max_bad * self.num_samples), threading.Lock()
        # The sides T at which samples are decoded leave the room for crops.
        self._sides = [stored_size(size, folder.manifest.margin) if crop else size for folder in self._folders]
        pixels = sum(f.num_samples * side**2 for f, side in zip(self._folders, self._sides, strict=True))
        self._cache: dict[tuple[int, int], _Sample] | None = (
            {} if pixels * CACHED_BYTES_A_PIXEL <= cache_bytes else None
        )
        # All of them are read in any order: a cache that does not hold them would fetch a shard a sample.
        read = [*self._folders, *(label.shards for label in there)]
        require_room(sum(s.size for folder in read if address(folder.path) for s in folder.manifest.shards))
        for folder in self._folders:
            _ = folder.index  # damage is found here, not in the first step

    def batches(self, images_seen: int) -> Iterator[Batch]:
        """This rank's rows of the global batches from position `images_seen` on, endless, made ahead in threads."""
        return ahead(self.batch_at, itertools.count(images_seen, self.batch_size))

    def batch_at(self, images_seen: int) -> Batch:
        """This rank's rows of the global batch that starts at position `images_seen`."""
        position = torch.arange(images_seen, images_seen + self.batch_size)[self._rows]
        place = uniform(self._seed, "crop", position, 2)
        flipped = uniform(self._seed, "flip", position, 1)[:, 0] < 0.5 if self._flip else torch.zeros(len(position)) > 0
        first = uniform(self._seed, "view", position, 1)[:, 0]
        rows = [
            self._row(int(position[row]), place[row], bool(flipped[row]), float(first[row]))
            for row in range(len(position))
        ]
        samples = [sample for sample, _ in rows]
        views = gather_views([found for _, found in rows], self._size) if self._views else None
        kinds = torch.tensor([sample.label_kind for sample in samples], dtype=torch.int8)
        s = torch.zeros(len(samples), self._size, self._size)
        if bool((kinds != LABEL_NONE).any()):
            lo, extent = torch.tensor([(sample.lo, sample.extent) for sample in samples])[..., None, None].unbind(1)
            s = disparity_of(torch.stack([sample.levels for sample in samples]), lo, extent)
        return Batch(
            image=torch.stack([sample.image for sample in samples]),
            s=s,
            label_kind=kinds,
            class_index=torch.tensor([sample.class_index for sample in samples]),
            index=position,
            keys=[sample.key for sample in samples],
            views=views,
        )

    def _row(self, position: int, place: Tensor, flipped: bool, first: float) -> tuple[_Sample, list[View]]:
        """The sample at a position and its views, or the next of its folder that is whole: the same on any rank."""
        folder, start = self._stream.at(position)
        images, labels = self._folders[folder], self._labels[folder]
        for i in itertools.chain(range(start, images.num_samples), range(start)):
            if self._cache is None or (folder, i) not in self._cache:  # a shard that does not come is no bad sample
                images.bring(i)
                if labels is not None:
                    labels.bring(i)
            try:
                return self._sample(folder, i, place, flipped), self._views_of(folder, i, first, flipped)
            except (DataError, StorageError) as error:
                self._pass_over(images.name(i), error)
        raise DataError(f"no sample is whole ({images.path})", remedy=f"vq3d inspect {images.path} --verify")

    def _pass_over(self, name: str, error: Vq3dError) -> None:
        """Count a damaged sample; raise what is wrong with it where there are more than may be."""
        with self._bad_lock:
            self.bad.setdefault(name, error.message)
            if len(self.bad) <= self._most_bad:
                return
        more = f"{len(self.bad)} bad samples, more than training.max_bad allows; the last: " if self._most_bad else ""
        enough = f"--set training.max_bad={min(2 * len(self.bad) / self.num_samples, 1.0):.2g}"
        raise type(error)(f"{more}{error.message}", remedy=f"{error.remedy}, or {enough}") from error

    def _views_of(self, folder: int, i: int, first: float, flipped: bool) -> list[View]:
        images = self._folders[folder]
        there = images.manifest.views
        numbers = [(int(first * there) + k) % there for k in range(min(self._views, there))]
        views = read_views(images, i, numbers, self._size) if numbers else []
        return [mirrored(view) for view in views] if flipped else views

    def _sample(self, folder: int, i: int, place: Tensor, flipped: bool) -> _Sample:
        sample = None if self._cache is None else self._cache.get((folder, i))
        if sample is None:
            sample = self._decode(folder, i)
            if self._cache is not None:
                self._cache[folder, i] = sample
        # The same window and mirror for image and label. The top place is 1 - 2^-24, so the window never sticks out.
        top, left = (place * (sample.levels.shape[0] - self._size + 1)).to(torch.int64).tolist()
        window = (..., slice(top, top + self._size), slice(left, left + self._size))
        image, levels = sample.image[window], sample.levels[window]
        if flipped:
            # As int16: torch 2.8 flips no uint16.
            image, levels = image.flip(-1), levels.view(torch.int16).flip(-1).view(torch.uint16)
        return sample._replace(image=image, levels=levels)

    def _decode(self, folder: int, i: int) -> _Sample:
        images, labels, side = self._folders[folder], self._labels[folder], self._sides[folder]
        image = resize(images.image(i), side, side)
        class_index = self._class_of[folder][int(images.index.class_index[i])]
        label = None if labels is None else labels.read(i)
        if label is None:
            none = torch.zeros(1, 1, dtype=torch.uint16).expand(side, side)
            return _Sample(image, none, 0.0, 0.0, LABEL_NONE, class_index, images.name(i))
        levels, info = resize_label(label.levels, side), label.info
        kind = LABEL_KIND[info.kind]
        return _Sample(image, levels, info.lo, info.hi - info.lo, kind, class_index, images.name(i))


def _label_names(labels: str | Sequence[str | None] | None, folders: int) -> list[str | None]:
    """The name of each folder's labels. Raises `UsageError`."""
    names = [labels] * folders if labels is None or isinstance(labels, str) else list(labels)
    if len(names) != folders:
        raise UsageError(
            f"{len(names)} names of labels for {folders} folders",
            remedy="one --labels for all, or one for each --data, in the same order",
        )
    return names


def _open_labels(folders: Sequence[ShardFolder], names: Sequence[str | None]) -> list[LabelFolder | None]:
    """The labels of each folder: training without them must be asked for. Raises as `TrainingLoader`."""
    opened: list[LabelFolder | None] = []
    missing: list[InputMissingError] = []
    for images, name in zip(folders, names, strict=True):
        opened.append(None)
        try:
            if name is not None:
                opened[-1] = LabelFolder(images, name)
        except InputMissingError as error:
            missing.append(error)
    if missing:
        without = [name if there else "none" for name, there in zip(names, opened, strict=True)]
        given = " ".join(f"--labels {name}" for name in (["none"] if set(without) == {"none"} else without))
        each = ", one for each --data," if len(given.split()) > 2 else ""
        raise InputMissingError(
            "; ".join(error.message for error in missing),
            remedy=f"{missing[0].remedy}; or {given}{each} to train without a depth loss there",
        )
    return opened
