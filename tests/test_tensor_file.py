"""Safetensors that carry their hash: what is written comes back, full disks and refused files are named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.checkpoint import write_checkpoint
from vq3dcli.errors import DataError, StorageError
from vq3dcli.tensor_file import read_tensors, write_tensors

TENSORS = {
    "half": torch.arange(6.0).reshape(2, 3).half(),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "whole": torch.arange(5),
    "flag": torch.tensor(True),
    "none": torch.zeros(0, 3),
}


def test_what_is_written_comes_back_and_is_safetensors_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {"card": {"sha256": "0" * 64, "text": 'é "quoted"'}, "file_format": 1}
    digest = write_tensors(path, TENSORS, header)
    found = read_tensors(path, what="weights")
    assert (found.header, found.sha256) == (header, digest)
    for tensors in (found.tensors, load_file(path)):
        assert tensors.keys() == TENSORS.keys()
        assert all(
            torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
        )


def test_a_full_disk_is_no_bug_and_leaves_what_was_there(
    tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    path, folder = tmp_path / "a.safetensors", tmp_path / "images-000000000008"
    write_tensors(path, TENSORS, {"a": 1})
    write_checkpoint(folder, {"weights": TENSORS}, {"images_seen": 8})
    before = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file())
    for size in (0, 8, 200, 5000):
        large = {"large": torch.zeros(4000)}
        with file_limit(size), pytest.raises(StorageError):
            write_tensors(path, large, {"a": 2})
        with file_limit(size), pytest.raises(StorageError):
            write_checkpoint(folder, {"weights": large}, {"images_seen": 8})
    assert sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()) == before


def test_numbers_of_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"odd": torch.zeros(3, dtype=torch.float8_e4m3fn)}, {"a": 1})
    with pytest.raises(DataError, match="numbers of type"):
        read_tensors(path, what="weights")
