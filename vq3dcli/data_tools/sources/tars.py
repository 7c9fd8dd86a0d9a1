"""What lies in a tar, and in tars inside it: names, offsets and sizes. Nothing is extracted.

`tarfile` ends silently at a header that is cut, damaged or zero, so what follows its end is read once more: nothing but
zeros may, and at least one block of them must.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vq3dcli.data_tools.sources.entry import Found, Span, is_hidden
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import read_error

_DOWNLOAD_AGAIN = "another copy of the archive"
_UNCOMPRESS = "uncompress it first: members of a compressed archive cannot be found by their offset"
_CHUNK_BYTES = 1 << 20


def list_tar(path: Path, prefix: str = "") -> Iterator[Found]:
    """The files in a tar in its order, those of inner tars in their place; hidden ones are left out.

    Args:
        prefix: Is put before their paths.

    Raises:
        InputMissingError, StorageError: It cannot be read.
        DataError: It is cut, damaged, compressed, or no tar.
    """
    if is_compressed_name(path.name) and path.is_file():
        raise DataError(f"compressed archive ({path})", remedy=_UNCOMPRESS)
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), 0, path.stat().st_size, prefix, str(path))
    except FileNotFoundError as error:
        raise InputMissingError(f"no such file ({path})", remedy="check the path") from error
    except OSError as error:
        raise read_error(path, error) from error


def is_tar_name(name: str) -> bool:
    """Whether a file name says that it is a tar without compression."""
    return name.lower().endswith(".tar")


def is_compressed_name(name: str) -> bool:
    """Whether a file name says that it is a compressed archive."""
    return name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z"))


def _members(file: BinaryIO, archive: str, start: int, size: int, prefix: str, shown: str) -> Iterator[Found]:
    """Files of the tar at bytes `start` to `start + size` of `file`."""
    window = _Window(file, start, size)
    try:
        tar = tarfile.open(fileobj=window, mode="r:")  # noqa: SIM115
        after = -1
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= after:
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            after = tar.offset
            tar.members.clear()  # type: ignore[attr-defined] # else a million headers stay in memory
            name = _clean(member.name)
            if member.isdir() or any(map(is_hidden, name.split("/"))):
                continue
            path, offset = f"{prefix}{name}", start + member.offset_data
            if not member.isreg() or member.issparse():
                yield Found(path, Span(archive, offset, 0), 0, "a link or special file in the archive")
            elif name.startswith("/") or ".." in name.split("/"):
                yield Found(path, Span(archive, offset, member.size), member.size, "its path leads out of the archive")
            elif is_tar_name(name):
                inner = f"{shown}: {name}"
                yield from _members(file, archive, offset, member.size, f"{path}/", inner)
            else:
                yield Found(path, Span(archive, offset, member.size), member.size)
    # Damaged extended headers (PAX) raise the other two: numbers that are none, or too large.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"not a tar, or a damaged one ({shown}): {error}", remedy=_remedy(window)) from error
    _check_end(window, tar.offset, shown)


def _check_end(window: _Window, offset: int, shown: str) -> None:
    """Raise `DataError` unless a tar ends at byte `offset`: with a block of zeros, and nothing but zeros after it."""
    window.seek(offset)
    at = offset
    while chunk := window.read(_CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        if rest:
            data = at + len(chunk) - len(rest)
            raise DataError(
                f"damaged archive ({shown}): no header at byte {offset}, but data at byte {data}",
                remedy=_DOWNLOAD_AGAIN,
            )
        at += len(chunk)
    if at - offset < tarfile.BLOCKSIZE:
        raise DataError(f"archive without an end mark, it is cut ({shown}): at byte {at}", remedy=_DOWNLOAD_AGAIN)


def _clean(name: str) -> str:
    """A member's name without `./`, as text that JSON can hold."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    while text.startswith("./"):
        text = text[2:]
    return text


def _remedy(window: _Window) -> str:
    window.seek(0)
    magic = window.read(6)
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK")):
        return _UNCOMPRESS
    return _DOWNLOAD_AGAIN


class _Window(io.RawIOBase):
    """A read-only view of some bytes of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._file.fileno(), wanted, self._start + self._at)
        self._at += len(data)
        return data
