"""The training loader: an endless stream of samples that can start at any position.

Which sample stands at position p is said by `data.stream`; its crop and flip depend only on (seed, p). So a run resumes
by images seen, and the stream does not depend on the number of ranks or on the batch size.

Legend: B samples of this rank, n samples in all folders, S side of the training images in pixels.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.data.images import decode_image, resize
from vq3dcli.data.shard_format import MANIFEST_NAME, stored_size
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder, resize_label
from vq3dcli.data.stream import Stream
from vq3dcli.data.views import View, Views, gather_views, mirrored, read_views
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import sha256_bytes, sha256_file
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, LABEL_RELATIVE
from vq3dcli.seeding import uniform

LABEL_KIND = {"none": LABEL_NONE, "metric": LABEL_METRIC, "relative": LABEL_RELATIVE}
CACHE_BYTES = 1 << 30
_PREFETCHED_BATCHES = 4
_STOP_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Batch:
    """Samples of one step on one rank.

    Attributes:
        image: uint8 `[B, 3, S, S]`.
        s: Disparity labels float32 `[B, S, S]` at the image's pixels, in [0, 1] where metric; zeros where unlabelled.
        label_kind: int8 `[B]`, see `LABEL_KIND`.
        class_index: Index into the loader's class names, int64 `[B]`, -1 for no class.
        index: Positions in the endless stream, int64 `[B]`.
        keys: `folder/key` of each sample, for messages.
        views: Exact pictures from other cameras, where the loader was asked for them.
    """

    image: Tensor
    s: Tensor
    label_kind: Tensor
    class_index: Tensor
    index: Tensor
    keys: list[str]
    views: Views | None = None


class TrainingLoader:
    """Batches from one or several shard folders, which together are one data set.

    Args:
        folders: Shard folders of kind `images`.
        labels: Name of the disparity labels (`disparity/NAME`) of all folders, or one for each; None for a folder
            without.
        batch_size: Of all ranks together.
        size: S. Larger stored images are resized, so that a crop has the same margin at any size.
        seed: Of order, crops and flips.
        shares: Of the stream, one a folder, see `data.stream.Stream`; None mixes the folders by their samples.
        flip: Mirror half of the samples.
        crop: Cut at a random place of images that were stored with a margin; otherwise the whole image is resized.
        rank: This process takes rows `rank * B ... (rank + 1) * B - 1` of each global batch.
        world_size: Number of processes; must divide `batch_size`.
        cache_bytes: Decoded samples are kept in memory if all of them fit into this.
        views: Views a sample that a batch holds, at most; a sample with more gets different ones at every position.

    Attributes:
        num_samples: n.
        num_with_views: Samples that have views, over all folders.
        labels: Name of each folder's labels, `none` for those without.
        num_labelled: Samples with a label, over all folders.
        metric_labels: Whether any labels are metric.
        sha256: Of what the stream is made of: the manifests of images and labels, in the order of the folders.
        class_names: Union of the folders' classes, in the order of first appearance.

    Raises:
        InputMissingError, DataError, UsageError: At once for what is missing or contradicts, labels included;
            `DataError` from `batches` for damaged samples, naming shard and key.
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
    ) -> None:
        if batch_size % world_size:
            raise UsageError(
                f"the batch size ({batch_size}) is not a multiple of the number of ranks ({world_size})",
                remedy=f"--set training.batch_size={-(-batch_size // world_size) * world_size}",
            )
        opened = [_open_images(folder, size) for folder in folders]
        names = _label_names(labels, len(opened))
        self.labels = tuple(name or "none" for name in names)
        named = _open_labels(opened, names)
        self._sources = [
            _Source(images, found, size=size, crop=crop) for images, found in zip(opened, named, strict=True)
        ]
        self.num_samples = sum(map(len, self._sources))
        if self.num_samples == 0:
            raise DataError(f"no samples in {', '.join(map(str, folders)) or 'no folders'}", remedy="other folders")
        self.num_with_views = sum(len(source) for source in self._sources if source.images.manifest.views)
        self._stream = Stream([len(source) for source in self._sources], seed, shares)
        self.num_labelled = sum(len(found) for found in named if found is not None)
        self.metric_labels = any(found.kind == "metric" for found in named if found is not None)
        manifests = [
            (sha256_file(images.path / MANIFEST_NAME), found.sha256 if found else "")
            for images, found in zip(opened, named, strict=True)
        ]
        self.sha256 = sha256_bytes(json.dumps(manifests).encode())
        self.class_names = list(dict.fromkeys(name for source in self._sources for name in source.images.class_names))
        self._class_of = [
            torch.tensor([self.class_names.index(n) for n in source.images.class_names] + [-1])
            for source in self._sources
        ]
        self._size, self._seed, self._flip, self._views = size, seed, flip, views
        self.batch_size = batch_size
        self._rows = slice(rank * (batch_size // world_size), (rank + 1) * (batch_size // world_size))
        if sum(source.cached_bytes for source in self._sources) <= cache_bytes:
            for source in self._sources:
                source.allocate_cache()

    def batches(self, images_seen: int) -> Iterator[Batch]:
        """This rank's rows of the global batches from position `images_seen` on, endless, decoded in a thread."""
        return _prefetched(self, images_seen)

    def batch_at(self, images_seen: int) -> Batch:
        """This rank's rows of the global batch that starts at position `images_seen`."""
        position = torch.arange(images_seen, images_seen + self.batch_size)[self._rows]
        place = uniform(self._seed, "crop", position, 2)
        flipped = uniform(self._seed, "flip", position, 1)[:, 0] < 0.5 if self._flip else torch.zeros(len(position)) > 0
        samples = [self._sample(int(p), place[row], bool(flipped[row])) for row, p in enumerate(position)]
        views = None
        if self._views:
            first = uniform(self._seed, "view", position, 1)[:, 0]
            chosen = [self._views_at(int(p), float(first[row]), bool(flipped[row])) for row, p in enumerate(position)]
            views = gather_views(chosen, self._size)
        return Batch(
            image=torch.stack([sample.image for sample in samples]),
            s=torch.stack([sample.s for sample in samples]),
            label_kind=torch.tensor([sample.label_kind for sample in samples], dtype=torch.int8),
            class_index=torch.tensor([sample.class_index for sample in samples]),
            index=position,
            keys=[sample.key for sample in samples],
            views=views,
        )

    def _views_at(self, position: int, first: float, flipped: bool) -> list[View]:
        number, i = self._stream.at(position)
        images = self._sources[number].images
        there = images.manifest.views
        numbers = [(int(first * there) + k) % there for k in range(min(self._views, there))]
        views = read_views(images, i, numbers, self._size) if numbers else []
        return [mirrored(view) for view in views] if flipped else views

    def _sample(self, position: int, place: Tensor, flipped: bool) -> _Sample:
        number, i = self._stream.at(position)
        sample = self._sources[number].sample(i)
        # The same window and mirror for image and label. The top place is 1 - 2^-24, so the window never sticks out.
        top, left = (place * (sample.s.shape[0] - self._size + 1)).to(torch.int64).tolist()
        window = (..., slice(top, top + self._size), slice(left, left + self._size))
        image, s = sample.image[window], sample.s[window]
        if flipped:
            image, s = image.flip(-1), s.flip(-1)
        class_index = int(self._class_of[number][sample.class_index])
        return _Sample(image, s, sample.label_kind, class_index, sample.key)


@dataclass(frozen=True)
class _Sample:
    """One sample: image uint8 `[3, T, T]`, s float32 `[T, T]`."""

    image: Tensor
    s: Tensor
    label_kind: int
    class_index: int
    key: str


class _Source:
    """One shard folder, decoded at the side T that leaves the room for crops, with an optional cache."""

    def __init__(self, images: ShardFolder, labels: LabelFolder | None, *, size: int, crop: bool) -> None:
        self.images = images
        self._labels = labels
        self._side = stored_size(size, images.manifest.margin) if crop else size
        self._cache: list[_Sample | None] | None = None

    def __len__(self) -> int:
        return self.images.num_samples

    @property
    def cached_bytes(self) -> int:
        """Memory that all decoded samples take: three bytes of colour and four of label a pixel."""
        return len(self) * self._side**2 * 7

    def allocate_cache(self) -> None:
        self._cache = [None] * len(self)

    def sample(self, i: int) -> _Sample:
        if self._cache is None:
            return self._decode(i)
        cached = self._cache[i]
        if cached is None:
            cached = self._cache[i] = self._decode(i)
        return cached

    def _decode(self, i: int) -> _Sample:
        entry = self.images.entry(i)
        name = f"{self.images.path}, key {entry.key}"
        extension = self.images.image_extension(i)
        image = decode_image(self.images.read(i, [extension])[extension], name=name, apply_orientation=False)
        if image.shape[1] != image.shape[2]:
            raise DataError(f"stored image is not square ({name})", remedy="vq3d prepare-data with --force")
        image = resize(image, self._side, self._side)
        label = None if self._labels is None else self._labels.read(i)
        if label is None:
            s, kind = torch.zeros(self._side, self._side), LABEL_KIND["none"]
        else:
            s, kind = resize_label(label.values, self._side), LABEL_KIND[label.info.kind]
        return _Sample(image, s, kind, -1 if entry.class_index is None else entry.class_index, name)


def _open_images(folder: Path, size: int) -> ShardFolder:
    """A folder of images that are large enough. Raises as `TrainingLoader`."""
    images = ShardFolder(folder)
    if images.manifest.kind != "images":
        raise UsageError(f"holds labels, not images ({folder})", remedy="the shard folder above it")
    if size > images.manifest.image_size:
        raise UsageError(
            f"the images are smaller ({images.manifest.image_size}) than the training size ({size}) ({folder})",
            remedy=f"vq3d prepare-data with --size {size}",
        )
    return images


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
    found: list[LabelFolder | None] = []
    missing: list[InputMissingError] = []
    for images, name in zip(folders, names, strict=True):
        found.append(None)
        try:
            if name is not None:
                found[-1] = LabelFolder(images, name)
        except InputMissingError as error:
            missing.append(error)
    if missing:
        without = [name if there else "none" for name, there in zip(names, found, strict=True)]
        given = " ".join(f"--labels {name}" for name in (["none"] if set(without) == {"none"} else without))
        each = ", one for each --data," if len(given.split()) > 2 else ""
        raise InputMissingError(
            "; ".join(error.message for error in missing),
            remedy=f"{missing[0].remedy}; or {given}{each} to train without a depth loss there",
        )
    return found


def _prefetched(loader: TrainingLoader, images_seen: int) -> Iterator[Batch]:
    """Batches made ahead in a thread, which ends with the iterator."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(_PREFETCHED_BATCHES)
    stop = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=_STOP_POLL_SECONDS)
            except queue.Full:
                continue

    def produce() -> None:
        position = images_seen
        while not stop.is_set():
            try:
                put(loader.batch_at(position))
            except BaseException as error:
                return put(error)
            position += loader.batch_size

    thread = threading.Thread(target=produce, name="vq3d-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
