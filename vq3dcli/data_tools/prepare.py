"""From a source of images to a shard folder, whatever the layout of the source."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vq3dcli.config.defaults import BOX_MARGIN, MAX_BAD, SHARD_SIZE
from vq3dcli.data.images import centre_square, decode_image, decode_square, encode_jpeg
from vq3dcli.data.shard_format import Manifest, RejectEntry, sample_key, stored_size
from vq3dcli.data.stream import evenly
from vq3dcli.data_tools.job import Job, Progress, shard_ranges, write_part
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import Sample, compact_json
from vq3dcli.data_tools.sources.compcars import ClassBy, compcars_source
from vq3dcli.data_tools.sources.entry import Box, Entry, FilePlace, Place, Row, Source, Span
from vq3dcli.data_tools.sources.folder import Classes, folder_source
from vq3dcli.data_tools.sources.imagenet import imagenet_source
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.data_tools.workers import available_cores
from vq3dcli.errors import DataError, InputMissingError, StoppedError, StorageError

Preset = Literal["folder", "imagenet", "compcars"]

_log = logging.getLogger(__name__)
_SAMPLED = 24
_TAR_BLOCK = 512
# An index line has the member's hash and offset, three to a sample.
_INDEX_BYTES_A_SAMPLE = 420
# Starting a worker takes as long as making some hundred images.
_IMAGES_WORTH_A_WORKER = 400
_TAIL_BYTES = 1024


@dataclass(frozen=True)
class Options:
    """What the bytes of the shards depend on, beside the source."""

    size: int  # side of the training images in pixels
    margin: float = 1.0  # stored side over `size`; more than 1 leaves room for random crops
    shard_size: int = SHARD_SIZE  # positions a shard
    dedup: bool = False  # leave out images whose bytes are those of an earlier one
    box_margin: float = BOX_MARGIN  # room around a car's box, as a fraction of its longer side


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

    `split` is `auto`, `train` or `val` for `imagenet`; `auto` (all), `train` or `test` for `compcars`.
    """
    if preset == "imagenet":
        listed = imagenet_source(source, leave_out=out, split=split, devkit=devkit)
    elif preset == "compcars":
        listed = compcars_source(source, leave_out=out, class_by=class_by, split="all" if split == "auto" else split)
    else:
        listed = folder_source(source, leave_out=out, classes=classes)
    for note in listed.notes:
        _log.info("%s", note)
    for warning in listed.warnings:
        _log.warning("%s", warning)
    return listed


def prepare(
    out: Path,
    job: Job,
    part: Part = WHOLE,
    *,
    workers: int | None = 1,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Manifest | None:
    """`write_part` with as many workers as pay, where `workers` is None. Raises `StorageError` on a small disk, too."""
    check_disk(out, job_facts(job, out, part=part), part)
    if workers is None:
        numbers = [number for number in range(len(job.shards)) if part.has(number)]
        images = sum(len(job.shards[number]) for number in numbers)
        workers = max(1, min(available_cores(), len(numbers), images // _IMAGES_WORTH_A_WORKER))
    return write_part(out, job, part, force=force, progress=progress, workers=workers)


def image_job(preset: Preset, source: Source, options: Options, *, max_bad: float = MAX_BAD) -> Job:
    """The shard folder of a source's images as JPEG squares; equal sources and options give equal bytes.

    Every image is kept or rejected with a reason, in the order of the source. EXIF orientation is applied to a
    user's own folder and ignored for the benchmark data sets, whose labels were made without it.
    """
    entries = without_duplicates(source.entries) if options.dedup else source.entries
    oriented = preset == "folder"
    side, box_margin = stored_size(options.size, options.margin), options.box_margin
    make = partial(_squares, side=side, apply_orientation=oriented, box_margin=box_margin)

    # Changes when a file is added, removed, renamed, resized or labelled; then the shards' ranges mean other files.
    listing = hashlib.sha256()
    for entry in source.entries:
        listing.update(compact_json([entry.path, entry.size, entry.class_index, entry.reject, entry.box, entry.info]))
    plan = {
        "preset": preset,
        "size": options.size,
        "margin": options.margin,
        **source.options,
        "colours": "sRGB",
        "orientation": "applied" if oriented else "ignored",
        "shard_size": options.shard_size,
        "source_files": len(source.entries),
        "source_sha256": listing.hexdigest(),
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
        maker_of=lambda positions: partial(make, entries[positions.start : positions.stop]),
        portable=True,
        max_bad=max_bad,
    )


def _squares(
    entries: Sequence[Entry], positions: range, *, side: int, apply_orientation: bool, box_margin: float
) -> Iterator[Sample | RejectEntry]:
    """Samples and rejects of the entries at some positions, in order, of squares of `side` pixels."""
    reader = Reader()
    for position, entry in zip(positions, entries, strict=True):
        yield _square(reader, position, entry, side, apply_orientation, box_margin)


def _square(
    reader: Reader, position: int, entry: Entry, side: int, apply_orientation: bool, box_margin: float
) -> Sample | RejectEntry:
    if entry.reject:
        return RejectEntry(path=entry.path, reason=entry.reject, kind=entry.kind)
    try:
        square = decode_square(
            reader.read(entry.place),
            side,
            name=entry.path,
            apply_orientation=apply_orientation,
            window=lambda height_px, width_px: square_around(height_px, width_px, entry.box, box_margin),
        )
    except (DataError, InputMissingError) as error:  # a disk that fails is no reason to reject: it ends the run
        reason = error.message.replace(f" ({entry.path})", "").replace(f" ({entry.place.file})", "")
        return RejectEntry(path=entry.path, reason=reason)
    except MemoryError as error:  # says nothing about the image
        raise StoppedError(
            f"not enough memory for an image ({entry.path})",
            remedy="the same command with fewer --workers, or on a larger machine; finished shards are kept",
        ) from error
    top, left, whole = square.window
    info = {
        "source": entry.path,
        "crop": {"top": top, "left": left, "side": whole},
        "original_size": {"height": square.height_px, "width": square.width_px},
        **(entry.info or {}),
    }
    members = {"jpg": encode_jpeg(square.image)}
    if entry.class_index is not None:
        members["cls"] = str(entry.class_index).encode()
    members["json"] = compact_json(info)
    return Sample(sample_key(position), entry.class_index, members)


def square_around(height_px: int, width_px: int, box: Box | None, margin: float) -> tuple[int, int, int]:
    """The square around a box with a margin, (top, left, side) in pixels; without a box the centre square.

    The margin is added on each side of the box, a fraction of its longer side. Nothing outside of the image is ever
    asked for: the square is moved inwards, and is at most as large as the shorter side of the image. A long box is then
    cut at both ends.
    """
    if box is None:
        return centre_square(height_px, width_px)
    longer = max(box.right - box.left, box.bottom - box.top)
    side = max(1, min(round(longer * (1 + 2 * margin)), height_px, width_px))
    top = min(max((box.top + box.bottom - side) // 2, 0), height_px - side)
    left = min(max((box.left + box.right - side) // 2, 0), width_px - side)
    return top, left, side


def job_facts(job: Job, out: Path, *, part: Part = WHOLE) -> dict[str, int]:
    """What a job would write, by making some of the samples, evenly spread; nothing is written."""
    total = job.num_positions
    chosen = evenly(total, _SAMPLED)
    samples = [s for i in chosen for s in job.make(range(i, i + 1)) if isinstance(s, Sample)]
    members = [len(data) for sample in samples for data in sample.members.values()]
    stored = sum(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK for size in members)
    # Rejects take nothing, so the mean is over all that were tried.
    each = (_INDEX_BYTES_A_SAMPLE * len(samples) + stored) / max(1, len(chosen))
    mine = sum(len(shard) for number, shard in enumerate(job.shards) if part.has(number))
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    return {
        "images": total,
        "classes": len(job.class_names),
        "shards": len(job.shards),
        "estimated_bytes": round(each * total),
        "estimated_bytes_of_part": round(each * mine),
        "free_bytes": shutil.disk_usage(folder).free,
    }


def check_disk(out: Path, facts: Mapping[str, int], part: Part) -> None:
    """Log what will be written. Raises `StorageError` where it does not fit, with what is there of this part."""
    shards = [(path, re.match(r"shard-(\d+)\.", path.name)) for path in (out.iterdir() if out.is_dir() else ())]
    there = sum(path.stat().st_size for path, match in shards if match and part.has(int(match[1])))
    free = facts["free_bytes"]
    text = f"about {_readable(facts['estimated_bytes'])} of shards for {facts['images']} images"
    _log.info("%s; %s are free", text, _readable(free))
    if free == 0:  # some network file systems say so, whatever is free
        _log.warning(
            "the file system reports no free space (%s): if that is so, the run ends when the disk is full", out
        )
    elif facts["estimated_bytes_of_part"] > free + there:
        raise StorageError(
            f"the disk is too small ({out}): {text}, {_readable(free)} are free",
            remedy="another disk, a smaller --size, or --part on several disks",
        )


def _readable(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def without_duplicates(entries: list[Entry]) -> list[Entry]:
    """The entries, with each that has the bytes of an earlier one marked as its duplicate.

    Only files of the same size can be equal, and of those only the ones whose last bytes are; the rest are never
    read whole. What cannot be read or decoded is nobody's duplicate: making the shard gives the reason.
    """
    marked = list(entries)
    reader = Reader()

    def read(place: Place) -> bytes | None:
        try:
            return reader.read(place)
        except (DataError, InputMissingError):
            return None

    def tail(i: int) -> bytes | None:
        """The last bytes: the first ones of two photos of a camera often agree."""
        place, size = entries[i].place, min(entries[i].size, _TAIL_BYTES)
        if isinstance(place, Row):  # part of a row cannot be read
            return b""
        start = 0 if isinstance(place, FilePlace) else place.offset
        return read(Span(place.file, start + entries[i].size - size, size))

    def digest(i: int) -> bytes | None:
        data = read(entries[i].place)
        return None if data is None else hashlib.sha256(data).digest()

    groups = _grouped(range(len(entries)), lambda i: None if entries[i].reject else entries[i].size)
    for key in (tail, digest):
        groups = [g for group in groups for g in _grouped(group, key)]
    for first, *others in groups:
        try:
            decode_image(reader.read(entries[first].place), name=entries[first].path, apply_orientation=False)
        except (DataError, InputMissingError):
            continue
        for i in others:
            marked[i] = entries[i]._replace(reject=f"the same bytes as {entries[first].path}", kind="duplicate")
    return marked


def _grouped(positions: Iterable[int], key: Callable[[int], Hashable | None]) -> list[list[int]]:
    """Positions with equal keys, groups of two or more; a key of None is equal to none."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position in positions:
        value = key(position)
        if value is not None:
            groups[value].append(position)
    return [group for group in groups.values() if len(group) > 1]
