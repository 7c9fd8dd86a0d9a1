"""Reading bytes from where a source says they lie, one image after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vq3dcli.data.images import MAX_FILE_BYTES, read_file
from vq3dcli.data.open_files import OpenFiles
from vq3dcli.data_tools.sources.entry import FilePlace, Place, Row, Span
from vq3dcli.errors import DataError, InputMissingError, StorageError
from vq3dcli.files import read_error

_MAX_OPEN_FILES = 32


class Reader:
    """Reads places; keeps archives open, and Parquet files at the row after the last one."""

    def __init__(self) -> None:
        self._files = OpenFiles(_MAX_OPEN_FILES)
        self._next: Row | None = None
        self._rows: Iterator[bytes | None] = iter(())

    def read(self, place: Place) -> bytes:
        """The bytes at a place.

        Raises `InputMissingError`: there is nothing; `DataError`: more than `MAX_FILE_BYTES`; `StorageError`: reading
        failed, or an archive is shorter than it was when it was listed.
        """
        if isinstance(place, FilePlace):
            return read_file(Path(place.file))
        data = self._read_span(place) if isinstance(place, Span) else self._read_row(place)
        if data is None:
            raise StorageError(
                f"archive is shorter than it was ({place.file})", remedy="the same command again, once it is whole"
            )
        return data

    def _read_span(self, span: Span) -> bytes | None:
        if span.size > MAX_FILE_BYTES:
            raise DataError(f"more than {MAX_FILE_BYTES >> 20} MiB ({span.file})", remedy="a single image")
        try:
            data = self._files.get(0, Path(span.file)).read(span.offset, span.size)
        except OSError as error:
            raise read_error(Path(span.file), error) from error
        return data if len(data) == span.size else None

    def _read_row(self, row: Row) -> bytes | None:
        from vq3dcli.data_tools.sources import parquet

        if row != self._next:
            self._rows = parquet.rows_from(Path(row.file), row.column, row.row)
        self._next = None  # the iterator is of no use after an error
        for data in self._rows:
            self._next = row._replace(row=row.row + 1)
            if data is None:
                raise InputMissingError("the row holds no image", remedy="another copy of the file")
            return data
        return None
