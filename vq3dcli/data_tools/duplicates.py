"""Images whose bytes are those of an earlier one, found with as little reading as possible."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from vq3dcli.data.images import decode_image
from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Place, Row, Span
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError

_TAIL_BYTES = 1024


def without_duplicates(entries: list[Entry]) -> list[Entry]:
    """The entries, with each that has the bytes of an earlier one marked as its duplicate.

    Only files of the same size can be equal, and of those only the ones whose last bytes are; the rest are never
    read whole. What cannot be read or decoded is nobody's duplicate: making the shard gives the reason.
    """
    groups = _grouped(range(len(entries)), lambda i: entries[i].size if not entries[i].reject else None)
    with Reader() as reader:
        groups = [g for group in groups for g in _grouped(group, lambda i: _tail(reader, entries[i]))]
        groups = [g for group in groups for g in _grouped(group, lambda i: _digest(reader, entries[i].place))]
        groups = [group for group in groups if _is_image(reader, entries[group[0]])]
    marked = list(entries)
    for first, *others in groups:
        for i in others:
            reason = f"the same bytes as {entries[first].path}"
            marked[i] = replace(entries[i], reject=reason, kind="duplicate")
    return marked


def _grouped(positions: Iterable[int], key: Callable[[int], Hashable | None]) -> list[list[int]]:
    """Positions with equal keys, groups of two or more; a key of None is equal to none."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position in positions:
        value = key(position)
        if value is not None:
            groups[value].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _tail(reader: Reader, entry: Entry) -> bytes | None:
    """The last bytes: the first ones of two photos of a camera often agree."""
    size = min(entry.size, _TAIL_BYTES)
    if isinstance(entry.place, Row):
        return b""  # part of a row cannot be read
    if isinstance(entry.place, FilePlace):
        span = Span(entry.place.file, entry.size - size, size)
    else:
        span = Span(entry.place.file, entry.place.offset + entry.place.size - size, size)
    try:
        return reader.read(span)
    except (DataError, InputMissingError):
        return None


def _digest(reader: Reader, place: Place) -> bytes | None:
    try:
        return hashlib.sha256(reader.read(place)).digest()
    except (DataError, InputMissingError):
        return None


def _is_image(reader: Reader, entry: Entry) -> bool:
    try:
        decode_image(reader.read(entry.place), name=entry.path, apply_orientation=False)
    except (DataError, InputMissingError):
        return False
    return True
