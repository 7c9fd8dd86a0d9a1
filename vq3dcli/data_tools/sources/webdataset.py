"""Classes in webdataset tars: members with one key, the name up to its first dot, belong together."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vq3dcli.data.images import read_file
from vq3dcli.data.shard_format import MANIFEST_NAME
from vq3dcli.data_tools.sources.entry import Found
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.data_tools.sources.wnids import WNID
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.sealed import json_value

_LABEL = "cls"
_MOST_LABEL_BYTES = 200
_NUMBER = re.compile(r"\s*[-+]?\d{1,18}\s*")
_log = logging.getLogger(__name__)


class Label(NamedTuple):
    """A label beside an image: what it says, and the folder of the archive, whose manifest may name the classes."""

    text: str
    folder: Path


def labels_beside(found: Iterable[Found]) -> dict[str, Label]:
    """Labels of images by their path, from the `.cls` members with the same key."""
    labels: dict[str, Label] = {}
    images: defaultdict[str, list[str]] = defaultdict(list)
    with Reader() as reader:
        for file in found:
            key, extension = split_key(file.path)
            if extension == _LABEL:
                text = reader.read(file.place)[:_MOST_LABEL_BYTES].decode("utf-8", "backslashreplace").strip()
                labels[key] = Label(text, Path(file.place.file).parent)
            else:
                images[key].append(file.path)
    return {path: label for key, label in labels.items() for path in images[key]}


def class_labels(found: Iterable[Found], standard: Sequence[str]) -> dict[str, str | None]:
    """WordNet ids of images by their path, from the `.cls` members beside them; None for a number out of range.

    The numbers count the `class_names` of a `manifest.json` beside the tars, as `vq3d prepare-data` writes them, else
    `standard`. Where they look like the numbers of a subset that counts its own classes, there is a warning.

    Raises:
        DataError: Such a member is no number, or the manifest is damaged.
        UsageError: The manifest names other classes than those of ImageNet.
    """
    numbers: dict[str, tuple[int, Path]] = {}
    for path, label in labels_beside(found).items():
        if not _NUMBER.fullmatch(label.text):
            raise DataError(
                f"a class that is no number ({path}): {label.text[:20]!r}", remedy="another copy of the tar"
            )
        numbers[path] = int(label.text), label.folder
    names = {folder: _wnids(folder) for folder in {folder for _, folder in numbers.values()}}
    used = {number for number, folder in numbers.values() if not names[folder]}
    if used and len(used) < len(standard) and used == set(range(len(used))):
        _log.warning(
            "classes are numbered 0 to %d and taken for the first of %d: wrong if the tars count classes of their own",
            len(used) - 1,
            len(standard),
        )
    labels: dict[str, str | None] = {}
    for path, (number, folder) in numbers.items():
        known = names[folder] or standard
        labels[path] = known[number] if 0 <= number < len(known) else None
    return labels


def split_key(path: str) -> tuple[str, str]:
    """Key and extension of a member: its folder belongs to the key, and the extension may have dots."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def manifest_classes(folder: Path) -> tuple[list[str], list[str]]:
    """What the manifest of shards calls its classes: names and titles, empty where there is no such manifest.

    Raises:
        DataError: It is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json_value(read_file(path))
    except InputMissingError:
        return [], []
    except ValueError as error:
        raise DataError(f"damaged file ({path}): not a JSON object", remedy="vq3d inspect --verify") from error
    found = [manifest.get(key) if isinstance(manifest, dict) else None for key in ("class_names", "class_titles")]
    names, titles = ([str(name) for name in value] if isinstance(value, list) else [] for value in found)
    return names, titles if len(titles) == len(names) else []


def _wnids(folder: Path) -> list[str]:
    names, _ = manifest_classes(folder)
    if all(WNID.fullmatch(name) for name in names):
        return names
    path = folder / MANIFEST_NAME
    raise UsageError(f"shards whose classes are no WordNet ids ({path})", remedy="--preset folder")
