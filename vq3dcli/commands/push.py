"""`vq3d push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands.output import Output

WEIGHTS = "Stage 1: a weights file, a run's folder, or a checkpoint; or `embedded`."


def command(
    said: Output,
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help=WEIGHTS)],
    address: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="Where to; @BRANCH may follow.")],
    prior: Annotated[Path | None, typer.Option("--prior", help="A prior over its codes, in the same forms.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = "",
) -> None:
    """Publish weights on the Hugging Face Hub, with a card that says what they are.

    They are loaded first: what is damaged is not published. HF_TOKEN has the token. vq3d takes them from there by
    --weights hf://OWNER/NAME@REVISION, and so does vq3d.load.

    Example:
      vq3d push run/ hf://me/my-scenes --prior prior/
      vq3d render photo.jpg --weights hf://me/my-scenes
    """
    from vq3dcli.pipelines.push import push
    from vq3dcli.weights_file import load_prior, load_weights

    loaded = load_weights(weights)
    loaded_prior = None if prior is None else load_prior(prior)
    url = push(loaded, loaded_prior, address, private=private, message=message)
    said.finish(count=1, weights=loaded, metrics={"url": url}, table=[[url]])
