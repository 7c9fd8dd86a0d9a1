"""Weights files: what is refused, and how."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vq3dcli.checkpoint import load_weights, read_checkpoint, save_weights, write_checkpoint
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError
from vq3dcli.model.build import build_autoencoder


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


def test_weights_without_a_sound_recipe(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    for fields in ({}, {"recipe": {}}, {"recipe": {}, "card": {}}, {"recipe": "nonsense", "format_version": "x"}):
        header = {"format": "stage1", "format_version": 1, **fields}
        save_file({"a": torch.zeros(2)}, path, {"vq3d": json.dumps(header)})
        with pytest.raises(DataError, match="without a sound recipe"):
            load_weights(path)
    for text in ("", "[]", "null", "{"):
        save_file({"a": torch.zeros(2)}, path, {"vq3d": text})
        with pytest.raises(DataError, match=r"sound recipe|not a Stage 1"):
            load_weights(path)
    save_file({"a": torch.zeros(2)}, path, {"vq3d": json.dumps({"format": "stage1", "format_version": 99})})
    with pytest.raises(DataError, match="newer than"):
        load_weights(path)


def test_the_same_weights_give_the_same_file(tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_autoencoder(recipe)
    card = {"images_seen": 1, "data": "toys", "figures": {"psnr": 1.0}}
    assert len({save_weights(tmp_path / f"{n}.safetensors", model, recipe, card) for n in range(8)}) == 1


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputMissingError, match="has not finished") as caught:
        load_weights(tmp_path)
    assert "train-stage1" in str(caught.value)


def test_each_damage_of_a_checkpoint_is_named_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "images-000000000008"
    for damage, reason in (
        (lambda: (folder / "weights.safetensors").write_bytes(b"x"), "hash differs"),
        (lambda: (folder / "weights.safetensors").unlink(), "no such file"),
        (lambda: (folder / "manifest.json").write_text("{}"), "no 'sha256' in its manifest"),
        (lambda: (folder / "manifest.json").write_text("[]"), "damaged checkpoint"),
        (lambda: (folder / "manifest.json").write_text('{"sha256": 1}'), "damaged checkpoint"),
        (lambda: (folder / "manifest.json").unlink(), "No such file"),
    ):
        write_checkpoint(folder, {"weights": {"a": torch.zeros(2)}}, {"images_seen": 8})
        assert read_checkpoint(folder)[1]["images_seen"] == 8
        damage()
        with pytest.raises(DataError, match=reason) as caught:
            read_checkpoint(folder)
        assert str(caught.value).count("; try: ") == 1
