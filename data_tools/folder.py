"""Any folder of images as a shard folder: class folders, or one class."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.shards import Job, Reject, Sample, compact_json, shard_ranges, write_folder
from vq3dcli.config.defaults import MAX_BAD, SHARD_SIZE
from vq3dcli.data.images import centre_square, decode_image, encode_jpeg, read_file, to_square
from vq3dcli.data.schema import Manifest, sample_key, stored_size
from vq3dcli.errors import DataError, InputMissingError

Classes = Literal["auto", "folders", "none"]
ONLY_CLASS = "all"


@dataclass(frozen=True)
class SourceFile:
    """A file that was found; `path` is relative to the source, with `/`, and printable as JSON."""

    path: str
    file: Path
    size: int
    is_regular: bool


def prepare_folder(
    source: Path,
    out: Path,
    *,
    size: int,
    margin: float = 1.0,
    classes: Classes = "auto",
    max_bad: float = MAX_BAD,
    shard_size: int = SHARD_SIZE,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the images of a folder as JPEG squares; equal files and arguments give equal bytes.

    Every file is kept or rejected with a reason, in the order of its path. Hidden files and folders (names that
    start with a dot) are passed over and not counted. EXIF orientation is applied.

    Args:
        size: Side of the training images in pixels.
        margin: Stored side over `size`; more than 1 leaves room for random crops.
        classes: `folders`: the top-level folder names the class, a file outside is rejected; `none`: one class;
            `auto`: folders where any file lies in one.
        max_bad: Fraction of the files that may be rejected.
        force: Replace a shard folder that was made with other options.
        progress: Called with (files done, all files).

    Raises:
        InputMissingError: `source` is not a folder, or there is no file in it.
        DataError: More than `max_bad` of the files are not images.
    """
    files = find_files(source, leave_out=out)
    if not files:
        raise InputMissingError(f"no files in folder ({source})", remedy="a folder with images")
    by_folder = classes == "folders" or (classes == "auto" and any("/" in file.path for file in files))
    names = sorted({file.path.split("/")[0] for file in files if "/" in file.path}) if by_folder else [ONLY_CLASS]
    side = stored_size(size, margin)

    def make(positions: range) -> Iterator[Sample | Reject]:
        for position in positions:
            file = files[position]
            if not by_folder:
                yield _sample(file, sample_key(position), 0, side)
            elif "/" in file.path:
                yield _sample(file, sample_key(position), names.index(file.path.split("/")[0]), side)
            else:
                yield Reject(file.path, "lies beside the class folders, so it has no class")

    job = Job(
        kind="images",
        preset="folder",
        image_size=size,
        margin=margin,
        own_disparity=False,
        class_names=names,
        shards=shard_ranges(len(files), shard_size),
        plan={
            "preset": "folder",
            "size": size,
            "margin": margin,
            "classes": "folders" if by_folder else "none",
            "orientation": "applied",
            "shard_size": shard_size,
            "source_files": len(files),
            "source_sha256": _listing_sha256(files),
        },
        make=make,
        max_bad=max_bad,
    )
    return write_folder(out, job, force=force, progress=progress)


def find_files(source: Path, *, leave_out: Path) -> list[SourceFile]:
    """All files under `source` that are not hidden, sorted by the bytes of their path.

    Links are followed, each folder is visited once. The folder `leave_out` is passed over: it may lie in `source`.
    """
    if not source.exists():
        raise InputMissingError(f"no such folder ({source})", remedy="check the path")
    if not source.is_dir():
        raise InputMissingError(f"not a folder ({source})", remedy="the folder that holds the images")
    visited = {os.path.realpath(leave_out)}
    found = list(_walk(os.fspath(source), "", visited))
    return sorted(found, key=lambda file: os.fsencode(file.file))


def _walk(folder: str, prefix: str, visited: set[str]) -> Iterator[SourceFile]:
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise InputMissingError(f"cannot list folder ({folder}): {error.strerror}", remedy="chmod +rx") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = f"{prefix}{_printable(entry.name)}"
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/", visited)
        else:
            yield _source_file(entry, path)


def _source_file(entry: os.DirEntry[str], path: str) -> SourceFile:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: reading it gives the reason
        return SourceFile(path, Path(entry.path), 0, is_regular=True)
    return SourceFile(path, Path(entry.path), status.st_size, stat.S_ISREG(status.st_mode))


def _printable(name: str) -> str:
    """A file name as text that JSON can hold: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _listing_sha256(files: list[SourceFile]) -> str:
    """Changes when a file is added, removed, renamed or resized; then the shards' ranges mean other files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(compact_json([file.path, file.size]))
    return digest.hexdigest()


def _sample(file: SourceFile, key: str, class_index: int, side: int) -> Sample | Reject:
    if not file.is_regular:
        return Reject(file.path, "not a regular file")
    try:
        image = decode_image(read_file(file.file), name=file.path)
    except (DataError, InputMissingError) as error:  # a disk that fails is no reason to reject: it ends the run
        return Reject(file.path, error.message.replace(f" ({file.path})", "").replace(f" ({file.file})", ""))
    height_px, width_px = image.shape[1:]
    top, left, crop_side = centre_square(height_px, width_px)
    info = {
        "source": file.path,
        "crop": {"top": top, "left": left, "side": crop_side},
        "original_size": {"height": height_px, "width": width_px},
    }
    members = {
        "jpg": encode_jpeg(to_square(image, side, fit="crop")),
        "cls": str(class_index).encode(),
        "json": compact_json(info),
    }
    return Sample(key, class_index, members)
