"""Weights files: what is refused, and how."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vq3dcli.checkpoint import load_weights
from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError


def test_weights_are_rounded_once_and_load_as_written(tiny_weights: Path) -> None:
    loaded = load_weights(tiny_weights)
    stored = load_file(tiny_weights)
    for name, value in loaded.model.state_dict().items():
        if name in stored and stored[name].is_floating_point():
            assert torch.equal(value, stored[name].float())
    assert not any(name.startswith("auxiliary_head") for name in stored)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_under_any_name(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(UnsafeFileError):
        load_weights(path)


def test_a_torch_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UnsafeFileError):
        load_weights(path)


def test_cuts_are_found(tiny_weights: Path, tmp_path: Path) -> None:
    content = tiny_weights.read_bytes()
    for keep in (0, 4, 100, len(content) // 2, len(content) - 1):
        path = tmp_path / f"cut-{keep}.safetensors"
        path.write_bytes(content[:keep])
        with pytest.raises(DataError):
            load_weights(path)


def test_other_safetensors_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not a Stage 1 weights file"):
        load_weights(path)
