"""Weights of older formats load: their recipe is read in today's keys, their density with today's gain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vq3dcli.checkpoint import FORMAT_VERSION, load_weights
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.config.upgrade import upgraded_stage1
from vq3dcli.errors import DataError
from vq3dcli.model.field import RAW_GAIN

Make = Callable[..., Stage1Recipe]


def _as_format_2(recipe: Stage1Recipe) -> dict[str, Any]:
    """The recipe as formats 1 and 2 wrote it: one width, no perceptual or adversarial keys."""
    old = recipe.model_dump(mode="json")
    model = old["model"]
    for part in ("encoder", "decoder"):
        model["width"], model["heads"] = model.pop(f"{part}_width"), model.pop(f"{part}_heads")
    del old["adversarial"]
    for key in ("perceptual", "perceptual_network", "perceptual_patch_px"):
        del old["loss"][key]
    for key in ("accumulate", "compile", "checkpoint_activations", "init", "average_last", "tracker"):
        del old["training"][key]
    return old


def _rewrite(weights: Path, path: Path, **header: Any) -> None:
    metadata = {"format": "stage1", "format_version": 2, "card": {}, **header}
    save_file(load_file(weights), path, {"vq3d": json.dumps(metadata)})


def test_format_2_loads_as_the_same_model(tiny_recipe: Make, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    _rewrite(tiny_weights, tmp_path / "old.safetensors", recipe=_as_format_2(recipe))
    old, new = load_weights(tmp_path / "old.safetensors"), load_weights(tiny_weights)
    assert old.recipe.model == recipe.model
    assert not old.recipe.adversarial.on
    assert old.recipe.loss.perceptual == 0
    assert old.model.state_dict().keys() == new.model.state_dict().keys()
    assert all(torch.equal(value, old.model.state_dict()[name]) for name, value in new.model.state_dict().items())


def test_the_density_of_format_1_gets_its_gain(tiny_recipe: Make, tiny_weights: Path, tmp_path: Path) -> None:
    """Before format 2 the field had no gain on its raw density."""
    _rewrite(tiny_weights, tmp_path / "old.safetensors", recipe=_as_format_2(tiny_recipe()), format_version=1)
    new = load_weights(tiny_weights).model.field_mlp.out
    converted = load_weights(tmp_path / "old.safetensors").model.field_mlp.out
    torch.testing.assert_close(converted.weight[0] * RAW_GAIN, new.weight[0])
    assert torch.equal(converted.weight[1:], new.weight[1:])


def test_the_embedded_weights_have_a_recipe_of_today() -> None:
    model = load_weights().recipe.model
    assert model.encoder_width == model.decoder_width


@pytest.mark.parametrize("recipe", [{}, [], "text", None, 3, {"model": 3}, {"model": {"width": 1, "heads": 1}}])
def test_what_is_no_recipe_is_told(tiny_weights: Path, tmp_path: Path, recipe: Any) -> None:
    _rewrite(tiny_weights, tmp_path / "odd.safetensors", recipe=recipe)
    with pytest.raises(DataError, match="without a sound recipe"):
        load_weights(tmp_path / "odd.safetensors")


def test_a_recipe_of_today_is_not_taken_for_an_old_one(tiny_recipe: Make, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe().model_dump(mode="json")
    with pytest.raises(KeyError):
        upgraded_stage1(recipe)
    _rewrite(tiny_weights, tmp_path / "new.safetensors", recipe=recipe, format_version=FORMAT_VERSION)
    assert load_weights(tmp_path / "new.safetensors").recipe == tiny_recipe()
