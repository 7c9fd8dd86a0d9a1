"""What commands share: their common options, and how they speak.

Results go to stdout, as lines or, with `--json`, as one object; everything else goes to stderr.
"""

from __future__ import annotations

import json as jsonlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from vq3dcli import __version__, log
from vq3dcli.commands.progress import Progress, is_terminal
from vq3dcli.errors import OutputError, UnavailableError, Vq3dError
from vq3dcli.pipelines.device import pick_device as pick_device

if TYPE_CHECKING:
    from vq3dcli.pipelines.render import Made
    from vq3dcli.weights_file import LoadedWeights

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors; no notes, no questions.")]
DeviceOption = Annotated[DeviceName, typer.Option("--device", help="Where to compute; auto takes CUDA where it works.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything that is random.")]

# Characters of a column of figures; a wider one holds sentences or hashes, which begin at its left.
_WIDEST_FIGURES = 24


class Output:
    """The voice of one command.

    Args:
        command: Name of the command, for example `evaluate geometry`.
        json: Print the result as one JSON object.
        quiet: Leave out notes and progress.
    """

    def __init__(self, command: str, json: JsonOption = False, quiet: QuietOption = False) -> None:
        self.command = command
        self.json = json
        self.quiet = quiet
        self.stdout_is_data = False  # stdout carries a file (`-o -`), so result lines go to stderr
        self.warnings: list[str] = []
        self._progress: Progress | None = None
        log.attach(log.LineHandler(quiet=quiet, write=self._line, on_warning=self.warnings.append))

    def note(self, message: str) -> None:
        """Say something that is good to know; silent under `--quiet`."""
        if not self.quiet:
            self._line(message)

    def replacing(self, paths: Iterable[Path], option: str = "-o") -> None:
        """Before the work starts name the files that are there already, and in a terminal ask whether it may.

        Raises `OutputError`: it may not.
        """
        names = [str(path) for path in paths if path.exists()]
        if not names or self.quiet:
            return
        which = log.one_line(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        if self.json or not (is_terminal() and sys.stdin is not None and sys.stdin.isatty()):
            self.note(f"replaces {which}")
            return
        print(f"replace {which}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise OutputError(
                f"there is {which} already", remedy=f"another name with {option}, or -q to replace it unasked"
            )

    def warn(self, message: str) -> None:
        """Say that something is not as it should be; it is repeated in the JSON object."""
        self.warnings.append(log.one_line(message))
        self._line(f"warning: {message}")

    @contextmanager
    def progress(self, description: str, unit: str = "items") -> Iterator[Progress]:
        """Progress on stderr: work calls what this yields with (done, total, status=""), first as it begins."""
        self._progress = progress = Progress(description, unit, quiet=self.quiet)
        whole = False
        try:
            yield progress
            whole = True
        finally:
            self._progress = None
            progress.end(whole=whole)

    def fail(self, error: Vq3dError) -> NoReturn:
        """End with an error after the result: what was made stays, and the exit code says that something is wrong."""
        self._line(f"error: {error}")
        raise typer.Exit(error.exit_code)

    def show_made(
        self, made: Made, *, show: bool, outputs: Sequence[str | Path] | None = None, **metrics: object
    ) -> None:
        """Print what was made of inputs, and end with an error if some of them were of no use."""
        outputs, metrics = made.outputs if outputs is None else outputs, {**made.metrics, **metrics}
        self.finish(count=made.inputs, weights=made.weights, metrics=metrics, table=[], outputs=outputs, show=show)
        if made.failures:
            first, count = made.failures[0], made.inputs + len(made.failures)
            which = f"{len(made.failures)} of {count} inputs left out, first: {first.message}"
            self.fail(type(first)(which, remedy=first.remedy))

    def finish(
        self,
        *,
        protocol: str | None = None,
        count: int | None = None,
        seed: int | None = None,
        weights: LoadedWeights | None = None,
        metrics: Mapping[str, Any] | None = None,
        outputs: Sequence[str | Path] = (),
        table: Sequence[Sequence[object]] | None = None,
        show: bool = False,
    ) -> None:
        """Print the result; call it once, last.

        Args:
            protocol: Name of the definition that the metrics were measured by.
            count: How many items were processed.
            metrics: Figures by name; nested mappings are allowed, NaN and infinity become null in JSON.
            outputs: Files and folders that were made.
            table: Rows for the human reader, the first one the heading; without it the metrics are listed.
            show: Open the first of the outputs in the program that the system has for it.
        """
        if show and outputs and str(outputs[0]) != "-" and typer.launch(str(outputs[0])):
            self.warn(f"cannot open {outputs[0]}: the system knows no program for it")
        if self.json:
            value = {
                "version": __version__,
                "command": self.command,
                "protocol": protocol,
                "count": count,
                "seed": seed,
                "weights": None if weights is None else {"path": str(weights.path), "sha256": weights.sha256},
                "metrics": metrics or {},
                "outputs": outputs,
                "warnings": self.warnings,
            }
            self._print(jsonlib.dumps(plain(value), allow_nan=False))
            return
        if table is None:
            from vq3dcli.config.load import flat

            table = list(flat(metrics or {}).items())
        for line in table_lines(table):
            self._print(line)
        for output in outputs:
            self._print(log.one_line(str(output)))

    def _line(self, text: str) -> None:
        if self._progress is None:
            log.write_line(text)
        else:
            self._progress.line(text)

    def _print(self, text: str) -> None:
        if self.stdout_is_data:
            log.write_line(text)
        else:
            print(text, flush=True)


def error_json(command: str, message: str, remedy: str | None, exit_code: int) -> str:
    """The JSON object of a failed command, on one line."""
    error = {"message": log.one_line(message), "remedy": remedy, "exit_code": exit_code}
    return jsonlib.dumps({"version": __version__, "command": command, "error": error})


def plain(value: Any) -> Any:
    """`value` as what JSON knows: paths become text, arrays lists, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars, without importing torch or numpy
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table_lines(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as text in columns: the first column left, figures right, unless sentences stand among them."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    widths = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(columns)]
    numeric = [any(_is_number(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    right = [i > 0 and numeric[i] and widths[i] <= _WIDEST_FIGURES for i in range(columns)]
    lines = []
    for row in cells:
        padded = [cell.rjust(widths[i]) if right[i] else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return log.one_line(str(value))


def stdout_bytes() -> Any:
    """The binary stream of stdout, for `-o -`. Raises `UnavailableError` if stdout is closed."""
    if sys.stdout is None:
        raise UnavailableError("stdout is closed", remedy="a file name with -o")
    return sys.stdout.buffer
