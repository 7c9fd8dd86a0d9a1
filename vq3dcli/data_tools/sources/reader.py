"""Reading bytes from where a source says they lie, one image after the other."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from vq3dcli.data.images import MAX_FILE_BYTES, read_file
from vq3dcli.data_tools.sources.entry import FilePlace, Place, Row, Span
from vq3dcli.errors import DataError, InputMissingError, StorageError
from vq3dcli.files import read_error

_MAX_OPEN_FILES = 32


class Reader:
    """Reads places; keeps archives open, and Parquet files at the row after the last one. A context manager."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()
        self._rows: tuple[str, str, int, Iterator[bytes | None]] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
        self._rows = None

    def read(self, place: Place) -> bytes:
        """The bytes at a place.

        Raises:
            InputMissingError: There is nothing.
            DataError: More than `MAX_FILE_BYTES`.
            StorageError: Reading failed, or an archive is shorter than it was when it was listed.
        """
        if isinstance(place, FilePlace):
            return read_file(Path(place.file))
        if isinstance(place, Span):
            return self._read_span(place)
        return self._read_row(place)

    def _read_span(self, span: Span) -> bytes:
        if span.size > MAX_FILE_BYTES:
            raise DataError(f"more than {MAX_FILE_BYTES >> 20} MiB ({span.file})", remedy="a single image")
        try:
            if span.file not in self._files:
                self._files[span.file] = os.open(span.file, os.O_RDONLY)
                if len(self._files) > _MAX_OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(span.file)
            data = os.pread(self._files[span.file], span.size, span.offset)
        except FileNotFoundError as error:
            raise InputMissingError(f"no such file ({span.file})", remedy="check the path") from error
        except OSError as error:
            raise read_error(Path(span.file), error) from error
        if len(data) != span.size:
            raise _shorter(span.file)
        return data

    def _read_row(self, place: Row) -> bytes:
        from vq3dcli.data_tools.sources.parquet import rows_from

        at = self._rows
        if at is None or at[:3] != (place.file, place.column, place.row):
            at = (place.file, place.column, place.row, rows_from(Path(place.file), place.column, place.row))
        try:
            data = next(at[3])
        except StopIteration as error:
            raise _shorter(place.file) from error
        self._rows = (place.file, place.column, place.row + 1, at[3])
        if data is None:
            raise InputMissingError("the row holds no image", remedy="another copy of the file")
        return data


def _shorter(file: str) -> StorageError:
    return StorageError(f"archive is shorter than it was ({file})", remedy="the same command again, once it is whole")
