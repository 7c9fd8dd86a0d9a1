"""From a source of images to a shard folder, whatever the layout of the source."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vq3dcli.config.defaults import BOX_MARGIN, MAX_BAD, SHARD_SIZE
from vq3dcli.data.shard_format import Manifest, stored_size
from vq3dcli.data_tools.duplicates import without_duplicates
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import Sample, compact_json
from vq3dcli.data_tools.sources.compcars import CarSplit, ClassBy, compcars_source
from vq3dcli.data_tools.sources.entry import Entry, Source
from vq3dcli.data_tools.sources.folder import Classes, folder_source
from vq3dcli.data_tools.sources.imagenet import Split, imagenet_source
from vq3dcli.data_tools.squares import SquareMaker
from vq3dcli.data_tools.workers import available_cores
from vq3dcli.errors import StorageError

Preset = Literal["folder", "imagenet", "compcars"]

_log = logging.getLogger(__name__)
_SAMPLED = 24
_TAR_BLOCK = 512
# An index line has the member's hash and offset, three to a sample.
_INDEX_BYTES_A_SAMPLE = 420
# Starting a worker takes as long as making some hundred images.
_IMAGES_WORTH_A_WORKER = 400


@dataclass(frozen=True)
class Options:
    """What the bytes of the shards depend on, beside the source.

    Attributes:
        size: Side of the training images in pixels.
        margin: Stored side over `size`; more than 1 leaves room for random crops.
        shard_size: Positions a shard.
        dedup: Leave out images whose bytes are those of an earlier one.
        box_margin: Room around a car's box, as a fraction of its longer side.
    """

    size: int
    margin: float = 1.0
    shard_size: int = SHARD_SIZE
    dedup: bool = False
    box_margin: float = BOX_MARGIN


@dataclass(frozen=True)
class Estimate:
    """What a run would write: all shards together, this part, and what the disk has left."""

    images: int
    bytes_all: int
    bytes_part: int
    free_bytes: int


def open_source(
    preset: Preset,
    source: Path,
    out: Path,
    *,
    classes: Classes = "auto",
    split: str = "auto",
    devkit: Path | None = None,
    class_by: ClassBy = "model",
) -> Source:
    """List the images of a source; what is found is logged, and what is amiss is logged as a warning.

    Args:
        out: The output, which may lie in the source.
        classes: For `folder`.
        split: `auto`, `train` or `val` for `imagenet`; `auto` (all), `train` or `test` for `compcars`.
        devkit: For `imagenet`.
        class_by: For `compcars`.
    """
    if preset == "imagenet":
        imagenet_split: Split = "train" if split == "train" else "val" if split == "val" else "auto"
        listed = imagenet_source(source, leave_out=out, split=imagenet_split, devkit=devkit)
    elif preset == "compcars":
        car_split: CarSplit = "train" if split == "train" else "test" if split == "test" else "all"
        listed = compcars_source(source, leave_out=out, class_by=class_by, split=car_split)
    else:
        listed = folder_source(source, leave_out=out, classes=classes)
    for note in listed.notes:
        _log.info("%s", note)
    for warning in listed.warnings:
        _log.warning("%s", warning)
    return listed


def prepare(
    preset: Preset,
    source: Source,
    out: Path,
    options: Options,
    *,
    max_bad: float = MAX_BAD,
    part: Part = WHOLE,
    workers: int | None = 1,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest | None:
    """Write the images of a source as JPEG squares; equal sources and options give equal bytes.

    Every image is kept or rejected with a reason, in the order of the source. EXIF orientation is applied to a
    user's own folder and ignored for the benchmark data sets, whose labels were made without it.

    Args:
        max_bad: Fraction of the images that may be rejected as bad.
        part: The share of the shards that this process makes.
        workers: Processes; None for one a core, fewer for little work.
        force: Replace a shard folder that was made with other options.
        progress: Called with (images done, images of this part).

    Returns:
        None while other parts have work left.

    Raises:
        DataError: More than `max_bad` of the images are bad.
        StorageError: The shards will not fit on the disk.
    """
    job = image_job(preset, source, options, max_bad=max_bad)
    return prepare_part(out, job, part, workers=workers, force=force, progress=progress)


def prepare_part(
    out: Path, job: Job, part: Part, *, workers: int | None, force: bool, progress: Callable[[int, int], None]
) -> Manifest | None:
    """`write_part` with as many workers as pay, where `workers` is None. Raises `StorageError` on a small disk, too."""
    check_disk(out, estimate_disk(job, out, part), part)
    if workers is None:
        numbers = [number for number in range(len(job.shards)) if part.has(number)]
        images = sum(len(job.shards[number]) for number in numbers)
        workers = max(1, min(available_cores(), len(numbers), images // _IMAGES_WORTH_A_WORKER))
    return write_part(out, job, part, force=force, progress=progress, workers=workers)


def dry_run_facts(preset: Preset, source: Source, out: Path, options: Options, *, part: Part = WHOLE) -> dict[str, Any]:
    """What `prepare` would write; nothing is written."""
    return job_facts(image_job(preset, source, options, max_bad=1.0), out, part=part)


def job_facts(job: Job, out: Path, *, part: Part = WHOLE) -> dict[str, Any]:
    """What a job would write; nothing is written."""
    estimate = estimate_disk(job, out, part)
    return {
        "images": estimate.images,
        "classes": len(job.class_names),
        "shards": len(job.shards),
        "estimated_bytes": estimate.bytes_all,
        "estimated_bytes_of_part": estimate.bytes_part,
        "free_bytes": estimate.free_bytes,
    }


def image_job(preset: Preset, source: Source, options: Options, *, max_bad: float) -> Job:
    """The shard folder that `prepare` makes."""
    entries = without_duplicates(source.entries) if options.dedup else source.entries
    turned = preset == "folder"
    maker = SquareMaker(
        first=0,
        entries=entries,
        side=stored_size(options.size, options.margin),
        apply_orientation=turned,
        box_margin=options.box_margin,
    )
    plan = {
        "preset": preset,
        "size": options.size,
        "margin": options.margin,
        **source.options,
        "colours": "sRGB",
        "orientation": "applied" if turned else "ignored",
        "shard_size": options.shard_size,
        "source_files": len(source.entries),
        "source_sha256": _listing_sha256(source.entries),
        **({"dedup": True} if options.dedup else {}),
        **({"box_margin": options.box_margin} if preset == "compcars" else {}),
    }
    return Job(
        kind="images",
        preset=preset,
        image_size=options.size,
        margin=options.margin,
        own_disparity=False,
        class_names=source.class_names,
        class_titles=source.class_titles,
        shards=shard_ranges(len(entries), options.shard_size),
        plan=plan,
        make=maker,
        portable=maker.part,
        max_bad=max_bad,
    )


def estimate_disk(job: Job, out: Path, part: Part) -> Estimate:
    """What the shards will take, by making some of the samples, evenly spread."""
    total = job.num_positions
    chosen = sorted({i * total // _SAMPLED for i in range(_SAMPLED)}) if total else []
    samples = [s for i in chosen for s in job.make(range(i, i + 1)) if isinstance(s, Sample)]
    # Rejects take nothing, so the mean is over all that were tried.
    each = sum(_stored_bytes(sample.members.values()) for sample in samples) / max(1, len(chosen))
    mine = sum(len(shard) for number, shard in enumerate(job.shards) if part.has(number))
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    return Estimate(total, round(each * total), round(each * mine), shutil.disk_usage(folder).free)


def check_disk(out: Path, estimate: Estimate, part: Part) -> None:
    """Log what will be written. Raises `StorageError` where it does not fit, with what is there of this part."""
    shards = [(path, re.match(r"shard-(\d+)\.", path.name)) for path in (out.iterdir() if out.is_dir() else ())]
    there = sum(path.stat().st_size for path, match in shards if match and part.has(int(match[1])))
    text = f"about {_readable(estimate.bytes_all)} of shards for {estimate.images} images"
    _log.info("%s; %s are free", text, _readable(estimate.free_bytes))
    if estimate.free_bytes == 0:  # some network file systems say so, whatever is free
        _log.warning(
            "the file system reports no free space (%s): if that is so, the run ends when the disk is full", out
        )
    elif estimate.bytes_part > estimate.free_bytes + there:
        raise StorageError(
            f"the disk is too small ({out}): {text}, {_readable(estimate.free_bytes)} are free",
            remedy="another disk, a smaller --size, or --part on several disks",
        )


def _stored_bytes(members: Iterable[bytes]) -> int:
    return _INDEX_BYTES_A_SAMPLE + sum(_TAR_BLOCK + -(-len(data) // _TAR_BLOCK) * _TAR_BLOCK for data in members)


def _readable(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _listing_sha256(entries: list[Entry]) -> str:
    """Changes when a file is added, removed, renamed, resized or labelled; then the shards' ranges mean other files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(compact_json([entry.path, entry.size, entry.class_index, entry.reject, entry.box, entry.info]))
    return digest.hexdigest()
