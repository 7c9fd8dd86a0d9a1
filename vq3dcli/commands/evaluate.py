"""`vq3d evaluate`: what measures a model; each command has a module of its own."""

from __future__ import annotations

import typer

from vq3dcli.commands.evaluate_ablation import ablation
from vq3dcli.commands.evaluate_depth import depth
from vq3dcli.commands.evaluate_generation import generation
from vq3dcli.commands.evaluate_geometry import geometry
from vq3dcli.commands.evaluate_reconstruction import reconstruction

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure a model.

    Example:
      vq3d evaluate reconstruction --data photos/ -o figures
      vq3d evaluate geometry --data toyscenes --count 64
      vq3d evaluate generation -o figures
    """


app.command()(reconstruction)
app.command()(geometry)
app.command()(depth)
app.command()(generation)
app.command()(ablation)
