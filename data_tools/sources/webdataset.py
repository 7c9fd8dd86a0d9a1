"""Classes in webdataset tars: members with one key, the name up to its first dot, belong together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_tools.sources.entry import Found
from data_tools.sources.reader import Reader
from data_tools.sources.wnids import WNID
from vq3dcli.data.schema import MANIFEST_NAME
from vq3dcli.errors import DataError, UsageError
from vq3dcli.files import json_value

_LABEL = "cls"
_log = logging.getLogger(__name__)


def class_labels(found: Iterable[Found], standard: Sequence[str]) -> dict[str, str | None]:
    """Classes of images by their path, from the `.cls` members with the same key; None for a number out of range.

    The numbers count the `class_names` of a `manifest.json` beside the tars, as `vq3d prepare-data` writes them, else
    `standard`. Where they look like the numbers of a subset that counts its own classes, there is a warning.

    Raises:
        DataError: Such a member is no number, or the manifest is damaged.
        UsageError: The manifest names other classes than those of ImageNet.
    """
    numbers: dict[str, tuple[int, str]] = {}  # and the folder of the archive
    images: defaultdict[str, list[str]] = defaultdict(list)
    with Reader() as reader:
        for file in found:
            key, extension = split_key(file.path)
            if extension == _LABEL:
                text = reader.read(file.place)
                try:
                    numbers[key] = int(text), str(Path(file.place.file).parent)
                except ValueError as error:
                    raise DataError(
                        f"a class that is no number ({file.path}): {text[:20]!r}", remedy="another copy of the tar"
                    ) from error
            else:
                images[key].append(file.path)
    names = {folder: _class_names(Path(folder)) for folder in {folder for _, folder in numbers.values()}}
    used = {number for number, folder in numbers.values() if not names[folder]}
    if used and len(used) < len(standard) and used == set(range(len(used))):
        _log.warning(
            "classes are numbered 0 to %d and taken for the first of %d: wrong if the tars count classes of their own",
            len(used) - 1,
            len(standard),
        )
    labels: dict[str, str | None] = {}
    for key, (number, folder) in numbers.items():
        known = names[folder] or standard
        label = known[number] if 0 <= number < len(known) else None
        labels.update(dict.fromkeys(images[key], label))
    return labels


def split_key(path: str) -> tuple[str, str]:
    """Key and extension of a member: its folder belongs to the key, and the extension may have dots."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _class_names(folder: Path) -> list[str]:
    """What the manifest of shards calls its classes; nothing where there is none."""
    path = folder / MANIFEST_NAME
    try:
        manifest = json_value(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"damaged file ({path}): not a JSON object", remedy="vq3d inspect --verify") from error
    names = manifest.get("class_names") if isinstance(manifest, dict) else None
    if not isinstance(names, list) or all(WNID.fullmatch(str(name)) for name in names):
        return names or []
    raise UsageError(f"shards whose classes are no WordNet ids ({path})", remedy="--preset folder")
