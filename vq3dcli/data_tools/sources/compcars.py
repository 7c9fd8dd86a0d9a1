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
from pathlib import Path
from typing import Literal, NamedTuple

from vq3dcli.data_tools.sources.entry import Box, Entry, FilePlace, Source
from vq3dcli.data_tools.sources.listing import list_source
from vq3dcli.data_tools.sources.matlab import load_mat
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError, Vq3dError

ClassBy = Literal["model", "make", "type", "viewpoint"]

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


class _Names(NamedTuple):
    """Names by number, and the type of each model; empty where the files of `misc/` are not there."""

    model: Mapping[int, str]
    make: Mapping[int, str]
    type: Mapping[int, str]
    viewpoint: Mapping[int, str]
    type_of_model: Mapping[int, int]


def compcars_source(source: Path, *, leave_out: Path, class_by: ClassBy = "model", split: str = "all") -> Source:
    """The photos of whole cars, sorted by path, each with a box and what is known about it.

    A photo whose class is not known (viewpoint uncertain, type not recorded) has none. Photos that a split lists and
    that are not there are rejects. `source` is the folder that holds `image/`, or `data/` with it, or a tar of that;
    `split` is `train` or `test`, the official lists for classification, which have a part of the photos, or `all`.

    Raises `InputMissingError`: no `image/` there, no list of the split, or not one photo whose class is known;
    `UnavailableError`: scipy, which reads the names, is missing; `DataError`: a damaged list or file of names.
    """
    if not source.exists():
        raise InputMissingError(f"no such file or folder ({source})", remedy="check the path")
    files = _below_data(list_source(source, leave_out=leave_out))
    images = [path for path in files if path.startswith("image/") and path.lower().endswith((".jpg", ".jpeg"))]
    if not images:
        raise InputMissingError(
            f"no photos of CompCars ({source}): there is no image/MAKE/MODEL/YEAR/NAME.jpg",
            remedy="the extracted folder that holds image/ and label/",
        )
    reader = Reader()
    names = _read_names(reader, files)
    if split != "all":
        images = _listed(reader, files, split)
    photos = [_photo(reader, files, path, names, split) for path in images]
    numbers = {number for number in (_number(photo, class_by) for photo in photos) if number is not None}
    result = Source(options={"class_by": class_by, "split": split})
    order = {number: index for index, number in enumerate(sorted(numbers))}
    for photo in photos:
        number = _number(photo, class_by)
        result.entries.append(photo._replace(class_index=None if number is None else order[number]))
    unlabelled = sum(entry.class_index is None and not entry.reject for entry in result.entries)
    if not order and unlabelled:
        raise InputMissingError(
            f"no photo has a {class_by} ({source}): {_KNOWN_FROM[class_by]} missing, or without it",
            remedy="the whole data set, or another --class-by",
        )
    titles = [getattr(names, class_by).get(number) or f"{class_by} {number}" for number in order]
    result.class_names = [
        title if titles.count(title) == 1 else f"{title} ({n})" for title, n in zip(titles, order, strict=True)
    ]
    _report(result, split)
    if unlabelled:
        result.warnings.append(f"{unlabelled} photos have no class: their {class_by} is not recorded")
    return result


def _below_data(files: list[Entry]) -> dict[str, Entry]:
    """Files by path from `image/`, `label/` on, whatever lies above."""
    above = [file.path.split("/")[:-1] for file in files]
    roots = {"".join(f"{name}/" for name in names[: names.index("image")]) for names in above if "image" in names}
    root = min(roots, key=len, default="")
    return {file.path.removeprefix(root): file for file in files if file.path.startswith(root)}


def _listed(reader: Reader, files: Mapping[str, Entry], split: str) -> list[str]:
    name = _SPLIT_LIST.format(split)
    if name not in files:
        raise InputMissingError(f"no list of the split {split} ({name})", remedy="--split all")
    lines = reader.read(files[name].place).decode("utf-8", "replace").split()
    return sorted(f"image/{line}" for line in dict.fromkeys(lines))


def _photo(reader: Reader, files: Mapping[str, Entry], path: str, names: _Names, split: str) -> Entry:
    if path not in files:
        return Entry(path, FilePlace(path), 0, reject=f"listed in {_SPLIT_LIST.format(split)}, but not there")
    file = files[path]._replace(path=path)
    parts = path.split("/")
    if len(parts) != 5 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return file._replace(reject="not image/MAKE/MODEL/YEAR/NAME.jpg")
    make, model, year = int(parts[1]), int(parts[2]), parts[3]
    label = files.get(f"label/{path.removeprefix('image/').rpartition('.')[0]}.txt")
    viewpoint, box = _read_label(reader.read(label.place)) if label is not None else (None, None)
    car_type = names.type_of_model.get(model)
    info = {
        "make": names.make.get(make),
        "make_id": make,
        "model": names.model.get(model),
        "model_id": model,
        "year": int(year) if year.isdecimal() else None,
        "type": names.type.get(car_type) if car_type else None,
        "type_id": car_type or None,
        "viewpoint": VIEWPOINTS.get(viewpoint or 0),
        "box": None if box is None else box._asdict(),
    }
    return file._replace(box=box, info=info)


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


def _number(photo: Entry, class_by: ClassBy) -> int | None:
    """The data set's number of a photo's class; None for rejects, and where it is not known."""
    info = photo.info or {}
    if photo.reject or not info:
        return None
    if class_by == "viewpoint":
        return next((number for number, name in VIEWPOINTS.items() if name == info["viewpoint"]), None)
    number: int | None = info[f"{class_by}_id"]
    return number


def _report(result: Source, split: str) -> None:
    good = [entry for entry in result.entries if not entry.reject]
    makes = len({(entry.info or {})["make_id"] for entry in good})
    models = len({(entry.info or {})["model_id"] for entry in good})
    result.facts = {"found": len(good), "found_makes": makes, "found_models": models}
    note = f"found {len(good)} photos of {makes} makes and {models} models"
    if split == "all":
        result.facts |= {"expected": IMAGES, "expected_makes": MAKES, "expected_models": MODELS}
        whole = (len(good), makes, models) == (IMAGES, MAKES, MODELS)
        note += ": all" if whole else f"; the whole data set has {IMAGES} of {MAKES} and {MODELS}"
    result.notes.append(note)
    without_box = sum(entry.box is None for entry in good)
    if without_box:
        result.warnings.append(f"{without_box} photos have no box: their centre square is taken")
    reasons = Counter(entry.reject for entry in result.entries if entry.reject)
    result.warnings += [f"{count} photos are rejected: {reason}" for reason, count in sorted(reasons.items())]


def _read_names(reader: Reader, files: Mapping[str, Entry]) -> _Names:
    def cells(path: str, key: str) -> dict[int, str]:
        """Texts of a MATLAB cell array by number, from 1 on; empty cells are left out."""
        if path not in files:
            return {}
        try:
            values = load_mat(reader.read(files[path].place))[key].ravel()
            texts = (" ".join(str(cell.ravel()[0]).split()) if cell.size else "" for cell in values)
            return {number: text for number, text in enumerate(texts, start=1) if text}
        except Vq3dError:
            raise
        except Exception as error:  # scipy's reader raises almost any type on damaged bytes
            raise DataError(f"damaged file ({path}): {error!r}", remedy=_ANOTHER_COPY) from error

    types: dict[int, int] = {}
    if "misc/attributes.txt" in files:
        for line in reader.read(files["misc/attributes.txt"].place).decode("utf-8", "replace").splitlines():
            values = line.split()
            if len(values) >= 6 and values[0].isdecimal() and values[5].isdecimal():
                types[int(values[0])] = int(values[5])
    names = "misc/make_model_name.mat"
    return _Names(
        model=cells(names, "model_names"),
        make=cells(names, "make_names"),
        type=cells("misc/car_type.mat", "types"),
        viewpoint=VIEWPOINTS,
        type_of_model=types,
    )
