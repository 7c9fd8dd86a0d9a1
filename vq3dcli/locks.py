"""Locks of folders, by `flock`: they end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from vq3dcli.errors import StoppedError
from vq3dcli.files import write_error

_log = logging.getLogger(__name__)

LOCK_NAME = ".lock"

_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
# A killed process holds its locks until the kernel has taken its memory apart.
_DYING_SECONDS = 3.0
_POLL_SECONDS = 0.1
_warned: list[Path] = []


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `folder` for this process, or the part of a job whose lock's file has another `name`.

    Raises `StoppedError` if another process holds it, and goes on holding it for some seconds.
    """
    with open_lock(folder / name) as handle:
        deadline = time.monotonic() + _DYING_SECONDS
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise busy_error(folder, name)
            time.sleep(_POLL_SECONDS)
        _sign(handle, f"process {os.getpid()} on {os.uname().nodename}")
        try:
            yield
        finally:
            _sign(handle, "")


def open_lock(path: Path) -> IO[str]:
    """Open the file of a lock, which `try_lock` takes and closing it gives back."""
    try:
        return path.open("a")
    except OSError as error:
        raise write_error(path, error) from error


def try_lock(handle: IO[str], *, shared: bool = False) -> Literal["held", "unknown", ""]:
    """Take a lock, or exchange a shared one for a whole one or back; "" if another process is in the way.

    "unknown" on a file system without locks: it is taken as free, with one warning.
    """
    path = Path(handle.name)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return ""
        if error.errno not in _NO_LOCKS:
            raise write_error(path, error) from error
        if not _warned:
            _warned.append(path)
            _log.warning(
                "the file system knows no locks (%s: %s): nothing keeps a second process from writing here",
                path.parent,
                error.strerror,
            )
        return "unknown"
    return "held"


def busy_error(folder: Path, name: str = LOCK_NAME) -> StoppedError:
    """What is raised where another process holds the lock of `folder`; it names the process where that is known."""
    try:
        holder = (folder / name).read_text(errors="replace")[:200].strip()
    except OSError:
        holder = ""
    return StoppedError(
        f"another process is writing here ({folder})" + (f": {holder}" if holder else ""),
        remedy="wait for it to end, or another output folder",
    )


def _sign(handle: IO[str], text: str) -> None:
    """Say in the lock's file who holds it; a full disk is no reason not to hold it."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle.fileno(), 0)
        os.write(handle.fileno(), text.encode())
