"""One run of ffmpeg that reads raw frames on stdin, and an honest account of how it ended.

ffmpeg reports a full disk only in its exit code and on stderr, so both are read; an interrupted run is killed, and
nobody but the caller of this module ever sees its unfinished file.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vq3dcli.errors import UnavailableError, Vq3dError
from vq3dcli.files import write_error

_STDERR_BYTES = 8192
_WRITE_BYTES = 1 << 20

# What ffmpeg says, and which error of the operating system it means.
_REASONS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "Input/output error": errno.EIO,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "Operation not permitted": errno.EPERM,
    "No such file or directory": errno.ENOENT,
    "Is a directory": errno.EISDIR,
    "File name too long": errno.ENAMETOOLONG,
}


def find_ffmpeg() -> str:
    """Path of the ffmpeg that the package imageio-ffmpeg ships. Raises `UnavailableError` if there is none."""
    remedy = "pip install --force-reinstall imageio-ffmpeg, or -o FOLDER/ for PNG frames"
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError, OSError) as error:
        raise UnavailableError(
            "videos need ffmpeg, and the package imageio-ffmpeg brings none", remedy=remedy
        ) from error


@contextlib.contextmanager
def ffmpeg_run(arguments: Sequence[str], *, output: Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Run ffmpeg for the time of the `with` block, which gets a function that feeds it raw bytes.

    At the end of the block stdin is closed and ffmpeg has to succeed; an exception in the block, an interrupt
    included, kills it.

    Args:
        arguments: All arguments but the general ones (quiet, overwrite, ignore the terminal).

    Raises:
        UnavailableError: ffmpeg is missing, cannot start, or does not know an encoder.
        OutputError: It cannot create its file.
        StorageError: The disk is full or failed.
    """
    command = [find_ffmpeg(), "-hide_banner", "-nostats", "-loglevel", "error", "-y", *arguments]
    pipe = subprocess.PIPE
    try:
        # Its own session: Ctrl-C at the terminal reaches us alone, and we decide what becomes of the encoder.
        process = subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise UnavailableError(f"cannot start ffmpeg ({command[0]}): {error.strerror}", remedy="vq3d doctor") from error
    stdin, stderr, messages = process.stdin, process.stderr, bytearray()
    assert stdin is not None and stderr is not None

    def read_stderr() -> None:
        while chunk := stderr.read(4096):
            messages.extend(chunk)
            del messages[:-_STDERR_BYTES]

    # stderr is read all the time: a full pipe would stop ffmpeg, and with it our next write.
    reader = threading.Thread(target=read_stderr, daemon=True)
    reader.start()

    def failure() -> Vq3dError:
        process.wait()
        reader.join()
        return _failure(process.returncode, messages.decode(errors="replace"), output)

    def write(data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), _WRITE_BYTES):
                stdin.write(view[start : start + _WRITE_BYTES])
        except BrokenPipeError:
            raise failure() from None

    try:
        yield write
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        if process.wait() != 0:
            raise failure()
    except BaseException:
        process.kill()
        raise
    finally:
        # Waits for the process, so that none is left behind, and releases its pipes.
        with contextlib.suppress(OSError):
            stdin.close()
        process.wait()
        reader.join()
        stderr.close()


def _failure(exit_code: int, messages: str, output: Path) -> Vq3dError:
    if exit_code == -signal.SIGXFSZ:
        return write_error(output, OSError(errno.EFBIG, "File too large"))
    for reason, number in _REASONS.items():
        if reason in messages:
            return write_error(output, OSError(number, reason))
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    ending = f"it was killed by signal {-exit_code}" if exit_code < 0 else f"it ended with code {exit_code}"
    reason = lines[-1] if lines else ending
    return UnavailableError(f"ffmpeg could not encode ({output}): {reason}", remedy="vq3d doctor, or another --format")
