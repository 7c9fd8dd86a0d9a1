"""Arrays in `.npy` and `.npz` files that others wrote: never unpickled, never larger than what they have bytes for."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vq3dcli.errors import DataError, InputMissingError, Vq3dError

Array = NDArray[Any]

_MOST_BYTES = 1 << 28
_SKIPPED_BYTES = 1 << 20
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayHeader(NamedTuple):
    """What an array is, before any of it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def num_bytes(self) -> int:
        """Of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(file: IO[bytes]) -> ArrayHeader:
    """The header of a `.npy` file. Raises `ValueError`."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"a .npy file of version {version}")
    shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("its values are Python objects" if dtype.hasobject else f"its shape is {list(shape)}")
    return ArrayHeader(shape, dtype, fortran_order)


def read_array(file: IO[bytes], most_bytes: int) -> Array:
    """The array of a `.npy` file. Raises `ValueError` where it is cut, larger than `most_bytes`, or holds objects."""
    header = read_array_header(file)
    if header.num_bytes > most_bytes:
        raise ValueError(f"its shape is {list(header.shape)}, which it has not the bytes for")
    data = file.read(header.num_bytes)
    if len(data) < header.num_bytes:
        raise ValueError("it is cut")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Some arrays of an `.npz` file by name, those that it has, of at most 256 MiB each.

    Raises `InputMissingError`: there is no such file; `DataError`: it is damaged or no `.npz` file.
    """
    with _opened(path) as archive:
        members = {name: f"{name}.npy" for name in names if f"{name}.npy" in archive.namelist()}
        arrays = {}
        for name, member in members.items():
            if archive.getinfo(member).file_size > _MOST_BYTES:
                raise ValueError(f"{name} is larger than {_MOST_BYTES >> 20} MiB")
            with archive.open(member) as file:
                arrays[name] = read_array(file, archive.getinfo(member).file_size)
        return arrays


def npz_header(path: Path, name: str) -> ArrayHeader | None:
    """What an array of an `.npz` file is; None if there is none of that name. Raises as `read_npz`."""
    with _opened(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as file:
            header = read_array_header(file)
            if file.tell() + header.num_bytes != archive.getinfo(f"{name}.npy").file_size:
                raise ValueError(f"{name} is not as long as its shape {list(header.shape)} says")
            return header


def npz_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[Array]:
    """Rows of a large array in C order of an `.npz` file, of which only one is in memory; raises as `read_npz`.

    `rows` are numbers of the first axis, ascending.
    """
    with _opened(path) as archive, archive.open(f"{name}.npy") as file:
        header = read_array_header(file)
        row_bytes = header.num_bytes // header.shape[0]
        at = 0
        for row in rows:
            for skipped in range((row - at) * row_bytes, 0, -_SKIPPED_BYTES):
                file.read(min(skipped, _SKIPPED_BYTES))
            data = file.read(row_bytes)
            if len(data) < row_bytes:
                raise ValueError(f"{name} is cut")
            at = row + 1
            yield np.frombuffer(data, header.dtype).reshape(header.shape[1:])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise InputMissingError(f"no such file ({path})", remedy="check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Vq3dError:
        raise
    except Exception as error:
        # What reads zip and npy files raises almost any type on damaged, encrypted or oddly packed ones.
        raise DataError(f"not an .npz file of plain arrays ({path}): {error}", remedy="another copy") from error
