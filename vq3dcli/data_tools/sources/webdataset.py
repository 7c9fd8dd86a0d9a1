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
from vq3dcli.data_tools.sources.entry import Entry
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


def labels_beside(files: Iterable[Entry]) -> dict[str, Label]:
    """Labels of images by their path, from the `.cls` members with the same key."""
    labels: dict[str, Label] = {}
    images: defaultdict[str, list[str]] = defaultdict(list)
    with Reader() as reader:
        for file in files:
            # The folder belongs to the key, and the extension may have dots.
            folder, _, name = file.path.rpartition("/")
            stem, _, extension = name.partition(".")
            if extension.lower() == _LABEL:
                text = reader.read(file.place)[:_MOST_LABEL_BYTES].decode("utf-8", "backslashreplace").strip()
                labels[f"{folder}/{stem}"] = Label(text, Path(file.place.file).parent)
            else:
                images[f"{folder}/{stem}"].append(file.path)
    return {path: label for key, label in labels.items() for path in images[key]}


def class_labels(files: Iterable[Entry], standard: Sequence[str]) -> dict[str, str | None]:
    """WordNet ids of images by their path, from the `.cls` members beside them; None for a number out of range.

    The numbers count the `class_names` of a `manifest.json` beside the tars, as `vq3d prepare-data` writes them, else
    `standard`. Where they look like the numbers of a subset that counts its own classes, there is a warning.

    Raises `DataError`: such a member is no number, or the manifest is damaged; `UsageError`: the manifest names other
    classes than those of ImageNet.
    """
    labels = labels_beside(files)
    for path, label in labels.items():
        if not _NUMBER.fullmatch(label.text):
            raise DataError(
                f"a class that is no number ({path}): {label.text[:20]!r}", remedy="another copy of the tar"
            )
    names = {folder: manifest_classes(folder)[0] for folder in {label.folder for label in labels.values()}}
    for folder, known in names.items():
        if not all(map(WNID.fullmatch, known)):
            raise UsageError(
                f"shards whose classes are no WordNet ids ({folder / MANIFEST_NAME})", remedy="--preset folder"
            )
    used = {int(label.text) for label in labels.values() if not names[label.folder]}
    if used and len(used) < len(standard) and used == set(range(len(used))):
        _log.warning(
            "classes are numbered 0 to %d and taken for the first of %d: wrong if the tars count classes of their own",
            len(used) - 1,
            len(standard),
        )
    lists = {path: (int(label.text), names[label.folder] or standard) for path, label in labels.items()}
    return {path: known[n] if 0 <= n < len(known) else None for path, (n, known) in lists.items()}


def manifest_classes(folder: Path) -> tuple[list[str], list[str]]:
    """What the manifest of shards calls its classes: names and titles, empty where there is no such manifest.

    Raises `DataError`: it is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json_value(read_file(path))
    except InputMissingError:
        return [], []
    except ValueError as error:
        raise DataError(f"damaged file ({path}): not a JSON object", remedy="vq3d inspect --verify") from error
    values = [manifest.get(key) if isinstance(manifest, dict) else None for key in ("class_names", "class_titles")]
    names, titles = ([str(name) for name in value] if isinstance(value, list) else [] for value in values)
    return names, titles if len(titles) == len(names) else []
