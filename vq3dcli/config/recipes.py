"""What can be done with recipes as files: list, show, copy, check, compare. Nothing here builds a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vq3dcli.config.load import find_recipe, load_recipe, read_toml, recipe_names, recipes_folder
from vq3dcli.config.schema import DepthRecipe, Recipe, Stage1Recipe, Stage2Recipe
from vq3dcli.errors import InputMissingError, OutputError, RecipeError
from vq3dcli.files import make_folder, read_error, write_bytes

# Under this name a run's folder keeps what it was trained with, overrides included.
_RUN_RECIPE = "recipe.toml"


@dataclass(frozen=True)
class RecipeSummary:
    """A recipe that comes with the package.

    Attributes:
        name: What commands take.
        about: The first sentence of its file.
        stage: 1 for an autoencoder, 2 for a prior over its codes, "depth" for a depth network.
        image_size: Side of the images in pixels; None for a prior, which takes what its tokens were made from.
        tokens: Codes an image; None where there are none.
        images: Images seen in a whole run.
    """

    name: str
    about: str
    stage: int | str
    image_size: int | None
    tokens: int | None
    images: int


@dataclass(frozen=True)
class Change:
    """A key with another value; None where one side does not have it (TOML knows no null)."""

    key: str
    before: Any
    after: Any


def list_recipes() -> list[RecipeSummary]:
    """The recipes that come with the package, sorted by name."""
    summaries = []
    for name in recipe_names():
        path = recipes_folder() / f"{name}.toml"
        recipe, about = load_either(str(path)), _first_sentence(path)
        if isinstance(recipe, Stage2Recipe):
            summaries.append(RecipeSummary(name, about, 2, None, None, recipe.training.images))
            continue
        if isinstance(recipe, DepthRecipe):
            summaries.append(RecipeSummary(name, about, "depth", recipe.model.input_px, None, recipe.training.images))
            continue
        model = recipe.model
        tokens = (model.image_size // model.patch) ** 2
        summaries.append(RecipeSummary(name, about, 1, model.image_size, tokens, recipe.training.images))
    return summaries


def load_either(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of any kind, validated by the schema that its `kind` names; without one it is of Stage 1.

    Raises:
        InputMissingError, RecipeError: As `load_recipe`.
    """
    kind = read_toml(find_recipe(path_or_name)).get("kind")
    if kind == "stage2":
        return load_recipe(path_or_name, Stage2Recipe, overrides)
    if kind == "depth":
        return load_recipe(path_or_name, DepthRecipe, overrides)
    return load_recipe(path_or_name, Stage1Recipe, overrides)


def locate_recipe(path_or_name: str) -> Path:
    """The file of a recipe: of the package by its name, a TOML file, or the saved one of a run's folder.

    Raises:
        InputMissingError: There is none.
    """
    path = Path(path_or_name)
    if path_or_name in recipe_names() or not path.is_dir():
        return find_recipe(path_or_name)
    if not (path / _RUN_RECIPE).is_file():
        raise InputMissingError(f"no run in this folder ({path}): no {_RUN_RECIPE}", remedy="the folder of a run")
    return path / _RUN_RECIPE


def recipe_text(path_or_name: str) -> str:
    """A recipe as it stands, comments included. Raises `InputMissingError` or `RecipeError`."""
    path = locate_recipe(path_or_name)
    read_toml(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error


def copy_recipe(path_or_name: str, destination: Path, *, force: bool = False) -> Path:
    """Write a recipe to a file of one's own, comments included.

    Args:
        path_or_name: Which.
        destination: The new file, or a folder for a file of the same name.
        force: Replace a file that is there.

    Returns:
        The new file.

    Raises:
        InputMissingError, RecipeError: There is no such recipe, or it is no TOML.
        OutputError: There is a file of that name already, or none can be written.
    """
    source, text = locate_recipe(path_or_name), recipe_text(path_or_name)
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists() and not force:
        raise OutputError(f"there is a file of that name ({destination})", remedy="another name, or --force")
    make_folder(destination.parent)
    write_bytes(destination, text.encode())
    return destination


def validate_recipes(names: Sequence[str] = ()) -> list[Path]:
    """Check recipes, all those of the package by default.

    Returns:
        Their files.

    Raises:
        InputMissingError: There is no such recipe.
        RecipeError: Names every problem of every one.
    """
    paths = [locate_recipe(name) for name in names or recipe_names()]
    problems = []
    for path in paths:
        try:
            load_either(str(path))
        except RecipeError as error:
            problems.append(error.message)
    if problems:
        raise RecipeError("; ".join(problems), remedy="mend them and check again")
    return paths


def diff_recipes(before: str, after: str) -> list[Change]:
    """Keys that differ between two recipes, in the order of the files; their values need not be valid.

    Raises:
        InputMissingError, RecipeError: One is not there, or is no TOML.
    """
    old, new = (_flat(read_toml(locate_recipe(name))) for name in (before, after))
    keys = [*old, *(key for key in new if key not in old)]
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _first_sentence(path: Path) -> str:
    """Of the comment that a file begins with, without its full stop."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".")
