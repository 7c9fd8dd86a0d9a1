"""Any folder or tar of images, webdataset tars, or Parquet files: class folders, labels beside them, or one class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Source, counted
from vq3dcli.data_tools.sources.listing import is_compressed_name, is_tar_name, list_folder, list_tar
from vq3dcli.data_tools.sources.parquet import is_parquet_name, list_rows
from vq3dcli.data_tools.sources.webdataset import folder_of, manifest_classes, with_labels
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


def folder_source(source: Path, *, leave_out: Path, classes: Classes = "auto") -> Source:
    """The images of a folder, of a tar, of tars in a folder, or of Parquet files, in the order of their paths.

    Files that are known not to be images are passed over, and counted in a note. With `classes` `folders` the top-level
    folder names the class, below folders that all files have in common; a file outside is rejected. `none` is one
    class. `auto` takes labels of Parquet files and `.cls` files beside the images, else folders where at least half of
    the files lie in one.

    Raises `InputMissingError`: there is no such folder, or no file in it that may be an image; `UsageError`: `auto`,
    and the folders or archives are splits of a data set, or two parts of it name their classes differently;
    `DataError`: a damaged archive.
    """
    result = Source()
    files, names, titles = _list(source, leave_out, result)
    inside, root = _class_folders(files)
    if classes == "auto":
        _refuse_splits(source, files, inside, root)
        if any(file.label is not None for file in files):
            return _by_label(files, names, titles, result)
        good = [name for file, name in zip(files, inside, strict=True) if not file.reject]
        loose = good.count("")
        if 2 * loose > len(good) or not any(good):
            if loose < len(good):
                result.warnings.append(
                    f"{loose} of {len(good)} files lie beside the folders, so all are one class; --classes folders "
                    "takes the others alone"
                )
            classes = "none"
    result.options = {"classes": "none" if classes == "none" else "folders"}
    if classes == "none":
        result.entries = [file._replace(class_index=0) for file in files]
        result.class_names = [ONLY_CLASS]
        return result
    if root:
        result.notes.append(f"classes are the folders in {root}, which holds everything")
    result.class_names = sorted({name for file, name in zip(files, inside, strict=True) if name and not file.reject})
    number = {name: index for index, name in enumerate(result.class_names)}
    for file, name in zip(files, inside, strict=True):
        beside = "" if name in number else "lies beside the class folders, so it has no class (--classes none)"
        result.entries.append(file._replace(class_index=number.get(name), reject=file.reject or beside))
    return result


def _list(source: Path, leave_out: Path, result: Source) -> tuple[list[Entry], list[str], list[str]]:
    """All files that may be images, and what numbers among their labels mean: names and titles, or nothing.

    Files are sorted by path, then come rows of Parquet files; notes and warnings go to `result`.
    """
    if source.is_file() and is_parquet_name(source.name):
        outer = [Entry(source.name, FilePlace(str(source)), source.stat().st_size)]
    elif source.is_file() and (is_tar_name(source.name) or is_compressed_name(source.name)):
        outer = list(list_tar(source))
    else:
        outer = list_folder(source, leave_out=leave_out)
    files, rows = list[Entry](), list[Entry]()
    meanings: dict[str, tuple[list[str], list[str]]] = {}  # by what tells it, if only that it does not know
    for file in outer:
        if file.reject or not isinstance(file.place, FilePlace):
            files.append(file)
        elif is_parquet_name(file.path):
            listed, names = list_rows(Path(file.place.file), f"{file.path}/")
            rows += listed
            if any(row.label is not None for row in listed):
                meanings[file.path] = names, []
        elif is_tar_name(file.path):
            files += list_tar(Path(file.place.file), f"{file.path}/")
        elif is_compressed_name(file.path):
            result.warnings.append(f"compressed archive is passed over ({file.path})")
        else:
            files.append(file)
    kinds = {file: _known_kind(file.path) for file in sorted(files)}
    others = counted(Counter(kind for kind in kinds.values() if kind))
    images = [file for file in sorted(with_labels(files)) if not _known_kind(file.path)]
    for folder in sorted({folder_of(file) for file in images if file.label is not None}):
        meanings[str(folder)] = manifest_classes(folder)
    known = [*meanings.values()] or [([], [])]
    for path, (names, _) in meanings.items():
        if names != known[0][0]:
            raise UsageError(
                f"its classes are not those of the files before it ({path})", remedy="one data set at a time"
            )
    images += rows  # in their order: one of them cannot be read without hundreds of its neighbours
    if not images:
        passed_over = f"; passed over: {others}" if others else ""
        raise InputMissingError(
            f"no images in it ({source}){passed_over}", remedy="a folder with images, and another output"
        )
    if others:
        result.notes.append(f"passed over, since they are no images: {others}")
    names, titles = known[-1]
    return images, names, titles


def _known_kind(path: str) -> str:
    """What a file is called that is no image for sure; nothing for others."""
    name = path.rpartition("/")[2].lower()
    suffix = Path(name).suffix
    return name if name in _NO_IMAGES else suffix if _NO_IMAGE_SUFFIXES.fullmatch(suffix) else ""


def _class_folders(files: Sequence[Entry]) -> tuple[list[str], str]:
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
    good = [path for path, file in zip(folders, files, strict=True) if not file.reject]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in good}) == 1 and any(len(path) > depth + 1 for path in good):
        depth += 1
    return [path[depth] if len(path) > depth else "" for path in folders], "/".join(good[0][:depth]) if good else ""


def _archives(files: Sequence[Entry]) -> set[str]:
    parts = {part for file in files for part in file.path.split("/")[:-1]}
    return {part for part in parts if is_tar_name(part) or is_parquet_name(part)}


def _refuse_splits(source: Path, files: Sequence[Entry], inside: list[str], root: str) -> None:
    """Raise `UsageError` where several of what would be classes, or of the archives, are called train, val or test."""
    folders = {name for name in inside if name.lower() in _SPLITS}
    words = {word for name in _archives(files) for word in re.split(r"[^a-z]+", name.lower())} & _SPLITS
    if len(folders) < 2 and len(words) < 2:
        return
    names = sorted(folders if len(folders) > 1 else words)
    one = str(source / root / names[0]) if source.is_dir() and len(folders) > 1 else f"what is of {names[0]} alone"
    raise UsageError(
        f"{' and '.join(names)} are splits of a data set, not classes ({source})",
        remedy=f"{one}; or --classes folders, or --classes none for all as one class",
    )


def _by_label(files: Sequence[Entry], known: list[str], titles: list[str], result: Source) -> Source:
    """Classes by the labels: numbers count the names that are known, else each label is a class by itself."""
    texts = {file.label for file in files if file.label is not None}
    numeric = all(_NUMBER.fullmatch(text) for text in texts)
    if numeric and known:
        names, number = known, {str(i): i for i in range(len(known))}
    else:
        names = sorted(texts, key=int) if numeric else sorted(texts)
        number = {name: i for i, name in enumerate(names)}
    if len(set(names)) < len(names):
        raise DataError("two classes of one name", remedy="--classes none, or other names")
    for file in files:
        label = file.label
        unknown = "" if label is None or label in number else f"its label {label[:20]} is none of {len(names)} classes"
        index = None if label is None else number.get(label)
        result.entries.append(file._replace(class_index=index, reject=file.reject or unknown))
    unlabelled = sum(entry.class_index is None and not entry.reject for entry in result.entries)
    if unlabelled:
        result.warnings.append(f"{unlabelled} images have no label beside them, and so no class")
    result.notes.append(f"classes by the labels beside the images: {len(names)}")
    result.class_names, result.options = names, {"classes": "labels"}
    result.class_titles = titles if names == known else []
    return result
