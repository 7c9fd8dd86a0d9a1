"""Locks of folders: one process at a time, and honest about what is in the way."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest

from vq3dcli import locks
from vq3dcli.errors import StoppedError, StorageError


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_folder_is_held_by_one_run_at_a_time_which_is_named(tmp_path: Path) -> None:
    with (
        locks.lock_folder(tmp_path),
        pytest.raises(StoppedError, match=f"another.*process {os.getpid()} on "),
        locks.lock_folder(tmp_path),
    ):
        pass
    with locks.lock_folder(tmp_path):
        pass
    assert (tmp_path / locks.LOCK_NAME).read_bytes() == b""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refuse(number, monkeypatch)
    monkeypatch.setattr(locks, "_warned", [])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with locks.lock_folder(tmp_path):
                pass
    (record,) = caplog.records
    assert str(tmp_path) in record.getMessage()
    assert os.strerror(number) in record.getMessage()


def test_a_lock_that_fails_otherwise_is_a_fault_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EIO, monkeypatch)
    with pytest.raises(StorageError, match="Input/output error"), locks.lock_folder(tmp_path):
        pass
