"""Every file of a folder, a tar, tars inside it, or a folder of tars; nothing is extracted.

`tarfile` ends silently at a header that is cut, damaged or zero, so what follows its end is read once more: nothing but
zeros may, and at least one block of them must.
"""

from __future__ import annotations

import logging
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Span
from vq3dcli.errors import DataError, InputMissingError, StorageError
from vq3dcli.files import read_error

_log = logging.getLogger(__name__)
# Folders that network storage, Windows and archivers put beside the user's.
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z")
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK")
_UNCOMPRESS = "uncompress it first: members of a compressed archive cannot be found by their offset"
_DOWNLOAD_AGAIN = "another copy of the archive"
_CHUNK_BYTES = 1 << 20


def is_tar_name(name: str) -> bool:
    """Whether a file name says that it is a tar without compression."""
    return name.lower().endswith(".tar")


def is_compressed_name(name: str) -> bool:
    """Whether a file name says that it is a compressed archive."""
    return name.lower().endswith(_COMPRESSED)


def list_source(
    source: Path, *, leave_out: Path, open_archive: Callable[[str], bool] = lambda path: True
) -> list[Entry]:
    """All files of a folder or a tar that are not hidden, sorted by path; tars count as folders.

    Tars whose path `open_archive` refuses are left out.
    """
    if source.is_file():
        return sorted(list_tar(source))
    files: list[Entry] = []
    for file in list_folder(source, leave_out=leave_out):
        if not is_tar_name(file.path):
            files.append(file)
        elif open_archive(file.path):
            files += list_tar(Path(file.place.file), f"{file.path}/")
    return sorted(files)


def list_folder(source: Path, *, leave_out: Path) -> list[Entry]:
    """All files under a folder that are not hidden, sorted by path; tars are files.

    Links are followed, each folder is visited once. The folder `leave_out` is passed over.
    """
    if not source.exists():
        raise InputMissingError(f"no such folder ({source})", remedy="check the path")
    if not source.is_dir():
        raise InputMissingError(f"not a folder ({source})", remedy="the folder that holds the images")
    return sorted(_walk(os.fspath(source), "", {os.path.realpath(leave_out): ""}))


def _walk(folder: str, prefix: str, visited: dict[str, str]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in visited:
        if visited[real]:
            _log.warning("a link to a folder that is there already is passed over (%s is %s)", folder, visited[real])
        return
    visited[real] = folder
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except PermissionError as error:
        raise InputMissingError(f"cannot list folder ({folder}): {error.strerror}", remedy="chmod +rx") from error
    except OSError as error:
        raise StorageError(f"cannot list folder ({folder}): {error.strerror}", remedy="check the disk") from error
    for entry in entries:
        if _is_hidden(entry.name):
            continue
        # Bytes of a name that are not UTF-8 become escapes, since JSON holds text.
        path = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/", visited)
            continue
        try:
            status = entry.stat()
        except OSError:  # a link to nowhere: reading it gives the reason
            yield Entry(path, FilePlace(entry.path), 0)
        else:
            reject = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
            yield Entry(path, FilePlace(entry.path), status.st_size, reject=reject)


def _is_hidden(name: str) -> bool:
    """Whether a part of a path is hidden, or of a folder that no user made."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_FOLDERS


def list_tar(path: Path, prefix: str = "") -> Iterator[Entry]:
    """The files in a tar in its order, those of inner tars in their place; hidden ones are left out.

    Raises `InputMissingError`, `StorageError`: it cannot be read; `DataError`: it is cut, damaged, compressed, or no
    tar.
    """
    if is_compressed_name(path.name) and path.is_file():
        raise DataError(f"compressed archive ({path})", remedy=_UNCOMPRESS)
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), 0, path.stat().st_size, prefix, str(path))
    except OSError as error:
        raise read_error(path, error) from error


def _members(file: BinaryIO, archive: str, start: int, end: int, prefix: str, shown: str) -> Iterator[Entry]:
    """Files of the tar at bytes `start` to `end` of `file`."""
    file.seek(start)
    magic = file.read(min(6, end - start))
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        after = start  # where the last good member ends: newer Pythons step over a header that is damaged
        while tar.offset < end and (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= after:
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            if tar.offset >= end + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
            after = tar.offset
            tar.members.clear()  # type: ignore[attr-defined] # else a million headers stay in memory
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            while name.startswith("./"):
                name = name[2:]
            if member.isdir() or any(map(_is_hidden, name.split("/"))):
                continue
            path, size = f"{prefix}{name}", member.size
            place = Span(archive, member.offset_data, size)
            if not member.isreg() or member.issparse():
                yield Entry(path, place._replace(size=0), 0, reject="a link or special file in the archive")
            elif name.startswith("/") or ".." in name.split("/"):
                yield Entry(path, place, size, reject="its path leads out of the archive")
            elif is_tar_name(name):
                yield from _members(file, archive, place.offset, place.offset + size, f"{path}/", f"{shown}: {name}")
            else:
                yield Entry(path, place, size)
    # Damaged extended headers (PAX) raise the other two: numbers that are none, or too large.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        remedy = _UNCOMPRESS if magic.startswith(_COMPRESSED_MAGIC) else _DOWNLOAD_AGAIN
        raise DataError(f"not a tar, or a damaged one ({shown}): {error}", remedy=remedy) from error
    _check_end(file, start, after, end, shown)


def _check_end(file: BinaryIO, start: int, offset: int, end: int, shown: str) -> None:
    """Raise `DataError` unless a tar ends at byte `offset`: with a block of zeros, and nothing but zeros after it."""
    at = min(offset, end)
    file.seek(at)
    while chunk := file.read(max(0, min(_CHUNK_BYTES, end - at))):
        rest = chunk.lstrip(b"\0")
        if rest:
            data = at + len(chunk) - len(rest)
            raise DataError(
                f"damaged archive ({shown}): no header at byte {offset - start}, but data at byte {data - start}",
                remedy=_DOWNLOAD_AGAIN,
            )
        at += len(chunk)
    if at - offset < tarfile.BLOCKSIZE:
        raise DataError(
            f"archive without an end mark, it is cut ({shown}): at byte {at - start}", remedy=_DOWNLOAD_AGAIN
        )
