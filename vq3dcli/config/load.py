"""Recipes: TOML text and overrides to a validated, frozen model, and back; and as files: listed, copied, compared."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

import vq3dcli
from vq3dcli.config.schema import DepthRecipe, Recipe, Stage1Recipe, Stage2Recipe
from vq3dcli.errors import InputMissingError, OutputError, RecipeError
from vq3dcli.files import make_folder, read_bytes, write_bytes
from vq3dcli.sealed import parse_toml, plain_reason

T = TypeVar("T", bound=BaseModel)

_SCHEMAS: dict[object, type[Recipe]] = {"stage1": Stage1Recipe, "stage2": Stage2Recipe, "depth": DepthRecipe}
# Under this name a run's folder keeps what it was trained with, overrides included.
_RUN_RECIPE = "recipe.toml"


def load_recipe(path_or_name: str, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a recipe, apply overrides, and validate it.

    It is a TOML file, or the name of a recipe that comes with the package, as `toy-cpu`. Overrides are
    `section.key=value`; values are TOML, bare words are strings, and later ones win.

    Raises `InputMissingError`: there is no such file or name; `RecipeError`: the text is no TOML, or does not fit the
    schema; names every problem.
    """
    path = find_recipe(path_or_name)
    values = read_toml(path)
    problems = []
    overridden: set[tuple[str, ...]] = set()
    for override in overrides:
        try:
            overridden.add(_apply_override(values, override))
        except ValueError as error:
            problems.append(str(error))
    kind, expected = values.get("kind"), kind_of(schema)
    if expected is not None and kind != expected and kind in tuple(_SCHEMAS):  # any other is a mistake like others
        raise RecipeError(f"a recipe of {kind}, not of {expected} ({path})", remedy=f"vq3d recipes ls, or train-{kind}")
    recipe, more = _validate(values, schema, overridden)
    problems += more
    if recipe is None or problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise RecipeError(f"recipe has {count} ({path}): {'; '.join(problems)}", remedy="mend them and run again")
    return recipe


def load_either(path_or_name: str) -> Recipe:
    """A recipe of any kind, validated by the schema that its `kind` names; without one it is of Stage 1.

    Raises `InputMissingError`, `RecipeError` as `load_recipe`.
    """
    kind = read_toml(find_recipe(path_or_name)).get("kind")
    schema = _SCHEMAS[kind] if isinstance(kind, str) and kind in _SCHEMAS else Stage1Recipe
    return load_recipe(path_or_name, schema)


def kind_of(schema: type[BaseModel]) -> str | None:
    """What a recipe of this schema must have as its `kind`; None where it has none."""
    return next((str(kind) for kind, each in _SCHEMAS.items() if each is schema), None)


def dump_recipe(recipe: BaseModel) -> str:
    """TOML text that loads back to the same recipe; TOML has no null, so keys that are None are left out."""
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    assert type(recipe).model_validate(tomllib.loads(text)) == recipe, "a default other than None hides a None"
    return text


def recipes_folder() -> Path:
    """The folder of the recipes that come with the package."""
    return Path(vq3dcli.__file__).resolve().parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def find_recipe(path_or_name: str, *, run: bool = False) -> Path:
    """The file of a recipe: a TOML file, one of the package by its name, or the saved one of a `run`'s folder.

    Raises `InputMissingError`, with the nearest name.
    """
    path = Path(path_or_name)
    names = recipe_names()
    if run and path_or_name not in names and path.is_dir():
        if not (path / _RUN_RECIPE).is_file():
            raise InputMissingError(f"no run in this folder ({path}): no {_RUN_RECIPE}", remedy="the folder of a run")
        return path / _RUN_RECIPE
    if path.suffix == ".toml" or len(path.parts) != 1:
        if path.is_file():
            return path
        if path.exists() and not path.is_dir():
            raise InputMissingError(f"a recipe is read more than once, and this is no file ({path})", remedy="a file")
        raise InputMissingError(f"no such recipe file ({path})", remedy="check the path")
    if path_or_name in names:
        return recipes_folder() / f"{path_or_name}.toml"
    if path.is_file():
        return path
    near = difflib.get_close_matches(path_or_name, names, n=1)
    remedy = near[0] if near else ", ".join([*names, "the path of a .toml file"])
    raise InputMissingError(f"no recipe of that name ({path_or_name})", remedy=remedy)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `InputMissingError` or `RecipeError` with the line."""
    try:
        return parse_toml(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputMissingError(f"cannot read recipe ({path}): {error.strerror}", remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe is not UTF-8 text ({path})", remedy="save it as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError is a ValueError; so is an integer of 5000 digits
        raise RecipeError(f"recipe is not TOML ({path}): {error}", remedy="mend that line") from error


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one `a.b=value` in nested tables and return its keys. Raises `ValueError`."""
    name, equals, text = override.partition("=")
    keys = tuple(key.strip() for key in name.split("."))
    if not equals or not all(keys):
        raise ValueError(f"override {override!r} is not of the form section.key=value")
    table = values
    for depth, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {override!r}: {'.'.join(keys[:depth])} is a value, not a section")
    table[keys[-1]] = parse_value(text.strip())
    return keys


def parse_value(text: str) -> Any:
    """`text` as a TOML value if it is one, else as a string."""
    try:
        parsed = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _validate(values: dict[str, Any], schema: type[T], overridden: set[tuple[str, ...]]) -> tuple[T | None, list[str]]:
    """Validate twice: pydantic runs no checks across keys while there are unknown ones, so those go first."""
    try:
        return schema.model_validate(values), []
    except ValidationError as error:
        unknown = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
        problems = list(_problems(error, schema, overridden))
    for keys in unknown:
        table: Any = values
        for key in keys[:-1]:
            table = table[key]
        del table[keys[-1]]
    try:
        schema.model_validate(values)
    except ValidationError as error:
        problems += [problem for problem in _problems(error, schema, overridden) if problem not in problems]
    return None, problems


def _problems(error: ValidationError, schema: type[BaseModel], overridden: set[tuple[str, ...]]) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        keys = tuple(map(str, detail["loc"]))
        name = ".".join(keys) or "recipe"
        if keys in overridden:
            name += " (override)"
        if detail["type"] == "extra_forbidden":
            near = _nearest_key(keys, schema)
            yield f"{name}: unknown key" + (f", did you mean {near}?" if near else "")
            continue
        shown = repr(detail["input"])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        of_section = isinstance(detail["input"], Mapping)
        yield f"{name}: {plain_reason(detail)}" + ("" if of_section else f", not {shown}")


def _nearest_key(keys: tuple[str, ...], schema: type[BaseModel]) -> str | None:
    """The known key that `keys` was probably meant to be: in its own section first, then anywhere."""
    known = list(_known_keys(schema))
    siblings = [key for key in known if key[:-1] == keys[:-1]]
    by_name = {key[-1]: key for key in reversed([*siblings, *known])}
    if keys[-1] in by_name:
        return ".".join(by_name[keys[-1]])
    for candidates in ({key[-1]: key for key in siblings}, by_name):
        # `lr` is the initials of learning_rate.
        short = [name for name in candidates if keys[-1] == "".join(word[0] for word in name.split("_"))]
        near = difflib.get_close_matches(keys[-1], candidates, n=1) or short
        if near:
            return ".".join(candidates[near[0]])
    return None


def _known_keys(schema: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, (*prefix, name))


def list_recipes() -> dict[str, dict[str, Any]]:
    """The recipes that come with the package by name, sorted: what each is.

    `about`, the first sentence of its file; `stage`, 1 for an autoencoder, 2 for a prior over its codes, "depth" for a
    depth network; `image_size` in pixels and `tokens` an image, None where there are none; `images` of a whole run.
    """
    listed = {}
    for name in recipe_names():
        recipe, side, tokens = load_either(name), None, None
        if isinstance(recipe, Stage1Recipe):
            side, tokens = recipe.model.image_size, (recipe.model.image_size // recipe.model.patch) ** 2
        elif isinstance(recipe, DepthRecipe):
            side = recipe.model.input_px
        listed[name] = {
            "about": _first_sentence(find_recipe(name)),
            "stage": {"stage1": 1, "stage2": 2}.get(recipe.kind, recipe.kind),
            "image_size": side,
            "tokens": tokens,
            "images": recipe.training.images,
        }
    return listed


def recipe_text(path_or_name: str) -> str:
    """A recipe as it stands, comments included. Raises `InputMissingError` or `RecipeError`."""
    path = find_recipe(path_or_name, run=True)
    read_toml(path)
    return read_bytes(path).decode("utf-8-sig")


def copy_recipe(path_or_name: str, destination: Path, *, force: bool = False) -> Path:
    """Write a recipe, comments included, to a new file, or one of the same name in a folder; returns the file.

    Raises `InputMissingError`, `RecipeError`: there is no such recipe, or it is no TOML; `OutputError`: there is a file
    of that name already, unless `force` replaces it, or none can be written.
    """
    text = recipe_text(path_or_name)
    if destination.is_dir():
        destination = destination / find_recipe(path_or_name, run=True).name
    if destination.exists() and not force:
        raise OutputError(f"there is a file of that name ({destination})", remedy="another name, or --force")
    make_folder(destination.parent)
    write_bytes(destination, text.encode())
    return destination


def validate_recipes(names: Sequence[str] = ()) -> list[Path]:
    """Check recipes, all those of the package by default; returns their files.

    Raises `InputMissingError`: there is no such recipe; `RecipeError`: names every problem of every one.
    """
    paths = [find_recipe(name, run=True) for name in names or recipe_names()]
    problems = []
    for path in paths:
        try:
            load_either(str(path))
        except RecipeError as error:
            problems.append(error.message)
    if problems:
        raise RecipeError("; ".join(problems), remedy="mend them and check again")
    return paths


def diff_recipes(before: str, after: str) -> dict[str, tuple[Any, Any]]:
    """Keys that differ between two recipes with both values, which need not be valid, in the order of the files.

    None where one side does not have the key (TOML knows no null). Raises `InputMissingError`, `RecipeError` if one is
    not there, or is no TOML.
    """
    old, new = (flat(read_toml(find_recipe(name, run=True))) for name in (before, after))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by `section.key`."""
    joined: dict[str, Any] = {}
    for name, value in tables.items():
        joined |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return joined


def _first_sentence(path: Path) -> str:
    """Of the comment that a file begins with, without its full stop."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".")
