"""Disparity labels as shards beside the images: the same shard names and keys, `disparity/NAME/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.shards import Job, Sample, compact_json, write_folder
from vq3dcli.data.schema import (
    DISPARITY_EXTENSION,
    DISPARITY_INFO_EXTENSION,
    MANIFEST_NAME,
    DisparityInfo,
    Manifest,
)
from vq3dcli.data.shards import PREPARE_AGAIN, ShardFolder, decode_levels, label_folder
from vq3dcli.errors import DataError
from vq3dcli.files import sha256_file

EXACT = "exact"


def label_exact(
    shards: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the disparity that a data set carries itself as the labels `exact`.

    Args:
        shards: A finished shard folder of images.
        force: Replace labels that were made for other images.
        progress: Called with (samples done, all samples).

    Raises:
        DataError: The data set has no disparity of its own.
    """
    images = ShardFolder(shards)
    if not images.manifest.own_disparity:
        raise DataError(
            f"these images have no disparity of their own ({shards})",
            remedy="training without a depth loss, or on toy scenes",
        )
    return write_labels(
        images, EXACT, lambda positions: _exact_samples(images, positions), force=force, progress=progress
    )


def write_labels(
    images: ShardFolder,
    name: str,
    make: Callable[[range], Iterator[Sample]],
    *,
    force: bool,
    progress: Callable[[int, int], None],
) -> Manifest:
    """Write the labels `name` of `images`, one label shard for each image shard.

    Args:
        make: The labels of the samples in a range, see `label_sample`.
    """
    manifest = images.manifest
    job = Job(
        kind="disparity",
        preset=name,
        image_size=manifest.image_size,
        margin=manifest.margin,
        own_disparity=False,
        class_names=manifest.class_names,
        shards=_shard_ranges(images),
        plan={"model": name, "images_manifest_sha256": sha256_file(images.path / MANIFEST_NAME)},
        make=make,
    )
    return write_folder(label_folder(images.path, name), job, force=force, progress=progress)


def label_sample(key: str, class_index: int | None, levels: bytes, info: DisparityInfo) -> Sample:
    """One label: `levels` is a uint16 `.npy` file."""
    members = {DISPARITY_EXTENSION: levels, DISPARITY_INFO_EXTENSION: compact_json(info.model_dump())}
    return Sample(key, class_index, members)


def _shard_ranges(images: ShardFolder) -> list[range]:
    ranges: list[range] = []
    for shard in images.manifest.shards:
        start = ranges[-1].stop if ranges else 0
        ranges.append(range(start, start + shard.samples))
    return ranges


def _exact_samples(images: ShardFolder, positions: range) -> Iterator[Sample]:
    for i in positions:
        entry = images.entry(i)
        members = images.read(i, [DISPARITY_EXTENSION, "json"])
        name = f"{images.path}, key {entry.key}"
        try:
            levels, own = members[DISPARITY_EXTENSION], json.loads(members["json"])
            info = DisparityInfo(
                kind=own["kind"],
                lo=own["lo"],
                hi=own["hi"],
                flags=[],
                sha256=entry.members[images.image_extension(i)].sha256,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"sample without its own disparity ({name}): {error}", remedy=PREPARE_AGAIN) from error
        decode_levels(levels, name=name)
        yield label_sample(entry.key, entry.class_index, levels, info)
