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
    """A file of a source, in a folder or an archive; in `Source.entries` an image at its position.

    Attributes:
        path: Relative to the source, with `/`, printable as JSON; an archive counts as a folder.
        place: Where its bytes lie.
        size: Of its bytes; 0 where that is not known before they are read.
        class_index: None for an image without a class.
        reject: Why it gives no sample, if that is known already; else nothing.
        kind: As in `RejectEntry`.
        box: What the square is cut around, in stored pixels.
        info: Goes into the sample's JSON.
    """

    path: str
    place: Place
    size: int
    class_index: int | None = None
    reject: str = ""
    kind: Literal["bad", "duplicate"] = "bad"
    box: Box | None = None
    info: dict[str, Any] | None = None


@dataclass
class Source:
    """All images of a source, in an order that depends on nothing but their names.

    Attributes:
        entries: By position.
        class_names: By class index, each once.
        class_titles: What to call the classes, or nothing.
        options: What was chosen or found, for the plan: split, layout.
        facts: Counts, for the report.
        notes: What is good to know, a line each.
        warnings: What is not as it should be, a line each.
    """

    entries: list[Entry] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    class_titles: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def counted(kinds: dict[str, int]) -> str:
    """Numbers of things by what they are called, for a message: `1 .csv, 2 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
