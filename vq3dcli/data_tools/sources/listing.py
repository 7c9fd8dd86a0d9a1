"""Every file of a folder, a tar, or a folder of tars, in the order of their paths."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from vq3dcli.data_tools.sources.entry import FilePlace, Found, is_hidden
from vq3dcli.data_tools.sources.tars import is_tar_name, list_tar
from vq3dcli.errors import InputMissingError, StorageError

_log = logging.getLogger(__name__)


def list_source(
    source: Path, *, leave_out: Path, open_archive: Callable[[str], bool] = lambda path: True
) -> list[Found]:
    """All files that are not hidden, sorted by path; tars count as folders.

    Args:
        source: A folder or a tar.
        leave_out: A folder that is passed over: the output may lie in the source.
        open_archive: Whether to look into the tar at a path; the others are left out.
    """
    if source.is_file():
        return sorted(list_tar(source))
    found: list[Found] = []
    for file in list_folder(source, leave_out=leave_out):
        if not is_tar_name(file.path):
            found.append(file)
        elif open_archive(file.path):
            assert isinstance(file.place, FilePlace)
            found += list_tar(Path(file.place.file), f"{file.path}/")
    return sorted(found)


def list_folder(source: Path, *, leave_out: Path) -> list[Found]:
    """All files under a folder that are not hidden, sorted by path; tars are files.

    Links are followed, each folder is visited once. The folder `leave_out` is passed over.
    """
    if not source.exists():
        raise InputMissingError(f"no such folder ({source})", remedy="check the path")
    if not source.is_dir():
        raise InputMissingError(f"not a folder ({source})", remedy="the folder that holds the images")
    return sorted(_walk(os.fspath(source), "", {os.path.realpath(leave_out): ""}))


def _walk(folder: str, prefix: str, visited: dict[str, str]) -> Iterator[Found]:
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
        if is_hidden(entry.name):
            continue
        path = f"{prefix}{_printable(entry.name)}"
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/", visited)
        else:
            yield _found(entry, path)


def _found(entry: os.DirEntry[str], path: str) -> Found:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: reading it gives the reason
        return Found(path, FilePlace(entry.path), 0)
    problem = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
    return Found(path, FilePlace(entry.path), status.st_size, problem)


def _printable(name: str) -> str:
    """A file name as text that JSON can hold: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
