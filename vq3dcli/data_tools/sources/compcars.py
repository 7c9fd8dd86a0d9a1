"""CompCars: photos of cars with make, model, year, type, viewpoint and a box (Yang et al., CVPR 2015).

The extracted tree is read, with or without `data/` above it:
    image/MAKE/MODEL/YEAR/NAME.jpg                    numbers from 1 on; the year may be `unknown`
    label/MAKE/MODEL/YEAR/NAME.txt                    viewpoint, number of boxes, `x1 y1 x2 y2` from 1 on
    misc/make_model_name.mat, car_type.mat, attributes.txt
    train_test_split/classification/train.txt, test.txt
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vq3dcli.data_tools.sources.entry import Box, Entry, FilePlace, Found, Source
from vq3dcli.data_tools.sources.listing import list_source
from vq3dcli.data_tools.sources.matlab import load_mat
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError, UnavailableError

ClassBy = Literal["model", "make", "type", "viewpoint"]
CarSplit = Literal["all", "train", "test"]

VIEWPOINTS = {1: "front", 2: "rear", 3: "side", 4: "front-side", 5: "rear-side"}
IMAGES, MAKES, MODELS = 136_726, 163, 1716  # whole cars
_SPLIT_LIST = "train_test_split/classification/{}.txt"
_KNOWN_FROM = {
    "model": "image/MAKE/MODEL is",
    "make": "image/MAKE is",
    "type": "misc/attributes.txt is",
    "viewpoint": "label/ is",
}
_ANOTHER_COPY = "another copy of the data set"


@dataclass(frozen=True)
class _Names:
    """Names by number, and the type of each model; empty where the files of `misc/` are not there."""

    makes: Mapping[int, str]
    models: Mapping[int, str]
    types: Mapping[int, str]
    type_of_model: Mapping[int, int]


def compcars_source(source: Path, *, leave_out: Path, class_by: ClassBy = "model", split: CarSplit = "all") -> Source:
    """The photos of whole cars, sorted by path, each with a box and what is known about it.

    A photo whose class is not known (viewpoint uncertain, type not recorded) has none. Photos that a split lists and
    that are not there are rejects.

    Args:
        source: The folder that holds `image/`, or `data/` with it; or a tar of that.
        leave_out: The output, which may lie in the folder.
        split: One of the official lists for classification, which have a part of the photos; `all` takes all.

    Raises:
        InputMissingError: No `image/` there, no list of the split, or not one photo whose class is known.
        UnavailableError: scipy, which reads the names, is missing.
        DataError: A damaged list or file of names.
    """
    if not source.exists():
        raise InputMissingError(f"no such file or folder ({source})", remedy="check the path")
    found = _below_data(list_source(source, leave_out=leave_out))
    images = [path for path in found if path.startswith("image/") and path.lower().endswith((".jpg", ".jpeg"))]
    if not images:
        raise InputMissingError(
            f"no photos of CompCars ({source}): there is no image/MAKE/MODEL/YEAR/NAME.jpg",
            remedy="the extracted folder that holds image/ and label/",
        )
    with Reader() as reader:
        names = _read_names(reader, found)
        if split != "all":
            images = _listed(reader, found, split)
        photos = [_photo(reader, found, path, names, split) for path in images]
    labels = [None if photo.reject else _class_of(photo.info or {}, class_by) for photo in photos]
    keys = sorted({label for label in labels if label is not None})
    unlabelled = sum(label is None and not photo.reject for label, photo in zip(labels, photos, strict=True))
    if not keys and unlabelled:
        raise InputMissingError(
            f"no photo has a {class_by} ({source}): {_KNOWN_FROM[class_by]} missing, or without it",
            remedy="the whole data set, or another --class-by",
        )
    titles = [_title(key, class_by, names) for key in keys]
    class_names = [t if titles.count(t) == 1 else f"{t} ({key})" for t, key in zip(titles, keys, strict=True)]
    number = {key: index for index, key in enumerate(keys)}
    entries = [_with_class(photo, label, number) for photo, label in zip(photos, labels, strict=True)]
    facts, notes, warnings = _report(entries, split)
    if unlabelled:
        warnings.append(f"{unlabelled} photos have no class: their {class_by} is not recorded")
    return Source(
        entries,
        class_names,
        options={"class_by": class_by, "split": split},
        facts=facts,
        notes=notes,
        warnings=warnings,
    )


def _below_data(found: list[Found]) -> dict[str, Found]:
    """Files by path from `image/`, `label/` on, whatever lies above."""
    above = [file.path.split("/")[:-1] for file in found]
    roots = {"".join(f"{name}/" for name in names[: names.index("image")]) for names in above if "image" in names}
    root = min(roots, key=len, default="")
    return {file.path.removeprefix(root): file for file in found if file.path.startswith(root)}


def _listed(reader: Reader, found: Mapping[str, Found], split: str) -> list[str]:
    name = _SPLIT_LIST.format(split)
    if name not in found:
        raise InputMissingError(f"no list of the split {split} ({name})", remedy="--split all")
    lines = reader.read(found[name].place).decode("utf-8", "replace").split()
    return sorted(f"image/{line}" for line in dict.fromkeys(lines))


def _photo(reader: Reader, found: Mapping[str, Found], path: str, names: _Names, split: str) -> Entry:
    if path not in found:
        reason = f"listed in {_SPLIT_LIST.format(split)}, but not there"
        return Entry(path, FilePlace(path), 0, None, reason)
    file = found[path]
    parts = path.split("/")
    if len(parts) != 5 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return Entry(path, file.place, file.size, None, "not image/MAKE/MODEL/YEAR/NAME.jpg")
    make, model, year = int(parts[1]), int(parts[2]), parts[3]
    label = found.get(f"label/{path.removeprefix('image/').rpartition('.')[0]}.txt")
    viewpoint, box = _read_label(reader.read(label.place)) if label is not None else (None, None)
    car_type = names.type_of_model.get(model)
    info = {
        "make": names.makes.get(make),
        "make_id": make,
        "model": names.models.get(model),
        "model_id": model,
        "year": int(year) if year.isdecimal() else None,
        "type": names.types.get(car_type) if car_type else None,
        "type_id": car_type or None,
        "viewpoint": VIEWPOINTS.get(viewpoint or 0),
        "box": None if box is None else box._asdict(),
    }
    return Entry(path, file.place, file.size, None, file.problem, box=box, info=info)


def _read_label(text: bytes) -> tuple[int | None, Box | None]:
    """Viewpoint and the first box of a label file; None for what is not there or makes no sense."""
    try:
        values = [int(value) for value in text.split()]
    except ValueError:
        return None, None
    viewpoint = values[0] if values else None
    if len(values) < 6:
        return viewpoint, None
    left, top, right, bottom = values[2:6]
    # From 1 on and with its last pixel, to from 0 on and without.
    box = Box(max(0, left - 1), max(0, top - 1), right, bottom)
    return viewpoint, box if box.left < box.right and box.top < box.bottom else None


def _class_of(info: Mapping[str, Any], class_by: ClassBy) -> int | None:
    if class_by == "viewpoint":
        return next((number for number, name in VIEWPOINTS.items() if name == info["viewpoint"]), None)
    number: int | None = info[f"{class_by}_id"]
    return number


def _title(key: int, class_by: ClassBy, names: _Names) -> str:
    known = {"model": names.models, "make": names.makes, "type": names.types, "viewpoint": VIEWPOINTS}[class_by]
    return known.get(key) or f"{class_by} {key}"


def _with_class(photo: Entry, label: int | None, number: Mapping[int, int]) -> Entry:
    if label is None:
        return photo
    return Entry(photo.path, photo.place, photo.size, number[label], photo.reject, photo.kind, photo.box, photo.info)


def _report(entries: list[Entry], split: str) -> tuple[dict[str, Any], list[str], list[str]]:
    good = [entry for entry in entries if not entry.reject]
    makes = len({(entry.info or {})["make_id"] for entry in good})
    models = len({(entry.info or {})["model_id"] for entry in good})
    facts: dict[str, Any] = {"found": len(good), "found_makes": makes, "found_models": models}
    notes, warnings = [f"found {len(good)} photos of {makes} makes and {models} models"], []
    if split == "all":
        facts |= {"expected": IMAGES, "expected_makes": MAKES, "expected_models": MODELS}
        whole = (len(good), makes, models) == (IMAGES, MAKES, MODELS)
        notes[0] += ": all" if whole else f"; the whole data set has {IMAGES} of {MAKES} and {MODELS}"
    without_box = sum(entry.box is None for entry in good)
    if without_box:
        warnings.append(f"{without_box} photos have no box: their centre square is taken")
    reasons = Counter(entry.reject for entry in entries if entry.reject)
    warnings += [f"{count} photos are rejected: {reason}" for reason, count in sorted(reasons.items())]
    return facts, notes, warnings


def _read_names(reader: Reader, found: Mapping[str, Found]) -> _Names:
    def cells(path: str, key: str) -> dict[int, str]:
        if path not in found:
            return {}
        return _cells(reader.read(found[path].place), key, name=path)

    names = "misc/make_model_name.mat"
    types: dict[int, int] = {}
    if "misc/attributes.txt" in found:
        for line in reader.read(found["misc/attributes.txt"].place).decode("utf-8", "replace").splitlines():
            values = line.split()
            if len(values) >= 6 and values[0].isdecimal() and values[5].isdecimal():
                types[int(values[0])] = int(values[5])
    return _Names(
        makes=cells(names, "make_names"),
        models=cells(names, "model_names"),
        types=cells("misc/car_type.mat", "types"),
        type_of_model=types,
    )


def _cells(data: bytes, key: str, *, name: str) -> dict[int, str]:
    """Texts of a MATLAB cell array by number, from 1 on; empty cells are left out."""
    try:
        cells = load_mat(data)[key].ravel()
        texts = (" ".join(str(cell.ravel()[0]).split()) if cell.size else "" for cell in cells)
        return {number: text for number, text in enumerate(texts, start=1) if text}
    except UnavailableError:
        raise
    except Exception as error:  # scipy's reader raises almost any type on damaged bytes
        raise DataError(f"damaged file ({name}): {error!r}", remedy=_ANOTHER_COPY) from error
