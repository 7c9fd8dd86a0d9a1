"""Recipes load, every problem is named at once, and what is written loads back."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Literal, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vq3dcli.config import load
from vq3dcli.config.load import load_either
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import InputMissingError, RecipeError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Optimizer(_Section):
    learning_rate: float = Field(gt=0)
    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = None

    @model_validator(mode="after")
    def _sgd_is_slow(self) -> Self:
        if self.kind == "sgd" and self.learning_rate > 1:
            raise ValueError("sgd needs a learning_rate of at most 1")
        return self


class Recipe(_Section):
    name: str
    images: int = Field(ge=1)
    optimizer: Optimizer


GOOD = """
name = "small"
images = 10_000
[optimizer]
learning_rate = 1e-4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(GOOD)
    return path


def test_loads_with_defaults(recipe_file: Path) -> None:
    recipe = load.load_recipe(str(recipe_file), Recipe)
    assert recipe == Recipe(name="small", images=10000, optimizer=Optimizer(learning_rate=1e-4))


@pytest.mark.parametrize(
    ("override", "value"),
    [("name=big", "big"), ('name="a b"', "a b"), ("name=a=b", "a=b"), ("name=1\nx = 2", "1\nx = 2"), ("name=", "")],
)
def test_override_values_are_toml_and_bare_words_strings(recipe_file: Path, override: str, value: str) -> None:
    assert load.load_recipe(str(recipe_file), Recipe, [override]).name == value


def test_overrides_reach_sections_and_the_last_one_wins(recipe_file: Path) -> None:
    overrides = ["optimizer.betas=[0.5, 0.6]", "images=1e3", "optimizer.kind=adamw", "optimizer.kind=sgd"]
    recipe = load.load_recipe(str(recipe_file), Recipe, overrides)
    assert (recipe.images, recipe.optimizer.betas, recipe.optimizer.kind) == (1000, (0.5, 0.6), "sgd")


def test_all_problems_at_once_with_the_file_and_the_nearest_keys(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("learning_rate = 1\nimages = 0\n[optimizer]\nlerning_rate = 1\nkind = 'adam'\n")
    with pytest.raises(RecipeError) as caught:
        load.load_recipe(str(path), Recipe, ["optimizer.klip=2", "nonsense", "images.x=1"])
    text = str(caught.value)
    assert text.count("\n") == 0
    for part in (
        str(path),
        "9 problems",
        "name: missing",
        "images: must be greater than or equal to 1, not 0",
        "learning_rate: unknown key, did you mean optimizer.learning_rate?",
        "optimizer.lerning_rate: unknown key, did you mean optimizer.learning_rate?",
        "optimizer.klip (override): unknown key, did you mean optimizer.clip?",
        "optimizer.kind: must be 'adamw' or 'sgd', not 'adam'",
        "'nonsense' is not of the form section.key=value",
        "images is a value, not a section",
    ):
        assert part in text, text


def test_a_check_across_keys_is_reported_beside_unknown_keys(recipe_file: Path) -> None:
    overrides = ["optimizer.kind=sgd", "optimizer.learning_rate=2", "optimizer.klip=1"]
    with pytest.raises(RecipeError, match=r"2 problems.*klip.*sgd needs a learning_rate of at most 1"):
        load.load_recipe(str(recipe_file), Recipe, overrides)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(recipe_file: Path, value: str) -> None:
    with pytest.raises(RecipeError, match="finite"):
        load.load_recipe(str(recipe_file), Recipe, [f"optimizer.learning_rate={value}"])


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = 'x'\nimages = = 3\n")
    with pytest.raises(RecipeError, match=r"broken\.toml.*line 2"):
        load.load_recipe(str(path), Recipe)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000, b"a=1\na=2"])
def test_hostile_text_is_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        load.load_recipe(str(path), Recipe)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    for path in (tmp_path / "none.toml", folder):
        with pytest.raises(InputMissingError, match=path.name):
            load.load_recipe(str(path), Recipe)


def test_a_wrong_name_gets_the_nearest_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "toy-cpu.toml").write_text(GOOD)
    monkeypatch.setattr(load, "recipes_folder", lambda: tmp_path)
    assert load.recipe_names() == ["toy-cpu"]
    assert load.load_recipe("toy-cpu", Recipe).name == "small"
    with pytest.raises(InputMissingError, match="try: toy-cpu"):
        load.load_recipe("toy-cp", Recipe)


@given(
    st.builds(
        Recipe,
        name=st.text(),
        images=st.integers(1, 2**63 - 1),
        optimizer=st.builds(
            Optimizer,
            learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
            betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
            clip=st.none() | st.floats(0, 1e300),
        ),
    )
)
def test_what_is_dumped_loads_back(recipe: Recipe) -> None:
    assert Recipe.model_validate(tomllib.loads(load.dump_recipe(recipe))) == recipe


@given(st.text())
def test_any_override_value_parses(text: str) -> None:
    load.parse_value(text)


@given(text=st.text(), overrides=st.lists(st.text(), max_size=4))
def test_any_text_is_refused_with_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(RecipeError) as caught:
        load.load_recipe(str(path), Recipe, overrides)
    assert "\n" not in str(caught.value)


def test_the_recipes_of_the_package_validate_and_round_trip() -> None:
    assert "toy-cpu" in load.recipe_names()
    for name in load.recipe_names():
        recipe = load_either(name)
        assert type(recipe).model_validate(tomllib.loads(load.dump_recipe(recipe))) == recipe


_KEYS = [".".join(keys) for keys in load._known_keys(Stage1Recipe)]
_VALUES = (
    st.integers() | st.floats() | st.booleans() | st.text(max_size=6) | st.sampled_from(["[]", "{}", "1979-05-27"])
)


@given(st.lists(st.tuples(st.sampled_from(_KEYS) | st.text(max_size=6), _VALUES), max_size=3))
def test_a_recipe_with_anything_changed_loads_or_is_refused(changes: list[tuple[str, object]]) -> None:
    try:
        load.load_recipe("toy-cpu", Stage1Recipe, [f"{key}={value}" for key, value in changes])
    except RecipeError as error:
        assert error.exit_code == 78  # noqa: PT017 # either outcome is fine, any other exception is not


def test_a_recipe_of_the_other_stage_is_one_problem() -> None:
    with pytest.raises(RecipeError, match="a recipe of stage2, not of stage1") as caught:
        load.load_recipe("toy-cpu-prior", Stage1Recipe)
    assert "train-stage2" in caught.value.remedy


def test_initials_are_understood() -> None:
    with pytest.raises(RecipeError, match=r"training\.lr \(override\): .* mean training\.learning_rate\?"):
        load.load_recipe("toy-cpu", Stage1Recipe, ["training.lr=1e-4"])
    with pytest.raises(RecipeError, match=r"lr \(override\): unknown key, did you mean [a-z.]*learning_rate\?"):
        load.load_recipe("toy-cpu", Stage1Recipe, ["lr=1e-4"])


def test_a_recipe_may_name_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load.load_recipe("toy-cpu", Stage1Recipe, ["training.init='~/run'"]).training.init == "/home/someone/run"


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(InputMissingError, match="this is no file"):
        load.load_recipe(str(tmp_path / "pipe.toml"), Recipe)
