"""ImageNet (ILSVRC 2012) in every layout that it is passed around in.

The official nested tar, class folders or class tars, the flat validation set with the devkit's labels, names with a
WordNet id in them, Kaggle's tree, webdataset tars with `.cls` members, and Parquet files of the Hugging Face Hub: all
become one list, sorted by class and file name, so that equal images give equal shards whatever they lay in. Only rows
of Parquet files keep their order: one of them cannot be read without hundreds of its neighbours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from vq3dcli.data.images import SUFFIXES
from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Found, Source
from vq3dcli.data_tools.sources.imagenet_counts import compare_counts, official_sizes
from vq3dcli.data_tools.sources.listing import list_folder, list_source
from vq3dcli.data_tools.sources.parquet import is_parquet_name, list_rows
from vq3dcli.data_tools.sources.tars import is_compressed_name, is_tar_name
from vq3dcli.data_tools.sources.webdataset import class_labels
from vq3dcli.data_tools.sources.wnids import (
    WNID,
    ValidationLabels,
    standard_wnids,
    title_of,
    validation_number,
    wnid_in_name,
    wnid_of,
)
from vq3dcli.errors import InputMissingError, UsageError

Split = Literal["auto", "train", "val"]

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "test": "test",
}
_OTHER_TASKS = re.compile(r"ILSVRC2012_img_train_t3\.tar|ILSVRC2012_(bbox|devkit).*")


class _Labelled(NamedTuple):
    """A file and the class that a label beside it gives."""

    file: Found
    wnid: str | None


def imagenet_source(source: Path, *, leave_out: Path, split: Split = "auto", devkit: Path | None = None) -> Source:
    """The images of one split; class indices are positions among the sorted WordNet ids that occur.

    Args:
        source: A folder, a tar or a Parquet file.
        leave_out: The output, which may lie in the folder.
        split: `auto`: train where there is any, else val. Where no folder and no archive names a split, all is taken.
        devkit: Labels of the flat validation set; it is also found beside the images.

    Raises:
        InputMissingError: No such source, or no images of that split in it.
        UsageError: Flat validation images, and no devkit.
        DataError: A damaged archive or devkit.
    """
    if not source.exists():
        raise InputMissingError(f"no such file or folder ({source})", remedy="check the path")
    outer = [Found(source.name, FilePlace(str(source)), source.stat().st_size)]
    if source.is_dir():
        outer = list_folder(source, leave_out=leave_out)
    prefix = "" if source.is_file() else f"{source.name}/"
    chosen = _chosen_split(split, (f"{prefix}{file.path}" for file in outer if _may_hold_images(file)))
    parquet = [file for file in outer if is_parquet_name(file.path)]
    if parquet:
        labelled = _from_parquet([file for file in parquet if _is_of(f"{prefix}{file.path}", chosen)], source)
        others: Counter[str] = Counter()
    else:
        found = list_source(
            source,
            leave_out=leave_out,
            open_archive=lambda path: _is_of(f"{prefix}{path}", chosen) and not _is_of_another_task(path),
        )
        prefix = f"{source.name}/"
        chosen = _chosen_split(split, (f"{prefix}{file.path}" for file in found if _is_image(file)))
        images = [file for file in found if _is_image(file) and _is_of(f"{prefix}{file.path}", chosen)]
        others = Counter(Path(file.path).suffix.lower() or "no suffix" for file in found if not _is_image(file))
        labelled = _with_labels(images, found, source, devkit)
    if not labelled:
        raise InputMissingError(
            f"no ImageNet images{'' if chosen == 'any' else f' of the split {chosen}'} ({source})",
            remedy="--split, or --preset folder for other images",
        )
    result = _as_source(labelled, keep_order=bool(parquet))
    facts, notes, warnings = compare_counts(chosen, _class_counts(result), sum(1 for e in result.entries if e.reject))
    warnings += official_sizes([*outer])
    warnings += [
        f"compressed archive is passed over ({file.path})"
        for file in outer
        if is_compressed_name(file.path) and not _is_of_another_task(file.path)
    ]
    warnings += _misplaced(labelled)
    if others:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"passed over, since they are no images: {counted}")
    return replace(result, options={"split": chosen}, facts=facts, notes=notes, warnings=warnings)


def _chosen_split(split: Split, paths: Iterable[str]) -> str:
    """`train`, `val`, or `any` where no path names a split."""
    named = {_split_of(path) for path in paths} - {None}
    if split != "auto":
        return split if named else "any"
    return next((name for name in ("train", "val") if name in named), "any")


def _split_of(path: str) -> str | None:
    """The split that the innermost of the folders and archives in a path names, or the name of the file itself."""
    *folders, name = path.split("/")
    if validation_number(path) is not None:
        return "val"
    if not name.lower().endswith(SUFFIXES):
        folders.append(name)
    for folder in reversed(folders):
        for word in re.split(r"[^a-z]+", folder.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def _is_of(path: str, chosen: str) -> bool:
    """Whether a path belongs to the chosen split, or names none."""
    return chosen == "any" or _split_of(path) in (None, chosen)


def _is_image(file: Found) -> bool:
    return file.path.lower().endswith(SUFFIXES)


def _may_hold_images(file: Found) -> bool:
    if is_tar_name(file.path):
        return not _is_of_another_task(file.path)
    return _is_image(file) or is_parquet_name(file.path)


def _is_of_another_task(path: str) -> bool:
    return _OTHER_TASKS.fullmatch(path.rpartition("/")[2]) is not None


def _with_labels(images: list[Found], found: list[Found], source: Path, devkit: Path | None) -> list[_Labelled]:
    beside = class_labels(found, standard_wnids())
    truth = ValidationLabels(devkit, source, found)
    labelled = []
    for file in images:
        number = validation_number(file.path)
        wnid = beside[file.path] if file.path in beside else wnid_of(file.path)
        if wnid is None and file.path not in beside and number is not None:
            wnid = truth[number]
        labelled.append(_Labelled(file, wnid))
    return labelled


def _from_parquet(files: list[Found], source: Path) -> list[_Labelled]:
    labelled = []
    for file in files:
        assert isinstance(file.place, FilePlace)
        rows = list_rows(Path(file.place.file), f"{file.path}/")
        names = rows.class_names
        wnids = names if names and all(WNID.fullmatch(name) for name in names) else standard_wnids()
        if names and len(names) != len(wnids):
            raise UsageError(
                f"{len(names)} classes whose names are no WordNet ids ({file.path})", remedy="the Hub's imagenet-1k"
            )
        for row, label in zip(rows.found, rows.labels, strict=True):
            known = label is not None and 0 <= label < len(wnids)
            labelled.append(_Labelled(row, wnids[label] if known and label is not None else wnid_of(row.path)))
    return labelled


def _as_source(labelled: list[_Labelled], *, keep_order: bool) -> Source:
    names = sorted({wnid for _, wnid in labelled if wnid is not None})
    number = {wnid: index for index, wnid in enumerate(names)}
    entries = []
    for file, wnid in labelled:
        class_index = None if wnid is None else number[wnid]
        reject = file.problem or ("" if wnid else "no WordNet id in its path, and no label beside it")
        entries.append(Entry(file.path, file.place, file.size, class_index, reject))
    if not keep_order:
        entries.sort(key=_order)
    return Source(entries, names, [title_of(wnid) for wnid in names])


def _order(entry: Entry) -> tuple[int, str, str]:
    class_index = len(standard_wnids()) ** 2 if entry.class_index is None else entry.class_index
    name = entry.path.rpartition("/")[2]
    return class_index, re.sub(r"(_n\d{8})?\.\w+$", "", name), entry.path


def _class_counts(source: Source) -> Counter[str]:
    return Counter(source.class_names[e.class_index] for e in source.entries if e.class_index is not None)


def _misplaced(labelled: list[_Labelled]) -> list[str]:
    """Files whose name says another class than where they lie."""
    wrong = []
    for file, wnid in labelled:
        named = wnid_in_name(file.path.rpartition("/")[2])
        if wnid is not None and named is not None and named != wnid:
            wrong.append(f"{file.path} is taken for {wnid}")
    if not wrong:
        return []
    return [f"{len(wrong)} files whose names say another class than their place or label, the first: {wrong[0]}"]
