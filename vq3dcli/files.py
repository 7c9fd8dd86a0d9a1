"""Files that last: written beside their final name, flushed to disk, renamed; hashed with SHA-256."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vq3dcli.errors import InputMissingError, OutputError, StoppedError, StorageError, Vq3dError

_CANNOT_CREATE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ELOOP)
}
# Bytes of a stem that is made here: every ending and the marks of a temporary name fit beside it into 255.
MOST_STEM_BYTES = 180


def write_error(path: Path, error: OSError) -> Vq3dError:
    """The named error for an `OSError` met while writing `path`: 73 cannot create, 74 disk or I/O."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"cannot create output ({path}): {reason}", remedy="a shorter name")
    if error.errno in _CANNOT_CREATE:
        return OutputError(
            f"cannot create output ({path}): {reason}", remedy="another output folder, or other permissions"
        )
    return StorageError(f"cannot write ({path}): {reason}", remedy="free disk space, then run the same command again")


def read_error(path: Path, error: OSError) -> Vq3dError:
    """The named error for an `OSError` met while reading `path`, which is there: 66 no permission, 74 disk or I/O."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return InputMissingError(f"no such file ({path}): {reason}", remedy="check the path")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputMissingError(f"cannot read file ({path}): {reason}", remedy="chmod +r")
    return StorageError(
        f"cannot read file ({path}): {reason}", remedy="check the disk, then run the same command again"
    )


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


LOCK_NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with the process, however it ends.

    Args:
        name: Of the lock's file: a part of a job that several processes share has its own.

    Raises `StoppedError` if another process holds it.
    """
    with open_lock(folder / name) as handle:
        if not try_lock(handle):
            raise busy_error(folder)
        yield


def open_lock(path: Path) -> IO[str]:
    """Open the file of a lock, which `try_lock` takes and closing it gives back."""
    try:
        return path.open("a")
    except OSError as error:
        raise write_error(path, error) from error


def try_lock(handle: IO[str], *, shared: bool = False) -> bool:
    """Take a lock, or exchange a shared one for a whole one or back; False if another process is in the way."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def busy_error(folder: Path) -> StoppedError:
    """What is raised where another process holds the lock of `folder`."""
    return StoppedError(
        f"another process is writing here ({folder})", remedy="wait for it to end, or another output folder"
    )


def cut_name(text: str, most_bytes: int = MOST_STEM_BYTES) -> str:
    """The beginning of a file's name that takes at most so many bytes; characters stay whole."""
    while len(os.fsencode(text)) > most_bytes:
        text = text[:-1]
    return text


def written_file(path: Path) -> Path:
    """The file that gets the bytes of `path`: where a symbolic link leads, so that the link stays a link.

    Raises:
        OutputError: A device, pipe or socket has that name, which a rename would replace; links in a circle; a name
            that is too long.
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

    The temporary name keeps a short suffix of `path`, since encoders choose their format by it.
    Raises `OutputError` (see `written_file`) or `StorageError` for failing writes.
    """
    final = written_file(path)
    suffix = final.suffix if len(os.fsencode(final.suffix)) <= 64 else ""
    temporary = final.with_name(f".{cut_name(final.stem, 64)}.{secrets.token_hex(4)}.tmp{suffix}")
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


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, text.encode() + b"\n")


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises `InputMissingError` if it is not there."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputMissingError(f"no such file ({path})", remedy="check the path") from error
