"""A file under its final name is whole, whatever fails while it is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vq3dcli import cli, files
from vq3dcli.errors import InputMissingError, OutputError, StorageError, Vq3dError


def test_writes_replace_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_bytes(path, b"old")
    files.write_json(path, {"b": [1.5, None], "a": "é"})
    assert json.loads(path.read_text()) == {"a": "é", "b": [1.5, None]}
    assert path.read_bytes().endswith(b"\n")
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"a": value})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write_bytes", "fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(StorageError, match=r"a\.bin"):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_exception_of_the_writer_passes_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    files.write_bytes(path, b"old")

    def write_half() -> None:
        with files.atomic_path(path) as temporary:
            assert temporary.suffix == ".mp4"
            assert temporary.parent == path.parent
            temporary.write_bytes(b"half")
            raise RuntimeError("encoder failed")

    with pytest.raises(RuntimeError, match="encoder"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["video.mp4"]


def test_places_that_cannot_be_written_are_output_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot create"):
            files.write_bytes(path, b"x")
    with pytest.raises(OutputError):
        files.make_folder(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="a file has that name"):
        files.make_folder(tmp_path / "file")
    files.make_folder(tmp_path / "new" / "below")
    files.make_folder(tmp_path / "new" / "below")
    assert (tmp_path / "new" / "below").is_dir()


def test_the_error_says_which_code(tmp_path: Path) -> None:
    denied = files.write_error(tmp_path, OSError(errno.EROFS, "Read-only file system"))
    full = files.write_error(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert (denied.exit_code, full.exit_code) == (73, 74)
    assert "No space left on device" in str(full)


def test_a_real_limit_on_the_file_size_keeps_the_old_file(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from vq3dcli import errors, files
path = Path(sys.argv[1])
files.write_bytes(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write_bytes(path, bytes(100_000))
except errors.StorageError:
    sys.exit(74)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")], timeout=60).returncode == 74
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files.write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_too_many_open_files_are_not_a_full_disk(tmp_path: Path) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for found in (files.write_error(tmp_path, error), files.read_error(tmp_path, error), cli.describe(error)):
        assert found.exit_code == 74
        assert found.remedy is not None
        assert "ulimit -n 4096" in found.remedy
        assert "disk" not in found.remedy


def test_what_a_killed_process_left_goes_and_what_others_are_writing_stays(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from vq3dcli import cli, files
with files.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], timeout=60)
    (left,) = os.listdir(tmp_path)
    of_another_machine = ".b.0badcafe-1-01234567.tmp.mp4"
    old = ".c.0badcafe-1-01234567.tmp"
    foreign = ".d.0123abcd.tmp.mp4"
    for name in (of_another_machine, foreign):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / old).mkdir()
    os.utime(tmp_path / old, (0, 0))
    with files.atomic_path(tmp_path / "e") as ours:
        ours.write_bytes(b"half")
        files.remove_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) == {ours.name, of_another_machine, foreign}
    assert left.endswith(".tmp.mp4")


def test_hashes_are_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "a") == files.sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    with pytest.raises(InputMissingError, match="none"):
        files.sha256_file(tmp_path / "none")


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, InputMissingError), (errno.EIO, StorageError)])
def test_reading_that_fails_has_a_code_and_a_remedy(tmp_path: Path, number: int, kind: type[Vq3dError]) -> None:
    error = files.read_error(tmp_path / "a.jpg", OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert os.strerror(number) in error.message
    assert error.remedy


def test_links_stay_links_and_their_targets_get_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_bytes(b"old")
    for name, target in (
        ("link", "far/a"),
        ("twice", "link"),
        ("new", "far/b"),
        ("lost", "none/c"),
        ("round", "round"),
    ):
        (tmp_path / name).symlink_to(target)
    files.write_bytes(tmp_path / "twice", b"1")
    assert (tmp_path / "far" / "a").read_bytes() == b"1"
    files.write_bytes(tmp_path / "new", b"2")
    assert (tmp_path / "far" / "b").read_bytes() == b"2"
    for name in ("lost", "round"):
        with pytest.raises(OutputError, match=name):
            files.write_bytes(tmp_path / name, b"3")
    assert all((tmp_path / name).is_symlink() for name in ("link", "twice", "new", "lost", "round"))
    assert sorted(os.listdir(tmp_path / "far")) == ["a", "b"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe"):
        files.write_bytes(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_names_are_cut_between_characters_and_temporary_ones_fit(tmp_path: Path) -> None:
    face = "\N{CAT FACE}"
    assert files.cut_name(face * 60, 64) == face * 16
    assert files.cut_name("a\udcff" * 100, 3) == "a\udcffa"
    for name in (f"{face * 60}.mp4", "a" * 251 + ".mp4", "a." + "b" * 253):
        files.write_bytes(tmp_path / name, b"x")
    with pytest.raises(OutputError, match=r"too long.*a shorter name"):
        files.write_bytes(tmp_path / ("a" * 256), b"x")


def test_staged_files_move_up_together_and_records_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def recording(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recording)
    with files.staging(tmp_path) as place:
        for name in ("a.png", "samples.json", "z.mp4"):
            (place / name).write_bytes(b"new")
        assert not moved
    assert moved == ["samples.json", "a.png", "z.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "samples.json", "z.mp4"]

    def interrupted() -> None:
        with files.staging(tmp_path) as place:
            (place / "a.png").write_bytes(b"newer")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.png").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 3
