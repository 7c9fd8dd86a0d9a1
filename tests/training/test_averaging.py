"""Averages of checkpoints, as `RunFolder` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.sealed import write_sealed_json
from vq3dcli.training.averaging import average_checkpoints
from vq3dcli.training.distributed import join_ranks
from vq3dcli.training.ema import as_mapping
from vq3dcli.training.run_folder import RunFolder

Make = Callable[..., Stage1Recipe]


def _save(folder: RunFolder, images_seen: int, model: Autoencoder) -> dict[str, Tensor]:
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    state = {name: value.clone() for name, value in as_mapping(model).items()}
    # The other parts are there and must not be mistaken for the average.
    noise = {"weights": {"x": torch.full((3,), 1e9)}, "optimizer": {"x/step": torch.tensor(1.0)}}
    folder.save(images_seen, {**noise, "average": state}, {"images_seen": images_seen}, {}, keep=10)
    return state


def _drifting(recipe: Stage1Recipe, count: int, *, active: bool = True) -> list[Autoencoder]:
    """Models along a short path, with buffers that tell them apart."""
    models = []
    for step in range(count):
        model = build_autoencoder(recipe)
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
            model.quantizer.mean.fill_(float(step))
            model.quantizer.window_counts.fill_(float(step))
            model.quantizer.active.fill_(active)
        models.append(model)
    return models


def test_parameters_are_averaged_and_buffers_come_from_the_newest(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(), RunFolder(tmp_path)
    models = _drifting(recipe, 4)
    states = [_save(folder, 8 * (n + 1), model) for n, model in enumerate(models)]
    into = build_autoencoder(recipe, seed=77)
    assert average_checkpoints(folder.checkpoints, into, 3) == (32, 24, 16)
    parameters = {name for name, _ in into.named_parameters()}
    for name, value in into.state_dict().items():
        if name in parameters:
            torch.testing.assert_close(value, torch.stack([s[name] for s in states[1:]]).mean(0), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(value, states[3][name]), name
            assert value.dtype == states[3][name].dtype
    assert into.state_dict()["quantizer.active"].dtype == torch.bool


def test_one_checkpoint_is_itself_to_the_bit(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(), RunFolder(tmp_path)
    models = _drifting(recipe, 2)
    states = [_save(folder, 8 * (n + 1), model) for n, model in enumerate(models)]
    into = build_autoencoder(recipe, seed=77)
    assert average_checkpoints(folder.checkpoints, into, 1) == (16,)
    assert all(torch.equal(value, states[1][name]) for name, value in into.state_dict().items())


def test_a_revived_code_is_the_newest_one(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(), RunFolder(tmp_path)
    old, new = _drifting(recipe, 2)
    with torch.no_grad():
        new.quantizer.codebook[5] = -old.quantizer.codebook[5]
    before, after = _save(folder, 8, old), _save(folder, 16, new)
    into = build_autoencoder(recipe, seed=77)
    average_checkpoints(folder.checkpoints, into, 2)
    mean = (before["quantizer.codebook"] + after["quantizer.codebook"]) / 2
    mean[5] = after["quantizer.codebook"][5]
    torch.testing.assert_close(into.quantizer.codebook.detach(), mean)


def test_damaged_ones_and_those_before_quantisation_stay_out(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, folder = tiny_recipe(), RunFolder(tmp_path)
    _save(folder, 8, _drifting(recipe, 1, active=False)[0])
    for n, model in enumerate(_drifting(recipe, 3)):
        _save(folder, 16 + 8 * n, model)
    damaged = folder.checkpoints / "images-000000000024" / "average.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00\x00")
    into = build_autoencoder(recipe, seed=77)
    assert average_checkpoints(folder.checkpoints, into, 4) == (32, 16)
    assert "does not go into the average" in caplog.text and "averaged 2 checkpoints instead of 4" in caplog.text


def test_nothing_to_average(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(), RunFolder(tmp_path)
    model = build_autoencoder(recipe)
    with pytest.raises(InputMissingError):
        average_checkpoints(folder.checkpoints, model, 2)
    _save(folder, 8, model)
    (folder.checkpoints / "images-000000000008" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        average_checkpoints(folder.checkpoints, model, 2)


def test_another_model_is_told(tiny_recipe: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 8, build_autoencoder(tiny_recipe()))
    with pytest.raises(DataError, match="does not fit this model"):
        average_checkpoints(folder.checkpoints, build_autoencoder(tiny_recipe("model.code_dim=4")), 1)


def test_images_seen_that_were_edited_give_way_to_the_checkpoint_before(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = RunFolder(tmp_path), build_autoencoder(tiny_recipe())
    parts = {"weights": as_mapping(model), "average": as_mapping(model)}
    folder.checkpoints.mkdir()
    for images_seen in (8, 16):
        folder.save(images_seen, parts, {"images_seen": images_seen}, {}, keep=2)
    path = folder.checkpoints / "images-000000000016" / "manifest.json"
    manifest, whole = read_checkpoint(path.parent)[1], path.read_bytes()
    for edit in (
        lambda: path.write_bytes(whole.replace(b'"images_seen": 16', b'"images_seen": 61')),
        lambda: write_sealed_json(path, {**manifest, "images_seen": 61}),
    ):
        edit()
        found = folder.newest(join_ranks(torch.device("cpu")))
        assert found is not None
        assert found[1]["images_seen"] == 8
        assert "falling back" in caplog.text
        caplog.clear()
