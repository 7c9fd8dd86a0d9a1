"""Named errors of the library.

Every error that a user can cause or mend is a `Vq3dError`. The command line turns it into one line on stderr and
its exit code (`vq3dcli/cli.py`); the library itself never prints and never exits.
"""

from __future__ import annotations

from typing import ClassVar


class Vq3dError(Exception):
    """Base class: what failed, with the file in brackets, and why; and a remedy, what the user can do about it.

    Both are one line without a full stop.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message if self.remedy is None else f"{self.message}; try: {self.remedy}"
        return " ".join(text.split())


class UsageError(Vq3dError):
    """Options that contradict each other, or a value out of range."""

    exit_code = 2


class DataError(Vq3dError):
    """A damaged or undecodable image, shard or checkpoint."""

    exit_code = 65


class InputMissingError(Vq3dError):
    """An input file or folder does not exist."""

    exit_code = 66


class UnavailableError(Vq3dError):
    """Something outside is missing: ffmpeg, a device, weights, an optional package."""

    exit_code = 69


class OutputError(Vq3dError):
    """The output cannot be created: no permission, a file where a folder is needed."""

    exit_code = 73


class StorageError(Vq3dError):
    """The disk is full, or reading or writing failed."""

    exit_code = 74


class StoppedError(Vq3dError):
    """Preempted after saving, or the output is locked by another run."""

    exit_code = 75


class UnsafeFileError(Vq3dError):
    """A file that could execute code, for example a pickle, is refused."""

    exit_code = 77


class RecipeError(Vq3dError):
    """A recipe that does not validate; lists every problem at once."""

    exit_code = 78


class DivergedError(Vq3dError):
    """Training produced a loss or gradient that is not finite."""

    exit_code = 79
