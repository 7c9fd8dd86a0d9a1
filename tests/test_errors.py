"""Every named error has a code of its own, and says itself in one line."""

from __future__ import annotations

import errno

import pytest
import typer

from vq3dcli import cli, errors


def named_errors() -> list[type[errors.Vq3dError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.Vq3dError)]


def test_codes_are_in_the_table_and_differ() -> None:
    codes = [error.exit_code for error in named_errors()]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= cli.EXIT_CODES


@pytest.mark.parametrize("error", named_errors())
def test_the_edge_keeps_reason_remedy_and_code(error: type[errors.Vq3dError]) -> None:
    failure = cli.describe(error("cannot read (a.jpg): it is empty", remedy="another file"))
    assert failure == cli.Failure(error.exit_code, "cannot read (a.jpg): it is empty", "another file")


def test_an_error_is_one_line() -> None:
    assert str(errors.DataError("first\n  second", remedy="third\tfourth")) == "first second; try: third fourth"
    assert str(errors.DataError("no remedy")) == "no remedy"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jpg"), 66),
        (PermissionError(errno.EACCES, "Permission denied", "a.jpg"), 73),
        (OSError(errno.EROFS, "Read-only file system", "a.jpg"), 73),
        (OSError(errno.ENOSPC, "No space left on device", "a.jpg"), 74),
        (OSError(errno.EIO, "Input/output error"), 74),
        (OSError("no number"), 74),
        (MemoryError(), 70),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (typer.BadParameter("no"), 2),
        (SystemExit(3), 70),
        (ZeroDivisionError("division by zero"), 70),
    ],
)
def test_any_exception_has_a_code_in_the_table(error: BaseException, code: int) -> None:
    failure = cli.describe(error)
    assert failure.exit_code == code
    assert code in cli.EXIT_CODES
    assert failure.message
    if isinstance(error, OSError) and error.filename:
        assert "(a.jpg)" in failure.message


def test_running_out_of_device_memory_has_a_remedy() -> None:
    torch = pytest.importorskip("torch")
    failure = cli.describe(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert failure.message == "out of memory on the device"
