"""Samples of webdataset tars: members with one key, the name up to its first dot, belong together."""

from __future__ import annotations

from collections.abc import Iterable

from data_tools.sources.entry import Found
from data_tools.sources.reader import Reader
from vq3dcli.errors import DataError

_LABEL = "cls"


def class_labels(found: Iterable[Found]) -> dict[str, int]:
    """Class numbers of images by their path, from the `.cls` members with the same key.

    Raises `DataError` where such a member is no number.
    """
    labels: dict[str, int] = {}
    images: dict[str, list[str]] = {}
    with Reader() as reader:
        for file in found:
            key, extension = split_key(file.path)
            if extension == _LABEL:
                text = reader.read(file.place)
                try:
                    labels[key] = int(text)
                except ValueError as error:
                    raise DataError(
                        f"a class that is no number ({file.path}): {text[:20]!r}", remedy="another copy of the tar"
                    ) from error
            else:
                images.setdefault(key, []).append(file.path)
    return {path: label for key, label in labels.items() for path in images.get(key, ())}


def split_key(path: str) -> tuple[str, str]:
    """Key and extension of a member: its folder belongs to the key, and the extension may have dots."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
