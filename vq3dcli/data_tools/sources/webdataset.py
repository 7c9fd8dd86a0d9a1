"""Classes in webdataset tars: members with one key, the name up to its first dot, belong together."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def with_labels(files: Iterable[Entry]) -> list[Entry]:
    """The files, those with a `.cls` member of the same key with its label, without these members."""
    labels: dict[str, str] = {}
    others: list[tuple[str, Entry]] = []
    reader = Reader()
    for file in files:
        # The folder belongs to the key, and the extension may have dots.
        folder, _, name = file.path.rpartition("/")
        stem, _, extension = name.partition(".")
        if extension.lower() == _LABEL:
            text = reader.read(file.place)[:_MOST_LABEL_BYTES].decode("utf-8", "backslashreplace")
            labels[f"{folder}/{stem}"] = text.strip()
        else:
            others.append((f"{folder}/{stem}", file))
    return [file._replace(label=labels.get(key)) for key, file in others]


def folder_of(file: Entry) -> Path:
    """Where a file, or the archive that it is in, lies: a manifest there may name its classes."""
    return Path(file.place.file).parent


def class_labels(files: Iterable[Entry], standard: Sequence[str]) -> dict[str, str | None]:
    """WordNet ids of those images by their path that have a label; None for a number out of range.

    The numbers count the `class_names` of a `manifest.json` beside the tars, as `vq3d prepare-data` writes them, else
    `standard`. Where they look like the numbers of a subset that counts its own classes, there is a warning.

    Raises `DataError`: such a member is no number, or the manifest is damaged; `UsageError`: the manifest names other
    classes than those of ImageNet.
    """
    labels: dict[str, tuple[str, Path]] = {f.path: (f.label, folder_of(f)) for f in files if f.label is not None}
    for path, (text, _) in labels.items():
        if not _NUMBER.fullmatch(text):
            raise DataError(f"a class that is no number ({path}): {text[:20]!r}", remedy="another copy of the tar")
    names = {folder: manifest_classes(folder)[0] for folder in {folder for _, folder in labels.values()}}
    for folder, known in names.items():
        if not all(map(WNID.fullmatch, known)):
            raise UsageError(
                f"shards whose classes are no WordNet ids ({folder / MANIFEST_NAME})", remedy="--preset folder"
            )
    used = {int(text) for text, folder in labels.values() if not names[folder]}
    if used and len(used) < len(standard) and used == set(range(len(used))):
        _log.warning(
            "classes are numbered 0 to %d and taken for the first of %d: wrong if the tars count classes of their own",
            len(used) - 1,
            len(standard),
        )
    lists = {path: (int(text), names[folder] or standard) for path, (text, folder) in labels.items()}
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
