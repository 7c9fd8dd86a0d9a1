"""Images in Parquet files as the Hugging Face Hub stores them: `image` (`bytes`, `path`) and `label`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vq3dcli.data_tools.sources.entry import Entry, Row
from vq3dcli.errors import DataError
from vq3dcli.files import read_error
from vq3dcli.sealed import json_value
from vq3dcli.weights.third_party import import_package

_ROWS_AT_ONCE = 64
_ANOTHER_COPY = "another copy of the file"


def is_parquet_name(name: str) -> bool:
    """Whether a file name says that it is a Parquet file."""
    return name.lower().endswith(".parquet")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; its errors, also later ones, as ours."""
    extra = "pip install 'vq3d[parquet]'"
    pyarrow, parquet = (import_package(name, "a Parquet file", extra) for name in ("pyarrow", "pyarrow.parquet"))
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except MemoryError:  # Arrow's own is one of its errors too, and says nothing about the file
        raise
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow calls damage an `OSError` too, but only one of the operating system has a number.
        if isinstance(error, OSError) and error.errno:
            raise read_error(path, error) from error
        raise DataError(f"damaged Parquet file ({path}): {error}", remedy=_ANOTHER_COPY) from error


def list_rows(path: Path, prefix: str) -> tuple[list[Entry], list[str]]:
    """The rows of a file, with their labels, and what its metadata call these, or nothing; images are not read.

    Raises `UnavailableError`: pyarrow is missing; `DataError`: damaged, or without an image column.
    """
    with _opened(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        column = next((name for name in ("image", "img", "jpg") if name in schema.names), None)
        if column is None:
            raise DataError(f"no column `image` ({path}): {', '.join(sorted(schema.names))}", remedy=_ANOTHER_COPY)
        label = next((name for name in ("label", "labels", "cls") if name in schema.names), None)
        kind = schema.field(column).type
        _check_columns(path, column, kind, label, schema.field(label).type if label else None)
        has_path = _has_field(kind, "path")
        table = file.read(columns=[*([f"{column}.path"] if has_path else []), *([label] if label else [])])
        images = table.column(column).to_pylist() if has_path else [None] * count
        labels = table.column(label).to_pylist() if label else [None] * count
        class_names = _class_names(schema.metadata or {}, label)
    names = ((image or {}).get("path") or f"row-{row:06d}" for row, image in enumerate(images))
    entries = [
        Entry(f"{prefix}{name}", Row(str(path), row, column), 0, label=None if number is None else str(number))
        for row, (name, number) in enumerate(zip(names, labels, strict=True))
    ]
    return entries, class_names


def rows_from(path: Path, column: str, row: int) -> Iterator[bytes | None]:
    """The image bytes of a file from row number `row` on, None where a row has none.

    Raises `InputMissingError`: there is no such file; `DataError`: it is damaged.
    """
    with _opened(path) as file:
        leaf = f"{column}.bytes" if _has_field(file.schema_arrow.field(column).type, "bytes") else column
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            skipped = min(max(row - start, 0), rows)
            start += rows
            if skipped == rows:
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[leaf]):
                for value in batch.column(0)[min(skipped, len(batch)) :]:
                    image = value.as_py()
                    yield image["bytes"] if isinstance(image, dict) else image
                skipped -= min(skipped, len(batch))


def _has_field(kind: Any, name: str) -> bool:
    return hasattr(kind, "get_field_index") and kind.get_field_index(name) >= 0


def _check_columns(path: Path, column: str, image: Any, label: str | None, kind: Any) -> None:
    """Raise `DataError` unless a column holds bytes, or a struct with them, and the labels are whole numbers."""
    from pyarrow import types

    if _has_field(image, "bytes"):
        image = image.field(image.get_field_index("bytes")).type
    if not (types.is_binary(image) or types.is_large_binary(image) or types.is_null(image)):
        raise DataError(f"column `{column}` holds no bytes but {image} ({path})", remedy=_ANOTHER_COPY)
    if kind is not None and not (types.is_integer(kind) or types.is_null(kind)):
        raise DataError(f"column `{label}` holds no whole numbers but {kind} ({path})", remedy=_ANOTHER_COPY)


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> list[str]:
    """The names of a `ClassLabel` in the metadata that the `datasets` library writes."""
    try:
        names = json_value(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    except (KeyError, TypeError, ValueError):
        return []
