"""Images in Parquet files as the Hugging Face Hub stores them: `image` (`bytes`, `path`) and `label`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vq3dcli.data_tools.sources.entry import Found, Row
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, Vq3dError
from vq3dcli.files import read_error
from vq3dcli.sealed import json_value

_ROWS_AT_ONCE = 64
_ANOTHER_COPY = "another copy of the file"


class ParquetRows(NamedTuple):
    """What one file lists.

    Attributes:
        found: A row each; the size is not known.
        labels: A row each, None where there is none.
        class_names: By label, as the file's own metadata has them; empty without.
    """

    found: list[Found]
    labels: list[int | None]
    class_names: list[str]


def is_parquet_name(name: str) -> bool:
    """Whether a file name says that it is a Parquet file."""
    return name.lower().endswith(".parquet")


def list_rows(path: Path, prefix: str) -> ParquetRows:
    """The rows of a file; images are not read.

    Args:
        prefix: Is put before their paths.

    Raises:
        UnavailableError: pyarrow is missing.
        DataError: Damaged, or without an image column.
    """
    parquet = _pyarrow_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            column = next((name for name in ("image", "img", "jpg") if name in names), None)
            if column is None:
                raise DataError(f"no column `image` ({path}): {', '.join(sorted(names))}", remedy=_ANOTHER_COPY)
            label = next((name for name in ("label", "labels", "cls") if name in names), None)
            kind = file.schema_arrow.field(column).type
            _check_columns(path, column, kind, label, file.schema_arrow.field(label).type if label else None)
            has_path = hasattr(kind, "get_field_index") and kind.get_field_index("path") >= 0
            wanted = [*([f"{column}.path"] if has_path else []), *([label] if label else [])]
            count = file.metadata.num_rows
            table = file.read(columns=wanted)
            paths = (
                [(row or {}).get("path") for row in table.column(column).to_pylist()] if has_path else [None] * count
            )
            labels = table.column(label).to_pylist() if label else [None] * count
            class_names = _class_names(file.schema_arrow.metadata or {}, label)
    except MemoryError:  # Arrow's own is one of its errors too, and says nothing about the file
        raise
    except _pyarrow_errors() as error:
        raise _read_failure(path, error) from error
    found = [
        Found(f"{prefix}{name or f'row-{row:06d}'}", Row(str(path), row, column), 0) for row, name in enumerate(paths)
    ]
    return ParquetRows(found, labels, class_names)


def rows_from(path: Path, column: str, row: int) -> Iterator[bytes | None]:
    """The image bytes of a file from row number `row` on, None where a row has none.

    Raises:
        InputMissingError: There is no such file.
        StorageError: The disk fails.
        DataError: It is damaged.
    """
    parquet = _pyarrow_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            starts = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                skipped = min(max(row - starts, 0), rows)
                starts += rows
                if skipped == rows:
                    continue
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=_leaves(file, column)):
                    for value in batch.column(0)[min(skipped, len(batch)) :]:
                        image = value.as_py()
                        yield image["bytes"] if isinstance(image, dict) else image
                    skipped -= min(skipped, len(batch))
    except FileNotFoundError as error:
        raise InputMissingError(f"no such file ({path})", remedy="check the path") from error
    except MemoryError:  # Arrow's own is one of its errors too, and says nothing about the file
        raise
    except _pyarrow_errors() as error:
        raise _read_failure(path, error) from error


def _check_columns(path: Path, column: str, image: Any, label: str | None, kind: Any) -> None:
    """Raise `DataError` unless a column holds bytes, or a struct with them, and the labels are whole numbers."""
    from pyarrow import types

    if types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field(image.get_field_index("bytes")).type
    if not (types.is_binary(image) or types.is_large_binary(image) or types.is_null(image)):
        raise DataError(f"column `{column}` holds no bytes but {image} ({path})", remedy=_ANOTHER_COPY)
    if kind is not None and not (types.is_integer(kind) or types.is_null(kind)):
        raise DataError(f"column `{label}` holds no whole numbers but {kind} ({path})", remedy=_ANOTHER_COPY)


def _read_failure(path: Path, error: BaseException) -> Vq3dError:
    """Arrow calls damage an `OSError` too, but only one of the operating system has a number."""
    if isinstance(error, OSError) and error.errno:
        return read_error(path, error)
    return DataError(f"damaged Parquet file ({path}): {error}", remedy=_ANOTHER_COPY)


def _leaves(file: Any, column: str) -> list[str]:
    kind = file.schema_arrow.field(column).type
    is_struct = hasattr(kind, "get_field_index") and kind.get_field_index("bytes") >= 0
    return [f"{column}.bytes"] if is_struct else [column]


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> list[str]:
    """The names of a `ClassLabel` in the metadata that the `datasets` library writes."""
    try:
        feature = json_value(metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
        return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    except (KeyError, TypeError, ValueError):
        return []


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UnavailableError(
            "Parquet files need pyarrow, which is not installed", remedy="pip install 'vq3d[parquet]'"
        ) from error
    return pyarrow.parquet


def _pyarrow_errors() -> tuple[type[BaseException], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError)
