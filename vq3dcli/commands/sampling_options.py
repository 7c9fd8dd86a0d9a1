"""What commands share that draw samples: the two weights files and the sharpening."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Stage1Option = Annotated[
    Path | None, typer.Option("--weights", help="Stage 1 weights, a run's folder, a checkpoint. Default: embedded.")
]
PriorOption = Annotated[
    Path | None,
    typer.Option("--prior", help="A prior's weights, a run's folder, a checkpoint. Default: embedded."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        min=0,
        max=100,
        help="Above 1 more varied, below 1 safer, 0 the likeliest code. Default: the prior's.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", min=0, max=65536, help="Draw from so many codes; 0 for all. Default: the prior's."),
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, help="Draw from codes of this probability together. Default: the prior's."),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance", min=0, max=100, help="Above 1 more typical of the class; 1 is off. Default: the prior's."
    ),
]


def asked_sharpening(
    temperature: float | None, top_k: int | None, top_p: float | None, guidance: float | None
) -> dict[str, float]:
    """What was asked for, by the names of `model.sampling.Sharpening`; the rest is up to the prior."""
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    return {name: value for name, value in asked.items() if value is not None}
