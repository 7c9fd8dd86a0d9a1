"""`vq3d inspect`: what a file or folder is, what is in it, and whether it is whole."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vq3dcli.commands.output import Output
from vq3dcli.errors import DataError, UsageError

Row = tuple[str, object]

_WIDEST = 72
# What is owed to others, and to the reader, is never cut.
_WHOLE = ("credits", "licence", "limits")
# What only programs ask for.
_LEFT_OUT = ("format_version", "init_sha256", "init_ancestors", "codes_of", "stage")
# What is said of one file, and not of each of several.
_OF_ONE = ("bytes", "stage1_sha256", "command", "data", "training", "images_seen", "measured_by")
INPUT = "Shards, disparity labels, tokens, a run's folder, a weights file, or `embedded`: the weights that vq3d has."


def command(
    output: Output,
    source: Annotated[str, typer.Argument(metavar="INPUT", help=INPUT)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte; name every file that is damaged, cut or missing.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of samples of the shards to this PNG.")
    ] = None,
) -> None:
    """Say what shards, tokens or weights hold, and whether they are whole.

    Of weights it prints the model card, in short; --json has all of it. Damage that --verify finds is code 65.

    Example:
      vq3d inspect shards/ --sheet samples.png
      vq3d inspect shards/ --verify
      vq3d inspect shards/disparity/exact
      vq3d inspect embedded
    """
    from vq3dcli.pipelines.inspect import check_sheet, inspect, write_sheet
    from vq3dcli.remote.cache import address, ensure_all

    if address(Path(source)) is not None:
        ensure_all(Path(source))
    if sheet is not None:
        check_sheet(sheet, "--sheet")
        output.replacing([sheet], "--sheet")
    with output.progress("reading", unit="bytes") as progress:
        result = inspect(source, verify=verify, progress=progress)
    for note in result.notes:
        output.note(note)
    for problem in result.problems:
        output.warn(problem)
    outputs = []
    if sheet is not None and not result.problems:
        if result.kind != "shards":
            raise UsageError(f"no sheet of {result.kind}", remedy="--sheet with a folder of shards")
        write_sheet(Path(source), sheet)
        outputs.append(sheet)
    count = result.facts.get("samples", result.facts.get("images"))
    facts = {"is": result.kind, **result.facts}
    output.finish(count=count, metrics=facts, table=[*_rows(facts)], outputs=outputs)
    if result.problems:
        output.fail(DataError(f"{len(result.problems)} things are wrong ({source})", remedy="the warnings say which"))


def _rows(facts: Mapping[str, Any], prefix: str = "", told: dict[str, str] | None = None) -> Iterator[Row]:
    """Facts as lines of a screen: what is long is cut, what is many counted, what was `told` not repeated."""
    from vq3dcli.config.load import flat

    told = {} if told is None else told
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if key in _LEFT_OUT or (prefix and key in _OF_ONE) or value in (None, [], {}):
            continue
        if key in ("figures", "training"):
            yield name, f"{len(flat(value))} figures, shown by --json"
        elif isinstance(value, Mapping) and key in ("model", "sources", "checkpoints", "parts"):
            yield name, _cut(", ".join(f"{inner} {each}" for inner, each in flat(value).items()))
        elif isinstance(value, Mapping):
            yield from _rows(value, prefix if key == "card" else f"{name}.", told)
        elif key in _WHOLE:
            first = told.setdefault(str(value), name) if len(str(value)) > _WIDEST else name
            lines = textwrap.wrap(str(value) if first == name else f"as {first}", _WIDEST, break_on_hyphens=False)
            yield from zip([name, *[""] * (len(lines) - 1)], lines, strict=True)
        else:
            text = f"{len(value)}: {', '.join(map(str, value))}" if isinstance(value, list | tuple) else value
            yield name, _cut(text) if isinstance(text, str) else text


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
