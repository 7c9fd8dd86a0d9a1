"""Weights files: what is refused, and how."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vq3dcli.checkpoint import read_checkpoint, write_checkpoint
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError
from vq3dcli.model.build import build_autoencoder
from vq3dcli.sealed import write_sealed_json
from vq3dcli.tensor_file import read_tensors, write_tensors
from vq3dcli.weights_file import load_weights, save_weights


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
    with pytest.raises(DataError, match="carries no hash"):
        load_weights(path)
    write_tensors(path, {"a": torch.zeros(2)}, {"format": "something"})
    with pytest.raises(DataError, match="not a Stage 1 weights file"):
        load_weights(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": {}}, "without a sound header"),
        ({"recipe": "nonsense", "format_version": "x"}, "without a sound header"),
        ({"card": None}, "without a sound header"),
        ({"card": {"codes_of": 3}}, "without a sound header"),
        ({"more": 1}, "without a sound header"),
        ({"format_version": 99}, "newer than"),
        ({"format_version": 2}, "older than"),
        ({"format_version": 1e300}, "without a sound header"),
        ({"model.encoder_layers": 255}, "layers"),
        ({"model.decoder_layers": 10**18}, "without a sound header|layers"),
        ({"model.field_hidden": 4096}, "do not fit their recipe"),
        ({"model.encoder_width": 16384}, "do not fit their recipe"),
        ({"card": json.loads("[" * 100 + "]" * 100)}, "levels deep"),
        ({"card": {"text": "x" * (5 << 20)}}, "a header of"),
    ],
)
def test_a_header_that_says_too_much_is_refused_before_anything_is_built(
    tiny_weights: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    header, tensors, _ = read_tensors(tiny_weights, what="weights")
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (header["recipe"][section] if section else header)[name] = value
    write_tensors(tmp_path / "odd.safetensors", tensors, header)
    with pytest.raises(DataError, match=reason) as caught:
        load_weights(tmp_path / "odd.safetensors")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(tiny_weights: Path, tmp_path: Path, value: float) -> None:
    header, tensors, _ = read_tensors(tiny_weights, what="weights")
    tensors["from_code.bias"][3] = value
    write_tensors(tmp_path / "odd.safetensors", tensors, header)
    with pytest.raises(DataError, match=r"not finite, first in from_code\.bias"):
        load_weights(tmp_path / "odd.safetensors")


def test_a_tensor_of_another_shape_or_kind_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    header, tensors, _ = read_tensors(tiny_weights, what="weights")
    for changed in (torch.zeros(33, dtype=torch.float16), torch.zeros(32, dtype=torch.int64)):
        write_tensors(tmp_path / "odd.safetensors", {**tensors, "from_code.bias": changed}, header)
        with pytest.raises(DataError, match=r"do not fit their recipe.*from_code\.bias"):
            load_weights(tmp_path / "odd.safetensors")


def test_the_same_weights_give_the_same_file(tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_autoencoder(recipe)
    card = {"images_seen": 1, "data": "toys", "figures": {"psnr": 1.0}}
    assert len({save_weights(tmp_path / f"{n}.safetensors", model, recipe, card) for n in range(8)}) == 1


def test_a_run_that_has_saved_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputMissingError, match="has saved nothing yet") as caught:
        load_weights(tmp_path)
    assert "train-stage1" in str(caught.value)


def test_each_damage_of_a_checkpoint_is_named_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "images-000000000008"
    write_checkpoint(folder, {"weights": {"a": torch.zeros(2)}}, {"images_seen": 8})
    manifest = read_checkpoint(folder)[1]
    for damage, reason in (
        (lambda: (folder / "weights.safetensors").write_bytes(b"x"), "hash differs"),
        (lambda: (folder / "weights.safetensors").unlink(), "no such file"),
        (lambda: (folder / "manifest.json").write_text("{}"), "carries no hash"),
        (lambda: (folder / "manifest.json").write_text("[]"), "damaged checkpoint"),
        (lambda: write_sealed_json(folder / "manifest.json", manifest | {"sha256": 1}), "no hashes of its parts"),
        (lambda: write_sealed_json(folder / "manifest.json", manifest | {"sha256": {"../x": ""}}), "no hashes"),
        (lambda: write_sealed_json(folder / "manifest.json", manifest | {"images_seen": 16}), "not that of its folder"),
        (lambda: (folder / "manifest.json").unlink(), "no such file"),
    ):
        write_checkpoint(folder, {"weights": {"a": torch.zeros(2)}}, {"images_seen": 8})
        assert read_checkpoint(folder)[1]["images_seen"] == 8
        damage()
        with pytest.raises(DataError, match=reason) as caught:
            read_checkpoint(folder)
        assert str(caught.value).count("; try: ") == 1


def test_a_checkpoint_whose_average_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "images-000000000008"
    whole = torch.zeros(2)
    write_checkpoint(folder, {"weights": {"a": whole}, "average": {"a": whole / 0}}, {"images_seen": 8})
    parts, _ = read_checkpoint(folder)
    assert torch.equal(parts["weights"]["a"], whole)
    with pytest.raises(DataError, match=r"average\.safetensors.*not finite"):
        parts["average"]


def test_loading_weights_does_not_import_the_compiler() -> None:
    """It takes seconds, and loading draws no random numbers that would need it."""
    code = "import sys; from vq3dcli.weights_file import load_weights; load_weights(); sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
