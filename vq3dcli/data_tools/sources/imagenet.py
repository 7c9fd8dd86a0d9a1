"""ImageNet (ILSVRC 2012) in every layout that it is passed around in.

The official nested tar, class folders or class tars, the flat validation set with the devkit's labels, names with a
WordNet id in them, Kaggle's tree, webdataset tars with `.cls` members, and Parquet files of the Hugging Face Hub: all
become one list, sorted by class and file name, so that equal images give equal shards whatever they lay in. Only rows
of Parquet files keep their order: one of them cannot be read without hundreds of its neighbours.

The numbers of images are those of https://image-net.org/challenges/LSVRC/2012/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.data.images import SUFFIXES
from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Source, counted
from vq3dcli.data_tools.sources.listing import is_compressed_name, is_tar_name, list_folder, list_source
from vq3dcli.data_tools.sources.parquet import is_parquet_name, list_rows
from vq3dcli.data_tools.sources.webdataset import class_labels, with_labels
from vq3dcli.data_tools.sources.wnids import (
    WNID,
    standard_wnids,
    validation_labels,
    validation_number,
    wnid_in_name,
    wnid_of,
)
from vq3dcli.errors import InputMissingError, UsageError

NUM_CLASSES = 1000
# Images of a whole split, and the fewest and most of a class.
EXPECTED = {"train": (1_281_167, 732, 1300), "val": (50_000, 50, 50)}
ARCHIVE_SIZES = {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160}
_SHOWN = 5
_SPLIT_WORDS = {"training": "train", "validation": "val", "valid": "val"} | {s: s for s in ("train", "val", "test")}
_OTHER_TASKS = re.compile(r"ILSVRC2012_img_train_t3\.tar|ILSVRC2012_(bbox|devkit).*")
_Labelled = list[tuple[Entry, str | None]]  # files, and the WordNet ids of their classes


def imagenet_source(source: Path, *, leave_out: Path, split: str = "auto", devkit: Path | None = None) -> Source:
    """The images of one split; class indices are positions among the sorted WordNet ids that occur.

    `split` is `train`, `val`, or `auto`: train where there is any, else val; where no folder and no archive names a
    split, all is taken. `devkit` has the labels of the flat validation set; it is also found beside the images.

    Raises `InputMissingError`: no such source, or no images of that split in it; `UsageError`: flat validation images,
    and no devkit; `DataError`: a damaged archive or devkit.
    """
    if not source.exists():
        raise InputMissingError(f"no such file or folder ({source})", remedy="check the path")
    outer = [Entry(source.name, FilePlace(str(source)), source.stat().st_size)]
    if source.is_dir():
        outer = list_folder(source, leave_out=leave_out)

    def holds_images(file: Entry) -> bool:
        tar = is_tar_name(file.path) and not _is_of_another_task(file.path)
        return tar or _is_image(file) or is_parquet_name(file.path)

    prefix = "" if source.is_file() else f"{source.name}/"
    chosen = _chosen_split(split, (f"{prefix}{file.path}" for file in outer if holds_images(file)))
    parquet = [file for file in outer if is_parquet_name(file.path)]
    others: Counter[str] = Counter()
    if parquet:
        labelled = _from_parquet([file for file in parquet if _is_of(f"{prefix}{file.path}", chosen)])
    else:
        files = list_source(
            source,
            leave_out=leave_out,
            open_archive=lambda path: _is_of(f"{prefix}{path}", chosen) and not _is_of_another_task(path),
        )
        prefix = f"{source.name}/"
        chosen = _chosen_split(split, (f"{prefix}{file.path}" for file in files if _is_image(file)))
        images = [file for file in files if _is_image(file) and _is_of(f"{prefix}{file.path}", chosen)]
        others.update(Path(file.path).suffix.lower() or "no suffix" for file in files if not _is_image(file))
        labelled = _with_labels(images, files, source, devkit)
    if not labelled:
        raise InputMissingError(
            f"no ImageNet images{'' if chosen == 'any' else f' of the split {chosen}'} ({source})",
            remedy="--split, or --preset folder for other images",
        )
    names = sorted({wnid for _, wnid in labelled if wnid is not None})
    number = {wnid: index for index, wnid in enumerate(names)}
    result = Source(
        class_names=names,
        class_titles=[", ".join(imagenet_names().get(wnid, (wnid,))) for wnid in names],
        options={"split": chosen},
    )
    for file, wnid in labelled:
        reject = file.reject or ("" if wnid else "no WordNet id in its path, and no label beside it")
        result.entries.append(file._replace(class_index=number[wnid] if wnid else None, reject=reject))
    if not parquet:
        result.entries.sort(key=_order)
    counts = Counter(names[e.class_index] for e in result.entries if e.class_index is not None)
    compare_counts(result, chosen, counts, sum(bool(entry.reject) for entry in result.entries))
    result.warnings += official_sizes(outer)
    for file in outer:
        if is_compressed_name(file.path) and not _is_of_another_task(file.path):
            result.warnings.append(f"compressed archive is passed over ({file.path})")
    misplaced = [(f, w) for f, w in labelled if w and (wnid_in_name(f.path.rpartition("/")[2]) or w) != w]
    if misplaced:
        first = f"{misplaced[0][0].path} is taken for {misplaced[0][1]}"
        result.warnings.append(
            f"{len(misplaced)} files whose names say another class than their place or label, the first: {first}"
        )
    if others:
        result.notes.append(f"passed over, since they are no images: {counted(others)}")
    return result


def _chosen_split(split: str, paths: Iterable[str]) -> str:
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
    words = (word for folder in reversed(folders) for word in re.split(r"[^a-z]+", folder.lower()))
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _is_of(path: str, chosen: str) -> bool:
    """Whether a path belongs to the chosen split, or names none."""
    return chosen == "any" or _split_of(path) in (None, chosen)


def _is_image(file: Entry) -> bool:
    return file.path.lower().endswith(SUFFIXES)


def _is_of_another_task(path: str) -> bool:
    return _OTHER_TASKS.fullmatch(path.rpartition("/")[2]) is not None


def _with_labels(images: list[Entry], files: list[Entry], source: Path, devkit: Path | None) -> _Labelled:
    beside = class_labels(with_labels(files), standard_wnids())
    truth: Mapping[int, str] | None = None
    labelled: _Labelled = []
    for file in images:
        number = validation_number(file.path)
        wnid = beside[file.path] if file.path in beside else wnid_of(file.path)
        if wnid is None and file.path not in beside and number is not None:
            truth = validation_labels(devkit, source, files) if truth is None else truth
            wnid = truth.get(number)
        labelled.append((file, wnid))
    return labelled


def _from_parquet(files: list[Entry]) -> _Labelled:
    labelled: _Labelled = []
    for file in files:
        rows, names = list_rows(Path(file.place.file), f"{file.path}/")
        wnids = names if names and all(WNID.fullmatch(name) for name in names) else standard_wnids()
        if names and len(names) != len(wnids):
            raise UsageError(
                f"{len(names)} classes whose names are no WordNet ids ({file.path})", remedy="the Hub's imagenet-1k"
            )
        for row in rows:
            number = -1 if row.label is None else int(row.label)
            labelled.append((row, wnids[number] if 0 <= number < len(wnids) else wnid_of(row.path)))
    return labelled


def _order(entry: Entry) -> tuple[int, str, str]:
    class_index = len(standard_wnids()) ** 2 if entry.class_index is None else entry.class_index
    name = entry.path.rpartition("/")[2]
    return class_index, re.sub(r"(_n\d{8})?\.\w+$", "", name), entry.path


def compare_counts(result: Source, split: str, counts: Mapping[str, int], unusable: int) -> None:
    """Say what was found against what a whole split has, as facts, notes and warnings of `result`.

    A subset of the classes is a note; all of the classes with other counts is a warning that names the classes. Of the
    split `any` only the classes are compared. `unusable` images have no class, or are no regular files.
    """
    total, (whole, fewest, most) = sum(counts.values()), EXPECTED.get(split, (0, 0, 0))
    result.facts |= {"found": total, "found_classes": len(counts)}
    if whole:
        result.facts |= {"expected": whole, "expected_classes": NUM_CLASSES}
    what = f"found {total} images of {len(counts)} classes"
    if unusable:
        result.warnings.append(f"{unusable} files cannot be used: they have no class, or are no regular files")
    own_numbers = f"classes are numbered among these {len(counts)}, not among the {NUM_CLASSES} of ImageNet"
    if not whole:
        result.notes.append(f"{what}; no folder or archive says which split they are")
        if len(counts) < NUM_CLASSES:
            result.warnings.append(f"{own_numbers}: other images count alike only if they have the same classes")
        return
    if len(counts) < NUM_CLASSES:
        part = f"a part, the whole has {whole} of {NUM_CLASSES} classes"
        result.notes.append(f"{what} of the split {split}: {part}; {own_numbers}")
        return
    if (total, len(counts)) == (whole, NUM_CLASSES):
        result.notes.append(f"{what}: the whole split {split}")
    else:
        difference = f"{abs(total - whole)} {'less' if total < whole else 'more'}"
        result.warnings.append(
            f"{what} of the split {split}, {difference} than the {whole} of {NUM_CLASSES} that it has"
        )
    odd = [f"{wnid} has {count}" for wnid, count in sorted(counts.items()) if not fewest <= count <= most]
    if odd:
        usual = f"{fewest} to {most}" if fewest < most else f"{most}"
        rest = f", and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        result.warnings.append(f"classes with other than {usual} images: {', '.join(odd[:_SHOWN])}{rest}")


def official_sizes(files: Iterable[Entry]) -> list[str]:
    """Warnings about official archives of another size than they have."""
    sizes = ((file, ARCHIVE_SIZES.get(file.path.rpartition("/")[2], file.size)) for file in files)
    return [
        f"the official archive has {size} bytes, this one {file.size} ({file.path})"
        for file, size in sizes
        if size != file.size
    ]
