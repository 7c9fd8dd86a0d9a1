"""Files that last: written beside their final name, flushed to disk, renamed; hashed with SHA-256."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vq3dcli.errors import InputMissingError, OutputError, StorageError, UsageError, Vq3dError

TOO_MANY_OPEN = {errno.EMFILE, errno.ENFILE}
MORE_OPEN_FILES = "ulimit -n 4096, then run the same command again"

_CANNOT_CREATE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ELOOP}
_CANNOT_CREATE |= {errno.ENOTDIR, errno.EISDIR}
# Bytes of a stem that is made here: every ending and the marks of a temporary name fit beside it into 255.
MOST_STEM_BYTES = 180


def write_error(path: Path, error: OSError) -> Vq3dError:
    """The named error for an `OSError` met while writing `path`: 73 cannot create, 74 disk or I/O."""
    reason = error.strerror or str(error)
    if error.errno in {errno.ENAMETOOLONG, *_CANNOT_CREATE}:
        shorter = error.errno == errno.ENAMETOOLONG
        remedy = "a shorter name" if shorter else "another output folder, or other permissions"
        return OutputError(f"cannot create output ({path}): {reason}", remedy=remedy)
    remedy = MORE_OPEN_FILES if error.errno in TOO_MANY_OPEN else "free disk space, then run the same command again"
    return StorageError(f"cannot write ({path}): {reason}", remedy=remedy)


def read_error(path: Path, error: OSError, remedy: str = "check the path") -> Vq3dError:
    """The named error for an `OSError` met while reading `path`: 66 not there or no permission, 74 disk or I/O.

    `remedy` is for a file that is not there.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputMissingError(f"no such file ({path})", remedy=remedy)
    if error.errno == errno.ENAMETOOLONG:
        return InputMissingError(f"no such file ({path}): {reason}", remedy=remedy)
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputMissingError(f"cannot read file ({path}): {reason}", remedy="chmod +r")
    remedy = MORE_OPEN_FILES if error.errno in TOO_MANY_OPEN else "check the disk, then run the same command again"
    return StorageError(f"cannot read file ({path}): {reason}", remedy=remedy)


def read_bytes(path: Path, remedy: str = "check the path") -> bytes:
    """The bytes of a file of ours. Raises `InputMissingError` or `StorageError`, see `read_error`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise read_error(path, error, remedy) from error


def make_folder(path: Path) -> None:
    """Create `path` and its parents. Raises `OutputError` or `StorageError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(
            f"cannot create folder ({path}): a file has that name", remedy="another output folder, or other permissions"
        ) from error
    except OSError as error:
        raise write_error(path, error) from error


# A file that says what a folder holds, as we write it.
_HOLDS = {"run.json": "a training run", "plan.json": "shards, tokens or an ablation", "samples.json": "samples"}


def check_kind(folder: Path, marker: str) -> None:
    """Raise `UsageError` if an output folder holds what another command made, unless that is marked by `marker`."""
    for name, what in _HOLDS.items():
        if name != marker and (folder / name).is_file():
            raise UsageError(f"the folder holds {what} ({folder})", remedy="another folder")


# What file systems answer to the fsync of a folder that do not know it (CIFS, FUSE, vboxsf), or may not open one.
_NO_FOLDER_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)
_ABANDONED_SECONDS = 24 * 3600.0
_swept: set[Path] = set()


@functools.cache
def _machine() -> str:
    """Eight digits for this machine, or container: where a process number means a process that we can see."""
    try:
        numbering = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        numbering = 0
    return f"{zlib.crc32(f'{os.uname().nodename} {numbering}'.encode()):08x}"


def temporary_for(path: Path) -> Path:
    """A name beside `path` that says who writes it."""
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 64 else ""
    return path.with_name(f".{cut_name(path.stem, 64)}.{owner}.tmp{suffix}")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left: temporaries of this machine's that are gone, and others' after a day."""
    listed: list[Path] = []
    with contextlib.suppress(OSError):
        listed = list(folder.iterdir())
    for path in listed:
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match[1] == _machine():
                abandoned = not _is_running(int(match[2]))
            else:
                abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
            if abandoned:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    with contextlib.suppress(OSError, OverflowError):  # of another user, or no number of a process
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def cut_name(text: str, most_bytes: int = MOST_STEM_BYTES) -> str:
    """The beginning of a file's name that takes at most so many bytes; characters stay whole."""
    while len(os.fsencode(text)) > most_bytes:
        text = text[:-1]
    return text


def written_file(path: Path) -> Path:
    """The file that gets the bytes of `path`: where a symbolic link leads, so that the link stays a link.

    Raises `OutputError`: a device, pipe or socket has that name, which a rename would replace; links in a circle; a
    name that is too long.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise write_error(path, error) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OutputError(f"cannot create output ({path}): a device or pipe has that name", remedy="the name of a file")
    return path.resolve() if path.is_symlink() else path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush and rename it to `path`, else delete it.

    The temporary name keeps a short suffix of `path`, since encoders choose their format by it. The first time in a
    folder, what killed processes left there goes.
    Raises `OutputError` (see `written_file`) or `StorageError` for failing writes.
    """
    final = written_file(path)
    if final.parent not in _swept:
        _swept.add(final.parent)
        remove_leftovers(final.parent)
    temporary = temporary_for(final)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(final)
        sync_folder(final.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder inside of `folder`; its files move up, records first, when the `with` block has ended well.

    Raises `OutputError` or `StorageError`.
    """
    remove_leftovers(folder)
    place = temporary_for(folder / "new")
    try:
        place.mkdir()
        yield place
        for new in sorted(place.iterdir(), key=lambda path: (path.suffix != ".json", path.name)):
            new.replace(folder / new.name)
        sync_folder(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a crash; nothing where that is not known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def as_bytes(text: str) -> bytes:
    """UTF-8; bytes of file names that are no text become escapes, which JSON reads as the same name again."""
    return text.encode(errors="backslashreplace")


@contextlib.contextmanager
def text_path(path: Path) -> Iterator[str]:
    """A name of a file that is text, which safetensors wants: that of a descriptor, where the file's own is none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as handle:
            yield f"/dev/fd/{handle.fileno()}"
    else:
        yield str(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_text`, atomically."""
    write_bytes(path, as_bytes(json_text(value)))


def json_text(value: Any) -> str:
    """`value` as indented JSON with sorted keys, and a newline; NaN and infinity are refused."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises as `read_bytes`."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise read_error(path, error) from error
