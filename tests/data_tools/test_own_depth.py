"""Labels by a depth network of `vq3d train-depth`: found by file, run and checkpoint; what it says is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vq3dcli import weights_file
from vq3dcli.cli import run
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import DepthRecipe
from vq3dcli.data.images import decode_image
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder
from vq3dcli.data_tools.depth.labels import label_by_model
from vq3dcli.data_tools.depth.models import ModelFiles, find_model, open_model
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import UnavailableError, UsageError
from vq3dcli.model.build import build_depth_network
from vq3dcli.weights_file import load_depth, save_weights

CPU = torch.device("cpu")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A run's folder with the real network, narrow and random."""
    recipe = load_recipe("depth-lite0", DepthRecipe, ["model.input_px=64", "model.widths=[4, 8, 8, 8, 16]"])
    (tmp_path / "teacher/checkpoints").mkdir(parents=True)
    save_weights(tmp_path / "teacher/weights.safetensors", build_depth_network(recipe), recipe, {"licence": "CC0"})
    return tmp_path / "teacher"


@pytest.mark.parametrize("flip", [False, True])
def test_labels_are_the_networks_disparity(teacher: Path, tmp_path: Path, flip: bool) -> None:
    prepare_toyscenes(tmp_path / "toys", count=5, size=64, seed=3)
    network = open_model(find_model(str(teacher)), CPU, flip=flip)
    assert label_by_model(tmp_path / "toys", network, "own", batch_size=2) is not None
    images = ShardFolder(tmp_path / "toys")
    labels, model = LabelFolder(images, "own"), load_depth(teacher).model
    for i in range(5):
        picture = decode_image(images.read(i)["png"], name="x", apply_orientation=False)
        expected = model.predict_fine(picture[None], flip=flip)[0]
        found = labels.read(i)
        assert found is not None and found.info.kind == "relative"
        assert found.values.shape == (64, 64) == expected.shape
        torch.testing.assert_close(found.values, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_it_is_found_by_what_train_depth_made(teacher: Path) -> None:
    for path in (teacher, teacher / "weights.safetensors"):
        found = find_model(str(path))
        assert (found.is_own, found.name) == (True, "teacher")
    assert find_model("embedded").path is None
    with pytest.raises(UsageError, match="says itself"):
        open_model(find_model(str(teacher)), CPU, meaning="depth")
    with pytest.raises(UsageError, match="--flip"):
        open_model(ModelFiles(teacher, "other"), CPU, flip=True)


def test_the_command_and_the_card(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_toyscenes(tmp_path / "toys", count=3, size=32, seed=3)
    assert run(["depth-labels", str(tmp_path / "toys"), "--model", str(teacher), "--flip", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["labels"] == 3
    assert (tmp_path / "toys/disparity/teacher/manifest.json").is_file()
    assert run(["inspect", str(teacher / "weights.safetensors"), "--verify", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    assert (told["stage"], told["card"]["licence"]) == ("depth", "CC0")


def test_without_an_embedded_one_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_file, "embedded_path", lambda kind: tmp_path / "none")
    with pytest.raises(UnavailableError, match="no embedded depth network"):
        open_model(find_model("embedded"), CPU)
