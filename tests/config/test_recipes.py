"""Recipes as files: found, listed, copied without loss, checked together, compared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from vq3dcli.config.load import (
    copy_recipe,
    diff_recipes,
    dump_recipe,
    list_recipes,
    load_either,
    load_recipe,
    recipe_names,
    recipe_text,
    recipes_folder,
    validate_recipes,
)
from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.errors import InputMissingError, OutputError, RecipeError

PRIORS = [name for name in recipe_names() if name.endswith("-prior")]
DEPTH = [name for name in recipe_names() if name.startswith("depth-")]
NAMES = [name for name in recipe_names() if name not in PRIORS + DEPTH]
SOURCES = {"paper", "vit-vqgan", "3dgp", "eg3d", "ada", "measured", "study", "chosen"}
# What docs/comparison.md says is known of VQ3D; no other value of a recipe may name the paper.
KNOWN = {"image_size", "depth_kind", "main"}
# What a run is called, where it writes and how it computes needs no source.
OBVIOUS = {
    "kind",
    "precision",
    "seed",
    "flip",
    "crop",
    "log_every_images",
    "sheet_every_images",
    "checkpoint_every_images",
    "keep_checkpoints",
    "accumulate",
    "compile",
    "checkpoint_activations",
    "shard",
    "init",
    "tracker",
}


def sources(comment: str) -> set[str]:
    return set(re.findall(r"\[([a-z0-9-]+)\]", comment))


def test_all_are_there() -> None:
    assert set(NAMES) >= {"imagenet256", "compcars256", "demo64", "demo128", "toy-cpu"}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_complete_and_says_where_its_values_come_from(name: str) -> None:
    text = (recipes_folder() / f"{name}.toml").read_text()
    recipe = load_recipe(name, Stage1Recipe)
    assert tomllib.loads(text).keys() == recipe.model_dump().keys()
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith("# ")
    explained = sources("\n".join(line for line in text.splitlines() if line.startswith("#")))
    assert explained == SOURCES
    assert recipe.training.init == ""
    assert recipe.training.tracker == "none"


@pytest.mark.parametrize("name", NAMES)
def test_every_value_names_its_source(name: str) -> None:
    toy = load_recipe("toy-cpu", Stage1Recipe).model_dump()
    section, found = "", 0
    for line in (recipes_folder() / f"{name}.toml").read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        if not (value := re.match(r"(\w+) = ", line)) or value[1] in OBVIOUS:
            continue
        found += 1
        _, _, comment = line.partition("#")
        assert sources(comment) <= SOURCES, line
        assert "paper" not in sources(comment) or value[1] in KNOWN, line
        if "as in toy-cpu" in comment:
            assert tomllib.loads(line)[value[1]] == toy[section][value[1]], line
        else:
            assert sources(comment), line
    assert found == sum(len(keys) for keys in toy.values() if isinstance(keys, dict)) - len(OBVIOUS) + 1  # and `kind`


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_is_complete_and_every_value_names_its_source(name: str) -> None:
    text = (recipes_folder() / f"{name}.toml").read_text()
    recipe = load_recipe(name, Stage2Recipe)
    assert load_either(name) == recipe
    assert tomllib.loads(text).keys() == recipe.model_dump().keys()
    assert max(map(len, text.splitlines())) <= 120
    explained = sources("\n".join(line for line in text.splitlines() if line.startswith("#")))
    assert explained - {"measured"} == {"llamagen", "chosen"}
    for line in text.splitlines():
        if (value := re.match(r"(\w+) = ", line)) and value[1] not in OBVIOUS:
            found = sources(line.partition("#")[2])
            assert found, line
            assert found <= explained, line
    assert recipe.training.init == ""
    assert recipe.training.tracker == "none"
    assert name.removesuffix("-prior") in NAMES


@pytest.mark.parametrize("name", DEPTH)
def test_every_depth_recipe_says_where_its_values_come_from(name: str) -> None:
    text = (recipes_folder() / f"{name}.toml").read_text()
    assert load_either(name) == load_recipe(name, DepthRecipe)
    for line in text.splitlines():
        if (value := re.match(r"(\w+) = ", line)) and value[1] not in OBVIOUS | {"encoder"}:
            assert sources(line.partition("#")[2]) <= {"midas", "measured", "chosen"}, line
            assert sources(line.partition("#")[2]), line
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", ["imagenet256", "compcars256", "demo128"])
def test_discriminators_start_in_the_second_half(name: str) -> None:
    recipe = load_recipe(name, Stage1Recipe)
    assert recipe.adversarial.main > 0
    assert recipe.adversarial.novel > 0
    assert recipe.adversarial.start_images >= recipe.training.images // 2


def test_the_list_says_what_each_is() -> None:
    listed = list_recipes()
    assert list(listed) == recipe_names()
    assert (listed["imagenet256"]["image_size"], listed["imagenet256"]["tokens"]) == (256, 1024)
    assert {name for name, summary in listed.items() if summary["stage"] == 2} == set(PRIORS)
    assert len(PRIORS) == 5
    assert listed["toy-cpu-prior"]["tokens"] is None
    assert listed["toy-cpu"]["about"].startswith("Stage 1 on toy scenes")
    assert all("\n" not in s["about"] and len(s["about"]) < 160 for s in listed.values())


def test_a_copy_keeps_every_byte_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    original = (recipes_folder() / "toy-cpu.toml").read_bytes()
    assert copy_recipe("toy-cpu", tmp_path) == tmp_path / "toy-cpu.toml"
    made = copy_recipe("toy-cpu", tmp_path / "new" / "mine.toml")
    assert made.read_bytes() == original
    made.write_text("precious")
    with pytest.raises(OutputError, match=r"mine\.toml"):
        copy_recipe("toy-cpu", made)
    assert made.read_text() == "precious"
    copy_recipe("toy-cpu", made, force=True)
    assert made.read_bytes() == original


def test_every_problem_of_every_recipe_is_named(tmp_path: Path) -> None:
    assert len(validate_recipes()) == len(recipe_names())
    text = recipe_text("toy-cpu")
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(text.replace("batch_size = 8", "batch_size = 0"))
    two.write_text(text.replace('kind = "stage1"', 'kind = "stage9"') + "\nnonsense = 1\n")
    three = tmp_path / "three.toml"
    three.write_text(recipe_text("toy-cpu-prior").replace("heads = 4", "heads = 5"))
    problems = r"one\.toml.*batch_size.*two\.toml.*nonsense.*three\.toml.*multiple of 4 x heads \(5\)"
    with pytest.raises(RecipeError, match=problems):
        validate_recipes([str(one), "toy-cpu", str(two), str(three)])


def test_a_run_is_compared_by_what_it_was_trained_with(tmp_path: Path) -> None:
    recipe = load_recipe("toy-cpu", Stage1Recipe, ["training.images=64000", "model.patch=4"])
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    images = load_recipe("toy-cpu", Stage1Recipe).training.images
    expected = {"model.patch": (8, 4), "training.images": (images, 64000)}
    assert diff_recipes("toy-cpu", str(tmp_path)) == expected
    with pytest.raises(InputMissingError, match="no run in this folder"):
        recipe_text(str(tmp_path.parent))


def test_recipes_of_another_version_can_be_compared(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text('kind = "stage1"\n[model]\nwidth = 192\nimage_size = 64\n')
    changes = diff_recipes(str(tmp_path / "old.toml"), "toy-cpu")
    assert changes["model.width"] == (192, None)
    assert changes["model.decoder_width"][0] is None
    assert "model.image_size" not in changes
