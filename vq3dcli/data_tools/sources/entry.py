"""What a source of images lists: each image's name, its class, and where its bytes lie; nothing of it is read yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class FilePlace(NamedTuple):
    """A whole file."""

    file: str


class Span(NamedTuple):
    """Bytes inside a file, for example a member of a tar in a tar."""

    file: str
    offset: int
    size: int


class Row(NamedTuple):
    """Row number `row` of a Parquet file, counted from 0, and the column that holds the image."""

    file: str
    row: int
    column: str


Place = FilePlace | Span | Row


class Box(NamedTuple):
    """A rectangle of pixels; `right` and `bottom` are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


class Entry(NamedTuple):
    """A file of a source, in a folder or an archive; in `Source.entries` an image at its position."""

    path: str  # relative to the source, with `/`, printable as JSON; an archive counts as a folder
    place: Place  # where its bytes lie
    size: int  # of its bytes; 0 where that is not known before they are read
    class_index: int | None = None  # none for an image without a class
    reject: str = ""  # why it gives no sample, if that is known already; else nothing
    kind: Literal["bad", "duplicate"] = "bad"  # as in `RejectEntry`
    box: Box | None = None  # what the square is cut around, in stored pixels
    info: dict[str, Any] | None = None  # goes into the sample's JSON
    label: str | None = None  # of a row, or of a member with the same key beside it: a class by number or name


@dataclass
class Source:
    """All images of a source, in an order that depends on nothing but their names."""

    entries: list[Entry] = field(default_factory=list)  # by position
    class_names: list[str] = field(default_factory=list)  # by class index, each once
    class_titles: list[str] = field(default_factory=list)  # what to call the classes, or nothing
    options: dict[str, Any] = field(default_factory=dict)  # what was chosen or found, for the plan: split, layout
    facts: dict[str, Any] = field(default_factory=dict)  # counts, for the report
    notes: list[str] = field(default_factory=list)  # what is good to know, a line each
    warnings: list[str] = field(default_factory=list)  # what is not as it should be, a line each


def counted(kinds: dict[str, int]) -> str:
    """Numbers of things by what they are called, for a message: `1 .csv, 2 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
