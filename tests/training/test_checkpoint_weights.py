"""Any checkpoint of any run is taken wherever weights are: the average that it holds, as an export would round it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vq3dcli.cli import run
from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, StoppedError
from vq3dcli.training.stage1 import train
from vq3dcli.training.stage2 import train_prior
from vq3dcli.weights_file import load_prior, load_weights


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toys") / "toys"
    prepare_toyscenes(path, count=16, size=16, seed=0)
    label_exact(path)
    return path


@pytest.fixture(scope="module")
def stopped(toys: Path, tiny_recipe: Callable[..., Stage1Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage 1 run that was stopped in the middle."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    recipe = tiny_recipe("training.images=64", "training.quantize_from_images=0")
    with pytest.raises(StoppedError):
        train(recipe, _loader(toys), path, stop_after_images=40)
    return path


def _loader(toys: Path) -> TrainingLoader:
    return TrainingLoader([toys], batch_size=8, size=16, seed=0, flip=True, crop=False)


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_checkpoint_is_the_weights_that_would_be_exported_then(
    toys: Path,
    tiny_recipe: Callable[..., Stage1Recipe],
    stopped: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    newest = stopped / "checkpoints/images-000000000040"
    found = [load_weights(path) for path in (stopped, newest, *newest.glob("*.safetensors"), newest / "manifest.json")]
    assert len({weights.sha256 for weights in found}) == 1
    assert all(weights.card["images_seen"] == 40 for weights in found)
    assert "weights of a run at 40 of 64 images" in caplog.text
    assert load_weights(stopped / "checkpoints/images-000000000032").card["images_seen"] == 32
    # A copy of the file alone is whole, too.
    shutil.copy(newest / "average.safetensors", tmp_path / "shared.safetensors")
    assert _same(load_weights(tmp_path / "shared.safetensors").model, found[0].model)
    # The last checkpoint of a finished run and what it exported.
    recipe = tiny_recipe("training.images=40", "training.quantize_from_images=0")
    train(recipe, _loader(toys), tmp_path / "whole")
    exported = load_weights(tmp_path / "whole")
    assert exported.path.endswith("whole/weights.safetensors")
    last = load_weights(tmp_path / "whole/checkpoints/images-000000000040")
    assert _same(exported.model, last.model)
    assert exported.card == last.card
    assert exported.recipe == last.recipe


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    average = tmp_path / "run/checkpoints/images-000000000040/average.safetensors"
    content = bytearray(average.read_bytes())
    content[-5] ^= 1
    average.write_bytes(content)
    assert load_weights(tmp_path / "run").card["images_seen"] == 32
    assert "taking an older checkpoint" in caplog.text
    with pytest.raises(DataError, match="its content is not what its hash says"):
        load_weights(average)
    (tmp_path / "run/checkpoints/images-000000000032/average.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        load_weights(tmp_path / "run")


def test_commands_take_an_unfinished_run(
    toys: Path,
    tiny_recipe: Callable[..., Stage1Recipe],
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture, tokens = tmp_path / "x.png", tmp_path / "tokens"
    options = ["--weights", str(stopped), "--frames", "2", "--size", "16"]
    assert run(["render", "toyscene:sphere", *options, "-o", str(picture)]) == 0
    assert "40 of 64 images" in capsys.readouterr().err
    checkpoint = str(stopped / "checkpoints/images-000000000040/weights.safetensors")
    arguments = ["evaluate", "geometry", "--weights", checkpoint, "--count", "1", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["sha256"] == load_weights(stopped).sha256
    assert run(["tokenize", "--weights", str(stopped), "--data", str(toys), "--out", str(tokens)]) == 0
    assert TokenStore(tokens).stage1_sha256 == load_weights(stopped).sha256
    # Fine-tuning from it.
    recipe = tiny_recipe(f"training.init={stopped}")
    with pytest.raises(StoppedError):
        train(recipe, _loader(toys), tmp_path / "tuned", stop_after_images=8)
    card = load_weights(tmp_path / "tuned").card
    assert card["init_sha256"] == load_weights(stopped).sha256


def test_an_unfinished_prior_is_sampled_from_and_fine_tuned(
    toys: Path, tiny_prior_recipe: Callable[..., Stage2Recipe], stopped: Path, tmp_path: Path
) -> None:
    tokens, prior = tmp_path / "tokens", tmp_path / "prior"
    assert run(["tokenize", "--weights", str(stopped), "--data", str(toys), "--out", str(tokens), "--quiet"]) == 0
    store = TokenStore(tokens)
    recipe = tiny_prior_recipe()
    with pytest.raises(StoppedError):
        train_prior(recipe, store, prior, stop_after_images=40)
    loaded = load_prior(prior)
    assert loaded.card["images_seen"] == 40
    assert loaded.tokens.class_names == tuple(store.class_names)
    newest = prior / "checkpoints/images-000000000040"
    assert {load_prior(path).sha256 for path in (newest, *newest.glob("*.safetensors"))} == {loaded.sha256}
    options = ["--weights", str(stopped), "--prior", str(prior), "-n", "1", "--class", store.class_names[0], "--quiet"]
    assert run(["sample", *options, "-o", str(tmp_path / "samples")]) == 0
    tuned = tiny_prior_recipe(f"training.init={newest / 'weights.safetensors'}")
    with pytest.raises(StoppedError):
        train_prior(tuned, store, tmp_path / "tuned", stop_after_images=8)
    assert load_prior(tmp_path / "tuned").card["init_sha256"] == loaded.sha256
    train_prior(recipe, store, prior)
    last = load_prior(prior / "checkpoints/images-000000000064")
    assert _same(load_prior(prior).model, last.model)
    # Weights of the other stage are told.
    with pytest.raises(DataError, match="not a Stage 1 weights file"):
        load_weights(prior)
    with pytest.raises(DataError, match="not a prior's weights file"):
        load_prior(stopped)


def test_a_recipe_of_a_checkpoint_is_that_of_its_run(stopped: Path) -> None:
    assert dump_recipe(load_weights(stopped).recipe) == (stopped / "recipe.toml").read_text()
