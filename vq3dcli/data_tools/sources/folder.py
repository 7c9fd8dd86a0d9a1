"""Any folder or tar of images, webdataset tars, or Parquet files: class folders, labels beside them, or one class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Found, Place, Source
from vq3dcli.data_tools.sources.listing import list_folder
from vq3dcli.data_tools.sources.parquet import is_parquet_name, list_rows
from vq3dcli.data_tools.sources.tars import is_compressed_name, is_tar_name, list_tar
from vq3dcli.data_tools.sources.webdataset import labels_beside, manifest_classes
from vq3dcli.errors import DataError, InputMissingError, UsageError

Classes = Literal["auto", "folders", "none"]
ONLY_CLASS = "all"

_NO_IMAGES = {"thumbs.db", "desktop.ini", "readme", "license", "sha256sums", "makefile"}
# What lies beside images as captions, labels, lists and documents.
_NO_IMAGE_SUFFIXES = re.compile(
    r"\.(txt|csv|tsv|jsonl?|ndjson|xml|ya?ml|toml|cfg|ini|log|md|rst|html?|pdf|py|sh|db|lnk|aae|xmp|np[yz]|pfm|mat|pkl"
    r"|pickle|pt|safetensors|lst|idx|cls|caption|url|gz|md5|sha256|mp4|mov|avi|mkv|webm|mp3|wav)"
)
_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass
class _Listed:
    """The files of a source.

    Attributes:
        files: All that may be images: sorted by path, then rows of Parquet files.
        labels: What labels say, by the image's place.
        named: Whether anything told what the numbers among the labels mean, if only that it does not know.
        class_names: What they mean; empty where nothing tells.
        class_titles, notes, warnings: See `Source`.
        others: Files that are known not to be images, by suffix.
    """

    files: list[Found] = field(default_factory=list)
    labels: dict[Place, str] = field(default_factory=dict)
    named: bool = False
    class_names: list[str] = field(default_factory=list)
    class_titles: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def source(self, entries: list[Entry], names: list[str], classes: str, titles: Sequence[str] = ()) -> Source:
        return Source(
            entries, names, list(titles), options={"classes": classes}, notes=self.notes, warnings=self.warnings
        )


def folder_source(source: Path, *, leave_out: Path, classes: Classes = "auto") -> Source:
    """The images of a folder, of a tar, of tars in a folder, or of Parquet files, in the order of their paths.

    Files that are known not to be images are passed over, and counted in a note.

    Args:
        leave_out: The output, which may lie in the folder.
        classes: `folders`: the top-level folder names the class, below folders that all files have in common; a file
            outside is rejected. `none`: one class. `auto`: labels of Parquet files and `.cls` files beside the images,
            else folders where at least half of the files lie in one.

    Raises:
        InputMissingError: There is no such folder, or no file in it that may be an image.
        UsageError: `auto`, and the folders or archives are splits of a data set; or two parts of it name their classes
            differently.
        DataError: A damaged archive.
    """
    listed = _list(source, leave_out)
    if not listed.files:
        passed = f"; passed over: {_counted(listed.others)}" if listed.others else ""
        raise InputMissingError(
            f"no images in it ({source}){passed}", remedy="a folder with images, and another output"
        )
    if listed.others:
        listed.notes.append(f"passed over, since they are no images: {_counted(listed.others)}")
    inside, root = _class_folders(listed.files)
    if classes == "auto":
        _refuse_splits(source, listed.files, inside, root)
        if listed.labels:
            return _by_label(listed)
        good = [name for file, name in zip(listed.files, inside, strict=True) if not file.problem]
        loose = good.count("")
        if 2 * loose > len(good) or not any(good):
            if loose < len(good):
                listed.warnings.append(
                    f"{loose} of {len(good)} files lie beside the folders, so all are one class; --classes folders "
                    "takes the others alone"
                )
            classes = "none"
    if classes == "none":
        entries = [Entry(file.path, file.place, file.size, 0, file.problem) for file in listed.files]
        return listed.source(entries, [ONLY_CLASS], "none")
    if root:
        listed.notes.append(f"classes are the folders in {root}, which holds everything")
    names = sorted({name for file, name in zip(listed.files, inside, strict=True) if name and not file.problem})
    number = {name: index for index, name in enumerate(names)}
    entries = []
    for file, name in zip(listed.files, inside, strict=True):
        beside = "" if name in number else "lies beside the class folders, so it has no class (--classes none)"
        entries.append(Entry(file.path, file.place, file.size, number.get(name), file.problem or beside))
    return listed.source(entries, names, "folders")


def _list(source: Path, leave_out: Path) -> _Listed:
    listed, found = _Listed(), []
    if source.is_file() and is_parquet_name(source.name):
        outer = [Found(source.name, FilePlace(str(source)), source.stat().st_size)]
    elif source.is_file() and (is_tar_name(source.name) or is_compressed_name(source.name)):
        outer = list(list_tar(source))
    else:
        outer = list_folder(source, leave_out=leave_out)
    rows: list[Found] = []
    for file in outer:
        if file.problem or not isinstance(file.place, FilePlace):
            found.append(file)
        elif is_parquet_name(file.path):
            rows += _rows(listed, file, Path(file.place.file))
        elif is_tar_name(file.path):
            found += list_tar(Path(file.place.file), f"{file.path}/")
        elif is_compressed_name(file.path):
            listed.warnings.append(f"compressed archive is passed over ({file.path})")
        else:
            found.append(file)
    labels = labels_beside(found)
    for folder in sorted({label.folder for label in labels.values()}):
        _name_classes(listed, str(folder), *manifest_classes(folder))
    for file in sorted(found):
        kind = _known_kind(file.path)
        if kind:
            listed.others[kind] += 1
            continue
        listed.files.append(file)
        if file.path in labels:
            listed.labels[file.place] = labels[file.path].text
    listed.files += rows  # in their order: one of them cannot be read without hundreds of its neighbours
    return listed


def _rows(listed: _Listed, file: Found, path: Path) -> list[Found]:
    rows = list_rows(path, f"{file.path}/")
    labels = {row.place: str(n) for row, n in zip(rows.found, rows.labels, strict=True) if n is not None}
    if labels:
        _name_classes(listed, file.path, rows.class_names, [])
    listed.labels |= labels
    return rows.found


def _name_classes(listed: _Listed, path: str, names: list[str], titles: list[str]) -> None:
    if listed.named and names != listed.class_names:
        raise UsageError(f"its classes are not those of the files before it ({path})", remedy="one data set at a time")
    listed.named, listed.class_names, listed.class_titles = True, names, titles


def _known_kind(path: str) -> str:
    """What a file is called that is no image for sure; nothing for others."""
    name = path.rpartition("/")[2].lower()
    suffix = Path(name).suffix
    return name if name in _NO_IMAGES else suffix if _NO_IMAGE_SUFFIXES.fullmatch(suffix) else ""


def _class_folders(files: Sequence[Found]) -> tuple[list[str], str]:
    """The first folder of each file below those that all have in common, or nothing; and what they have in common.

    The last of these is a class where nothing else is. Archives count as folders, but not where they are numbered parts
    of one set: `00000.tar`, `train-00001.tar`.
    """
    folders = [file.path.split("/")[:-1] for file in files]
    archives = _archives(files)
    if len({re.sub(r"\d+", "", name) for name in archives}) > 1:  # one for each class
        folders = [[part.removesuffix(".tar") for part in path] for path in folders]
    else:
        folders = [[part for part in path if part not in archives] for path in folders]
    good = [path for path, file in zip(folders, files, strict=True) if not file.problem]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in good}) == 1 and any(len(path) > depth + 1 for path in good):
        depth += 1
    return [path[depth] if len(path) > depth else "" for path in folders], "/".join(good[0][:depth]) if good else ""


def _archives(files: Sequence[Found]) -> set[str]:
    parts = {part for file in files for part in file.path.split("/")[:-1]}
    return {part for part in parts if is_tar_name(part) or is_parquet_name(part)}


def _refuse_splits(source: Path, files: Sequence[Found], inside: list[str], root: str) -> None:
    """Raise `UsageError` where several of what would be classes, or of the archives, are called train, val or test."""
    folders = {name for name in inside if name.lower() in _SPLITS}
    words = {word for name in _archives(files) for word in re.split(r"[^a-z]+", name.lower())} & _SPLITS
    if len(folders) < 2 and len(words) < 2:
        return
    found = sorted(folders if len(folders) > 1 else words)
    one = str(source / root / found[0]) if source.is_dir() and len(folders) > 1 else f"what is of {found[0]} alone"
    raise UsageError(
        f"{' and '.join(found)} are splits of a data set, not classes ({source})",
        remedy=f"{one}; or --classes folders, or --classes none for all as one class",
    )


def _by_label(listed: _Listed) -> Source:
    """Classes by the labels: numbers count the names that are known, else each label is a class by itself."""
    texts = set(listed.labels.values())
    numeric = all(_NUMBER.fullmatch(text) for text in texts)
    if numeric and listed.class_names:
        names, number = listed.class_names, {str(i): i for i in range(len(listed.class_names))}
    else:
        names = sorted(texts, key=int) if numeric else sorted(texts)
        number = {name: i for i, name in enumerate(names)}
    if len(set(names)) < len(names):
        raise DataError("two classes of one name", remedy="--classes none, or other names")
    entries = []
    for file in listed.files:
        label = listed.labels.get(file.place)
        unknown = "" if label is None or label in number else f"its label {label[:20]} is none of {len(names)} classes"
        index = None if label is None else number.get(label)
        entries.append(Entry(file.path, file.place, file.size, index, file.problem or unknown))
    unlabelled = sum(entry.class_index is None and not entry.reject for entry in entries)
    if unlabelled:
        listed.warnings.append(f"{unlabelled} images have no label beside them, and so no class")
    listed.notes.append(f"classes by the labels beside the images: {len(names)}")
    titles = listed.class_titles if names == listed.class_names else []
    return listed.source(entries, names, "labels", titles)


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
