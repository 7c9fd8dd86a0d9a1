"""Reading every byte of a shard folder, and naming what is not as it was written.

`SHA256SUMS` has the hash of each file. Most stand in a second file, too: of shards, indices
and the plan in the manifest. A file that agrees with one of the two is sound, and then the other is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vq3dcli.data.shard_format import (
    DISPARITY_EXTENSION,
    DISPARITY_FOLDER,
    DISPARITY_INFO_EXTENSION,
    IMAGE_EXTENSIONS,
    MANIFEST_NAME,
    PLAN_NAME,
    REJECTS_NAME,
    SUMS_NAME,
    Manifest,
    Member,
    Record,
    SampleEntry,
    ShardIndex,
    read_record,
)
from vq3dcli.data.shard_index import read_shard_index
from vq3dcli.data.shard_reader import decode_disparity
from vq3dcli.data_tools.job import Progress, rejects_text
from vq3dcli.data_tools.shard_writer import json_bytes
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import sha256_bytes, sha256_file

_SUMS_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_SHARD_FILE = re.compile(r"shard-\d{6,}\.(tar|index\.json)")


class Problem(NamedTuple):
    """Something that is not as it was written."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.file})"


@dataclass
class Verification:
    """What was read: the problems in the order of the files, the number of files, and their bytes."""

    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    size: int = 0
    # folders of labels that are being made, or were never finished; they are passed over
    unfinished: list[Path] = field(default_factory=list)


class _Folder(NamedTuple):
    """One shard folder as far as it is sound: its parsed records, and the hashes of its files (None: not there)."""

    path: Path
    manifest: Manifest | None
    indices: dict[str, ShardIndex]
    hashes: dict[str, str | None]


def verify_folder(folder: Path, *, progress: Progress = lambda done, total: None) -> Verification:
    """Check every byte of a finished shard folder, of images with all labels below it, or of labels.

    `progress` is called with (bytes read, all bytes). Raises `InputMissingError`: not a finished shard folder.
    """
    if not _is_finished(folder):
        raise InputMissingError(f"no finished shards ({folder})", remedy="the folder that holds manifest.json")
    result = Verification()
    folders = [folder]
    if (folder / DISPARITY_FOLDER).is_dir():
        labels = sorted(path for path in (folder / DISPARITY_FOLDER).iterdir() if path.is_dir())
        folders += [path for path in labels if _is_finished(path)]
        result.unfinished = [path for path in labels if not _is_finished(path)]
    total = sum(path.stat().st_size for each in folders for path in each.iterdir() if path.is_file())
    progress(0, total)

    def hash_of(path: Path) -> str | None:
        try:
            digest = sha256_file(path)
            result.size += path.stat().st_size
        except InputMissingError:
            return None
        result.files += 1
        progress(result.size, total)
        return digest

    images: _Folder | None = None
    for each in folders:
        checked = _check(each, hash_of, result.problems)
        if images is not None:
            _check_labels(checked, images, result.problems)
        images = images or checked
    progress(total, total)
    return result


def _is_finished(folder: Path) -> bool:
    """Whether a shard folder was finished once: of the two files that are written last at least one is there."""
    return any((folder / name).exists() for name in (MANIFEST_NAME, SUMS_NAME))


def _check(path: Path, hash_of: Callable[[Path], str | None], problems: list[Problem]) -> _Folder:
    """Check everything that can be checked in a folder alone; what is wrong is appended to `problems`."""
    before = len(problems)
    indices: dict[str, ShardIndex] = {}
    hashes: dict[str, str | None] = {}

    def report(name: str, reason: str) -> None:
        problems.append(Problem(path / name, reason))

    def is_sound(name: str, other: str | None = None) -> bool:
        """Whether a file is as `SHA256SUMS` says, or as `other` does, the hash that stands in another file."""
        actual, listed = hash_of(path / name), sums.get(name)
        known = {listed, other} - {None}
        hashes[name] = actual
        if actual is None:
            report(name, "missing")
        elif known and actual not in known:
            report(name, "damaged: its hash differs from what was written")
        elif sums and listed != actual:
            report(SUMS_NAME, f"damaged: {f'its hash of {name} is wrong' if listed else f'no line for {name}'}")
        return actual is not None and (not known or actual in known)

    def parsed(name: str, schema: type[Record]) -> Record | None:
        try:
            return read_record(path / name, schema, "")
        except InputMissingError:  # which `is_sound` reports
            return None
        except DataError as error:
            report(name, error.message.replace("damaged file", "damaged"))
            return None

    sums = _read_sums(path, report)
    hash_of(path / SUMS_NAME)
    manifest = parsed(MANIFEST_NAME, Manifest)
    is_sound(MANIFEST_NAME)
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    shards = list(listed) or sorted({name.split(".")[0] for name in sums if _SHARD_FILE.fullmatch(name)})
    for name in shards:
        file = f"{name}.index.json"
        if is_sound(file, listed[name].index_sha256 if listed else None) and (index := parsed(file, ShardIndex)):
            indices[name] = index
    plan = json_bytes({"format_version": manifest.format_version, **manifest.options}) if manifest else None
    is_sound(PLAN_NAME, sha256_bytes(plan) if plan else None)
    for name in shards:
        file = f"{name}.tar"
        if not is_sound(file, listed[name].sha256 if listed else None) and hashes[file]:
            for reason in _damage(path / file, indices[name]) if name in indices else ():
                report(file, reason)
    rejects = [reject for index in indices.values() for reject in index.rejects]
    is_sound(REJECTS_NAME, sha256_bytes(rejects_text(rejects)) if len(indices) == len(shards) else None)
    known = {PLAN_NAME, REJECTS_NAME, MANIFEST_NAME, *(f"{n}.{end}" for n in shards for end in ("tar", "index.json"))}
    for name in sorted({file.name for file in path.iterdir() if _SHARD_FILE.fullmatch(file.name)} - known):
        report(name, "not in the manifest: left over, or the manifest is damaged")
    for name in sorted(sums.keys() - known):
        report(SUMS_NAME, f"damaged: has a line for {name}, which is no file of this folder")
    if len(problems) == before and manifest is not None:  # what the hashes cannot tell
        try:
            for shard in manifest.shards:
                read_shard_index(path, shard, manifest)
        except DataError as error:
            report(MANIFEST_NAME, error.message)
        if (manifest.num_samples, manifest.num_rejects) != (sum(s.samples for s in manifest.shards), len(rejects)):
            report(MANIFEST_NAME, "damaged: its numbers of samples and rejects are not those of its shards")
    return _Folder(path, manifest, indices, hashes)


def _read_sums(path: Path, report: Callable[[str, str], None]) -> dict[str, str]:
    try:
        text = (path / SUMS_NAME).read_text("utf-8", "replace")
    except FileNotFoundError:
        report(SUMS_NAME, "missing")
        return {}
    if not text:
        report(SUMS_NAME, "damaged: empty")
    sums: dict[str, str] = {}
    *lines, rest = text.split("\n")
    for number, line in enumerate(lines, start=1):
        match = _SUMS_LINE.fullmatch(line)
        if match is None or match[2] in sums:
            report(SUMS_NAME, f"damaged in line {number}")
        else:
            sums[match[2]] = match[1]
    if rest:  # the last line ends in a newline too
        report(SUMS_NAME, f"cut in line {len(lines) + 1}")
    return sums


def _damage(tar: Path, index: ShardIndex) -> Iterator[str]:
    size = tar.stat().st_size
    if size != index.size:
        yield f"{'cut' if size < index.size else 'longer'}: {size} bytes instead of {index.size}"
    in_members = False
    with tar.open("rb") as handle:
        for sample in index.samples:
            for extension, member in sample.members.items():
                if sha256_bytes(_read_at(handle, member)) != member.sha256:
                    in_members = True
                    yield f"damaged: key {sample.key}, member {extension}"
    if not in_members:
        yield "damaged between its members: headers or padding"


def _check_labels(labels: _Folder, images: _Folder, problems: list[Problem]) -> None:
    of = images.hashes[MANIFEST_NAME]
    if labels.manifest is not None and of and labels.manifest.options.get("images_manifest_sha256") != of:
        problems.append(Problem(labels.path / MANIFEST_NAME, "labels of other images"))
    for name, index in labels.indices.items():
        tar = f"{name}.tar"
        if name not in images.indices or labels.hashes[tar] != index.sha256:
            continue
        samples = {sample.key: sample for sample in images.indices[name].samples}
        with (labels.path / tar).open("rb") as handle:
            for entry in index.samples:
                reason = _label_fault(handle, entry, samples.get(entry.key))
                if reason is not None:
                    problems.append(Problem(labels.path / tar, f"key {entry.key}: {reason}"))


def _label_fault(handle: BinaryIO, entry: SampleEntry, image: SampleEntry | None) -> str | None:
    """What is wrong with a label, whose bytes are as they were written."""
    if image is None:
        return "no such image"
    if not {DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION} <= entry.members.keys():
        return "a member of the label is missing"
    members = (_read_at(handle, entry.members[name]) for name in (DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION))
    try:
        label = decode_disparity(*members, name="label")
    except DataError as error:
        return error.message
    hashes = [image.members[extension].sha256 for extension in IMAGE_EXTENSIONS if extension in image.members]
    return None if label.info.sha256 in hashes else "made for another image"


def _read_at(handle: BinaryIO, member: Member) -> bytes:
    handle.seek(member.offset)
    return handle.read(member.size)
