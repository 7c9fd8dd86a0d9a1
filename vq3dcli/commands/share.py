"""What commands share whose work is split over processes and machines: `--part`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vq3dcli.commands.output import Output

if TYPE_CHECKING:
    from vq3dcli.data_tools.part import Part

PartOption = Annotated[
    str, typer.Option("--part", help="Share of the shards, 1/8 to 8/8; auto asks torchrun's or SLURM's variables.")
]


def asked_part(text: str, said: Output) -> Part:
    """The share that `--part` names. Raises `UsageError`."""
    from vq3dcli.data_tools.part import WHOLE, parse_part, part_from_environment

    part = part_from_environment(os.environ) if text == "auto" else parse_part(text)
    if part != WHOLE:
        said.note(f"part {part}: every shard whose number leaves {part.index} when divided by {part.count}")
    return part


def unfinished(part: Part) -> str:
    """What a part says that was not the last."""
    return f"part {part} is done; the part that ends last writes the manifest, or this command run once more"
