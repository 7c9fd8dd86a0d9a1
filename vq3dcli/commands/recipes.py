"""`vq3d recipes`: list, show, copy, check and compare recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import Output
from vq3dcli.errors import UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a recipe, a TOML file, or the folder of a run.")
]


@app.callback()
def _group() -> None:
    """List, show, copy, check and compare recipes.

    Example:
      vq3d recipes ls
      vq3d recipes copy toy-cpu mine.toml
      vq3d recipes diff toy-cpu run/
    """


@app.command()
def ls(output: Output) -> None:
    """List the recipes that come with vq3d.

    Example:
      vq3d recipes ls
    """
    from vq3dcli.config.load import list_recipes

    recipes = list_recipes()
    shown = ("stage", "image_size", "tokens", "images", "about")
    output.finish(
        count=len(recipes),
        metrics=recipes,
        table=[
            ("recipe", "stage", "pixels", "tokens", "images", "what it is"),
            *((name, *(facts[key] for key in shown)) for name, facts in recipes.items()),
        ],
    )


@app.command()
def show(output: Output, recipe: RecipeArgument) -> None:
    """Print a recipe with its comments; with --json its values.

    Example:
      vq3d recipes show imagenet256
      vq3d recipes show run/ --json
    """
    from vq3dcli.config.load import find_recipe, read_toml, recipe_text

    if output.json:
        output.finish(count=1, metrics=read_toml(find_recipe(recipe, run=True)))
    else:
        typer.echo(recipe_text(recipe), nl=False)


@app.command()
def copy(
    output: Output,
    recipe: RecipeArgument,
    place: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The new file, or a folder for one of the same name.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    out: options.SameAsOut = None,
) -> None:
    """Copy a recipe to a file to change.

    Example:
      vq3d recipes copy toy-cpu mine.toml
    """
    from vq3dcli.config.load import copy_recipe

    given = [each for each in (place, out) if each is not None]
    if len(given) != 1:
        raise UsageError("a copy goes to one place, OUT", remedy=f"vq3d recipes copy {recipe} mine.toml")
    output.finish(count=1, outputs=[copy_recipe(recipe, given[0], force=force)])


@app.command()
def validate(
    output: Output,
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE", help="Names, TOML files or folders of runs; default: all that come along."),
    ] = None,
) -> None:
    """Check recipes and name every problem; ends with code 78 if there is one.

    Example:
      vq3d recipes validate
      vq3d recipes validate mine.toml
    """
    from vq3dcli.config.load import validate_recipes

    paths = validate_recipes(recipes or [])
    output.finish(
        count=len(paths),
        metrics={"valid": [str(path) for path in paths]},
        table=[(str(path), "valid") for path in paths],
    )


@app.command()
def diff(output: Output, before: RecipeArgument, after: RecipeArgument) -> None:
    """Show the keys that differ between two recipes, or between a recipe and what a run was trained with.

    Example:
      vq3d recipes diff toy-cpu demo64
      vq3d recipes diff toy-cpu run/
    """
    from vq3dcli.config.load import diff_recipes

    changes = diff_recipes(before, after)
    # Whole values: a table's own rounding would make 500000.0 and 500050.0 look alike.
    rows = [(key, *(None if v is None else repr(v) for v in both)) for key, both in changes.items()]
    output.finish(
        count=len(changes),
        metrics={key: {"before": before, "after": after} for key, (before, after) in changes.items()},
        table=[("key", before, after), *rows] if rows else [("no difference",)],
    )
