"""Which class of ImageNet a file is of, by its path, or by the ground truth of the validation set."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.data_tools.sources.entry import Entry, FilePlace
from vq3dcli.data_tools.sources.matlab import load_mat
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UsageError

WNID = re.compile(r"n\d{8}")
_IN_FOLDER_NAME = re.compile(r"(n\d{8})(\.tar)?")
_AT_END = re.compile(r"_(n\d{8})$")
_AT_START = re.compile(r"(n\d{8})(?=[_-]|$)")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"
_META_NAME = "meta.mat"
_KAGGLE_NAME = "LOC_val_solution.csv"
_DEVKIT_NAME = "ILSVRC2012_devkit_t12.tar.gz"
_DEVKIT_MD5 = "fa75699e90414af021442c21a62c3abf"
_DEVKIT = re.compile(r"ILSVRC2012_devkit.*?(\.tar|\.tar\.gz|\.tgz)?")
_ANOTHER_COPY = "another copy of it"
_log = logging.getLogger(__name__)


def wnid_of(path: str) -> str | None:
    """The WordNet id in a path: of the innermost class folder or tar, else at the end or the start of the name."""
    *folders, name = path.split("/")
    for folder in reversed(folders):
        match = _IN_FOLDER_NAME.fullmatch(folder)
        if match:
            return match[1]
    return wnid_in_name(name)


def wnid_in_name(name: str) -> str | None:
    """The WordNet id at the end or the start of a file name."""
    stem = name.rpartition(".")[0] or name
    match = _AT_END.search(stem) or _AT_START.match(stem)
    return match[1] if match else None


def validation_number(path: str) -> int | None:
    """The number of an image of the flat validation set, from 1 on."""
    match = _VALIDATION.match(path.rpartition("/")[2])
    return int(match[1]) if match else None


def standard_wnids() -> list[str]:
    """The 1000 WordNet ids of ILSVRC 2012 in the order of class indices."""
    return list(imagenet_names())


def validation_labels(devkit: Path | None, source: Path, files: Sequence[Entry]) -> Mapping[int, str]:
    """WordNet ids of the validation images by their number, from the devkit or from Kaggle's list.

    The devkit is a folder, a tar or a tar.gz; without one it is looked for in `source`, what is prepared, and beside
    it.

    Raises `UsageError`: there is no list; `DataError`: it is damaged.
    """
    if devkit is not None:
        if not devkit.exists():
            raise InputMissingError(f"no such devkit ({devkit})", remedy="check the path")
        return _read_devkit(devkit)
    by_name = {file.path.rpartition("/")[2]: file for file in files}
    reader = Reader()
    if _TRUTH_NAME in by_name and _META_NAME in by_name:
        texts = {name: reader.read(by_name[name].place) for name in (_TRUTH_NAME, _META_NAME)}
        return _devkit_labels(texts, by_name[_META_NAME].path)
    if _KAGGLE_NAME in by_name:
        return kaggle_labels(reader.read(by_name[_KAGGLE_NAME].place), name=by_name[_KAGGLE_NAME].path)
    inside = [Path(file.place.file) for file in files if isinstance(file.place, FilePlace)]
    beside = sorted(source.parent.iterdir()) if source.parent.is_dir() else []
    for path in [*(path for path in inside if _DEVKIT.fullmatch(path.name)), *beside]:
        if _DEVKIT.fullmatch(path.name):
            return _read_devkit(path)
        if path.name == _KAGGLE_NAME:
            return kaggle_labels(path.read_bytes(), name=str(path))
    raise UsageError(
        f"the labels of the validation images are not here ({source})", remedy="--devkit ILSVRC2012_devkit_t12.tar.gz"
    )


def _read_devkit(path: Path) -> Mapping[int, str]:
    texts: dict[str, bytes] = {}
    try:
        if path.is_dir():
            texts = {p.name: p.read_bytes() for p in path.rglob("*") if p.name in (_TRUTH_NAME, _META_NAME)}
        else:
            with tarfile.open(fileobj=io.BytesIO(_uncompressed(path))) as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is not None and name in (_TRUTH_NAME, _META_NAME):
                        texts[name] = content.read()
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"cannot read devkit ({path}): {error}", remedy=_ANOTHER_COPY) from error
    missing = {_TRUTH_NAME, _META_NAME} - texts.keys()
    if missing:
        raise DataError(f"not the devkit of tasks 1 and 2 ({path}): no {min(missing)}", remedy=_ANOTHER_COPY)
    return _devkit_labels(texts, str(path))


def _uncompressed(path: Path) -> bytes:
    """The tar in a devkit's file, whole: only at the end of the gzip stream stands its checksum."""
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    if path.name == _DEVKIT_NAME and hashlib.md5(data, usedforsecurity=False).hexdigest() != _DEVKIT_MD5:
        _log.warning("not the official devkit: its MD5 is not %s (%s)", _DEVKIT_MD5, path)
    return gzip.decompress(data)


def _devkit_labels(texts: Mapping[str, bytes], name: str) -> dict[int, str]:
    """Labels by image number: line i of the ground truth is the ILSVRC2012_ID of image i, `meta.mat` names its class.

    Only leaves (`num_children` 0) are classes; their ids are 1 to 1000.
    """
    try:
        synsets = load_mat(texts[_META_NAME])["synsets"].ravel()
        leaves = [s for s in synsets if int(_scalar(s["num_children"])) == 0]
        wnids = {int(_scalar(s["ILSVRC2012_ID"])): str(_scalar(s["WNID"])) for s in leaves}
        ids = [int(line) for line in texts[_TRUTH_NAME].decode("ascii").split()]
        if not all(WNID.fullmatch(wnid) for wnid in wnids.values()):
            raise ValueError("a WNID that is none")
        return {number: wnids[class_id] for number, class_id in enumerate(ids, start=1)}
    except UnavailableError:
        raise
    except Exception as error:  # scipy's reader raises almost any type on damaged bytes
        raise DataError(f"damaged devkit ({name}): {error!r}", remedy=_ANOTHER_COPY) from error


def kaggle_labels(table: bytes, *, name: str) -> dict[int, str]:
    """Labels by image number from `LOC_val_solution.csv`: image id, then class and box again and again."""
    labels = {}
    for line in table.decode("ascii", "replace").splitlines():
        image, _, rest = line.partition(",")
        number = validation_number(image)
        if number is None:  # the heading
            continue
        wnid = rest.partition(" ")[0]
        if not WNID.fullmatch(wnid):
            raise DataError(f"damaged list ({name}): {line[:60]!r}", remedy=_ANOTHER_COPY)
        labels[number] = wnid
    return labels


def _scalar(value: Any) -> Any:
    """The one element of MATLAB's nested arrays."""
    while hasattr(value, "size") and getattr(value, "shape", ()) != ():
        if value.size != 1:
            raise ValueError(f"{value.size} values where one is expected")
        value = value.ravel()[0]
    return value
