"""A tar that is not whole ends the run and is named: `tarfile` alone ends silently in most of these places."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.cli import run
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.sources.listing import list_tar
from vq3dcli.errors import DataError

BLOCK = 512


def listed(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [found.path for found in list_tar(path)]


def header_of(tar: bytes, name: str) -> int:
    return tar.index(name.encode() + b"\0") // BLOCK * BLOCK


@pytest.mark.parametrize("nested", [False, True])
def test_a_header_of_zeros_is_no_end(tmp_path: Path, archives: ModuleType, nested: bool):
    files = archives.train_files()
    whole = archives.nested_train_tar(files) if nested else archives.tar_bytes(files)
    assert len(listed(tmp_path / "x.tar", whole)) == len(files)
    names = ["n02085620.tar", "n02085620_13.JPEG"] if nested else ["n01440764/n01440764_3.JPEG", sorted(files)[-1]]
    for name in names:
        at = header_of(whole, name)
        with pytest.raises(DataError, match=r"no header at byte \d+, but data at byte"):
            listed(tmp_path / "x.tar", whole[:at] + bytes(BLOCK) + whole[at + BLOCK :])


def test_a_cut_between_two_members_is_an_error(tmp_path: Path, archives: ModuleType):
    tar = archives.tar_bytes(archives.train_files())
    second = header_of(tar, "n01443537/n01443537_3.JPEG")
    for cut in (second, second + 100):
        with pytest.raises(DataError, match=r"x\.tar"):
            listed(tmp_path / "x.tar", tar[:cut])
    assert len(listed(tmp_path / "x.tar", tar[: tar.rstrip(b"\0").__len__() // BLOCK * BLOCK + 3 * BLOCK])) == 12


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "x"},
        {"size": "-1024"},
        {"size": "9" * 30},
        {"mtime": "1e999"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "x"},
        {"GNU.sparse.map": "a,b"},
        {"hdrcharset": "none"},
    ],
)
def test_hostile_extended_headers_are_one_line(
    tmp_path: Path, archives: ModuleType, capsys: pytest.CaptureFixture[str], headers: dict[str, str]
):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/1.jpg", "a/2.jpg"):
            header = tarfile.TarInfo(name)
            header.size, header.pax_headers = 600, headers
            tar.addfile(header, io.BytesIO(bytes(600)))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    assert run(["prepare-data", str(tmp_path / "x.tar"), str(tmp_path / "out"), "--quiet"]) == 65
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert "bug" not in line


def test_a_compressed_tar_says_what_to_do(tmp_path: Path, archives: ModuleType):
    import gzip

    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(archives.tar_bytes({"a/1.jpg": archives.photo(1)})))
    for preset in ("folder", "imagenet", "compcars"):
        with pytest.raises(DataError, match="compressed archive") as caught:
            open_source(preset, path, tmp_path / "out")  # type: ignore[arg-type]
        assert "uncompress" in str(caught.value)


def test_memory_that_runs_out_ends_the_run_and_rejects_nothing(
    tmp_path: Path, archives: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    from vq3dcli.data_tools import prepare as module
    from vq3dcli.errors import StoppedError

    def full(*args: object, **options: object) -> None:
        raise MemoryError

    source = archives.write_tree(tmp_path / "src", {"a/1.jpg": archives.photo(1)})
    listed = open_source("folder", source, tmp_path / "out")
    monkeypatch.setattr(module, "decode_square", full)
    with pytest.raises(StoppedError, match=r"not enough memory for an image \(a/1.jpg\)"):
        prepare(tmp_path / "out", image_job("folder", listed, Options(16), max_bad=1.0))
