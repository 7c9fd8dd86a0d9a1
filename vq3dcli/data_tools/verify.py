"""Reading every byte of a shard folder, and naming what is not as it was written.

Each file is vouched for by others: a shard by its index, its manifest and `SHA256SUMS`, an index by the manifest and
`SHA256SUMS`, and so on. A file that agrees with any of them is sound, and then what disagrees is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
    SampleEntry,
    ShardEntry,
    ShardIndex,
    has_views,
    read_record,
)
from vq3dcli.data.shard_reader import decode_disparity
from vq3dcli.data_tools.job import rejects_text
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import read_error, sha256_bytes, sha256_file
from vq3dcli.sealed import parse_json

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
    """What was looked at, and what was found.

    Attributes:
        problems: In the order in which they were found.
        files: Number of files that were read.
        size: Their bytes.
        unfinished: Folders of labels that are being made, or were never finished; they are passed over.
    """

    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    size: int = 0
    unfinished: list[Path] = field(default_factory=list)


def verify_folder(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Check every byte of a finished shard folder, and of its labels.

    Args:
        folder: Of images, with all labels below it, or of labels.
        progress: Called with (bytes read, all bytes).

    Raises:
        InputMissingError: Not a finished shard folder.
    """
    if not _is_finished(folder):
        raise InputMissingError(f"no finished shards ({folder})", remedy="the folder that holds manifest.json")
    found = Verification()
    folders = [folder]
    if (folder / DISPARITY_FOLDER).is_dir():
        labels = sorted(path for path in (folder / DISPARITY_FOLDER).iterdir() if path.is_dir())
        folders += [path for path in labels if _is_finished(path)]
        found.unfinished += [path for path in labels if not _is_finished(path)]
    total = sum(path.stat().st_size for each in folders for path in each.iterdir() if path.is_file())

    def advance() -> None:
        progress(found.size, total)

    progress(0, total)
    images: _Folder | None = None
    for each in folders:
        checked = _Folder(each, found, advance)
        checked.check()
        if each == folder:
            images = checked
        elif images is not None:
            checked.check_labels(images)
    progress(total, total)
    return found


def _is_finished(folder: Path) -> bool:
    """Whether a shard folder was finished once: of the two files that are written last at least one is there."""
    return any((folder / name).exists() for name in (MANIFEST_NAME, SUMS_NAME))


class _Folder:
    """One shard folder under examination."""

    def __init__(self, path: Path, found: Verification, advance: Callable[[], None]) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        self.indices: dict[str, ShardIndex] = {}
        self._found = found
        self._advance = advance
        self._hashes: dict[str, str] = {}
        self._sums: dict[str, str] = {}
        self._seen: set[Problem] = set()
        self._entries: dict[str, ShardEntry] = {}

    def check(self) -> None:
        """Check everything that can be checked in this folder alone."""
        self._read_sums()
        self._read_manifest()
        self._read_indices()
        self._check_plan()
        self._check_shards()
        self._check_rejects()
        self._check_manifest()
        self._check_names()

    def check_labels(self, images: _Folder) -> None:
        """Check that these are labels of those images."""
        if self.manifest is not None and images.hash_of(MANIFEST_NAME) is not None:
            of = self.manifest.options.get("images_manifest_sha256")
            if of != images.hash_of(MANIFEST_NAME):
                self._problem(MANIFEST_NAME, "labels of other images")
        for name, index in self.indices.items():
            shard = images.indices.get(name)
            tar = f"{name}.tar"
            if shard is None or self.hash_of(tar) != index.sha256:
                continue
            samples = {sample.key: sample for sample in shard.samples}
            with (self.path / tar).open("rb") as handle:
                for entry in index.samples:
                    members = {}
                    for extension in (DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION):
                        if extension in entry.members:
                            handle.seek(entry.members[extension].offset)
                            members[extension] = handle.read(entry.members[extension].size)
                    reason = _label_fault(members, samples.get(entry.key))
                    if reason is not None:
                        self._problem(tar, f"key {entry.key}: {reason}")

    def hash_of(self, name: str) -> str | None:
        """SHA-256 of a file of this folder, computed once; None if it is not there."""
        path = self.path / name
        if name not in self._hashes:
            try:
                self._found.size += path.stat().st_size
                self._hashes[name] = sha256_file(path)
            except (FileNotFoundError, InputMissingError):
                return None
            except OSError as error:
                raise read_error(path, error) from error
            self._found.files += 1
            self._advance()
        return self._hashes[name]

    def _problem(self, name: str, reason: str) -> None:
        problem = Problem(self.path / name, reason)
        if problem not in self._seen:
            self._seen.add(problem)
            self._found.problems.append(problem)

    def _read_sums(self) -> None:
        try:
            text = (self.path / SUMS_NAME).read_bytes()
        except FileNotFoundError:
            self._problem(SUMS_NAME, "missing")
            return
        self.hash_of(SUMS_NAME)
        if not text:
            self._problem(SUMS_NAME, "damaged: empty")
        lines = text.decode("utf-8", "replace").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            match = _SUMS_LINE.fullmatch(line)
            if match is None or match[2] in self._sums:
                self._problem(SUMS_NAME, f"damaged in line {number}")
            else:
                self._sums[match[2]] = match[1]
        if lines[-1]:  # the last line ends in a newline too
            self._problem(SUMS_NAME, f"cut in line {len(lines)}")

    def _read_manifest(self) -> None:
        try:
            self.manifest = read_record(self.path / MANIFEST_NAME, Manifest, "")
            self._entries = {shard.name: shard for shard in self.manifest.shards}
        except (DataError, InputMissingError) as error:
            self._problem(MANIFEST_NAME, _reason(error))

    def _read_indices(self) -> None:
        for name in self._shard_names():
            file = f"{name}.index.json"
            entry = self._entries.get(name)
            references = {"manifest": None if entry is None else entry.index_sha256, "sums": self._sums.get(file)}
            if self._is_sound(file, references):
                try:
                    self.indices[name] = read_record(self.path / file, ShardIndex, "")
                except (DataError, InputMissingError) as error:
                    self._problem(file, _reason(error))

    def _shard_names(self) -> list[str]:
        if self.manifest is not None:
            return [shard.name for shard in self.manifest.shards]
        files = [*self._sums, *(path.name for path in self.path.iterdir())]
        return sorted({name.split(".")[0] for name in files if _SHARD_FILE.fullmatch(name)})

    def _is_sound(self, file: str, references: dict[str, str | None]) -> bool:
        """Whether a file is as at least one of its references says; names it, or the references that are wrong.

        Args:
            references: SHA-256 by where it stands: `manifest`, `sums`, or the name of the shard whose index has it.
        """
        actual = self.hash_of(file)
        if actual is None:
            self._problem(file, "missing")
            return False
        known = {place: sha256 for place, sha256 in references.items() if sha256 is not None}
        wrong = [place for place, sha256 in known.items() if sha256 != actual]
        if wrong and len(wrong) == len(known):
            self._problem(file, "damaged: its hash differs from what was written")
            return False
        for place in wrong:
            holder = {"manifest": MANIFEST_NAME, "sums": SUMS_NAME}.get(place, f"{place}.index.json")
            self._problem(holder, f"damaged: its hash of {file} is wrong")
        if not known:
            self._problem(SUMS_NAME if self._sums else MANIFEST_NAME, f"damaged: knows nothing of {file}")
        elif self._sums and "sums" not in known:
            self._problem(SUMS_NAME, f"damaged: no line for {file}")
        return True

    def _check_plan(self) -> None:
        references = {"sums": self._sums.get(PLAN_NAME)}
        for name, index in self.indices.items():
            references[name] = index.plan_sha256
        if not self._is_sound(PLAN_NAME, references) or not self.manifest:
            return
        try:
            plan = parse_json((self.path / PLAN_NAME).read_bytes(), name=PLAN_NAME, remedy="")
        except DataError as error:
            self._problem(PLAN_NAME, error.message)
            return
        if {key: value for key, value in plan.items() if key != "format_version"} != self.manifest.options:
            self._problem(MANIFEST_NAME, "damaged: its options are not those of the plan")

    def _check_shards(self) -> None:
        for name in self._shard_names():
            file, entry, index = f"{name}.tar", self._entries.get(name), self.indices.get(name)
            references = {
                name: None if index is None else index.sha256,
                "manifest": None if entry is None else entry.sha256,
                "sums": self._sums.get(file),
            }
            if self._is_sound(file, references) or index is None or self.hash_of(file) is None:
                continue
            for reason in _damage(self.path / file, index):
                self._problem(file, reason)

    def _check_rejects(self) -> None:
        rejects = [reject for name in sorted(self.indices) for reject in self.indices[name].rejects]
        complete = self.manifest is not None and len(self.indices) == len(self.manifest.shards)
        expected = sha256_bytes(rejects_text(rejects)) if complete else None
        self._is_sound(REJECTS_NAME, {"manifest": expected, "sums": self._sums.get(REJECTS_NAME)})

    def _check_manifest(self) -> None:
        manifest = self.manifest
        if manifest is None:
            return
        listed = self._sums.get(MANIFEST_NAME)
        if listed is not None and listed != self.hash_of(MANIFEST_NAME):
            self._problem(MANIFEST_NAME, f"damaged: its hash differs from the one in {SUMS_NAME}")
        elif self._sums and listed is None:
            self._problem(SUMS_NAME, f"damaged: no line for {MANIFEST_NAME}")
        self.hash_of(MANIFEST_NAME)
        for shard in manifest.shards:
            index = self.indices.get(shard.name)
            if index is not None and (shard.samples, shard.size) != (len(index.samples), index.size):
                self._problem(MANIFEST_NAME, f"damaged: what it says about {shard.name} is not what its index says")
            if index is not None and not all(has_views(sample, manifest.views) for sample in index.samples):
                self._problem(MANIFEST_NAME, f"damaged: {shard.name} has not the views that it says")
        if manifest.num_samples != sum(shard.samples for shard in manifest.shards):
            self._problem(MANIFEST_NAME, "damaged: its number of samples is not that of its shards")
        if len(self.indices) == len(manifest.shards):
            rejects = sum(len(index.rejects) for index in self.indices.values())
            if rejects != manifest.num_rejects:
                self._problem(MANIFEST_NAME, "damaged: its number of rejects is not that of its shards")

    def _check_names(self) -> None:
        """Find shards that nobody lists, and lines for files that are not there."""
        known = {f"{name}.{suffix}" for name in self._shard_names() for suffix in ("tar", "index.json")}
        known |= {PLAN_NAME, REJECTS_NAME, MANIFEST_NAME}
        for path in sorted(self.path.iterdir()):
            if _SHARD_FILE.fullmatch(path.name) and path.name not in known:
                self._problem(path.name, "not in the manifest: left over, or the manifest is damaged")
        for name in self._sums:
            if name not in known:
                self._problem(SUMS_NAME, f"damaged: has a line for {name}, which is no file of this folder")


def _damage(tar: Path, index: ShardIndex) -> Iterator[str]:
    """Where a shard differs from its index."""
    size = tar.stat().st_size
    if size != index.size:
        yield f"{'cut' if size < index.size else 'longer'}: {size} bytes instead of {index.size}"
    named = False
    with tar.open("rb") as handle:
        for sample in index.samples:
            for extension, member in sample.members.items():
                handle.seek(member.offset)
                if sha256_bytes(handle.read(member.size)) != member.sha256:
                    named = True
                    yield f"damaged: key {sample.key}, member {extension}"
    if not named:
        yield "damaged between its members: headers or padding"


def _label_fault(members: dict[str, bytes], image: SampleEntry | None) -> str | None:
    """What is wrong with the bytes of a label, which are as they were written."""
    if image is None:
        return "no such image"
    if len(members) != 2:
        return "a member of the label is missing"
    try:
        label = decode_disparity(members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name="label")
    except DataError as error:
        return error.message
    hashes = [image.members[extension].sha256 for extension in IMAGE_EXTENSIONS if extension in image.members]
    return None if label.info.sha256 in hashes else "made for another image"


def _reason(error: DataError | InputMissingError) -> str:
    return "missing" if isinstance(error, InputMissingError) else error.message.replace("damaged file", "damaged")
