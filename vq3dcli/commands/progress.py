"""Progress on stderr: a bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from vq3dcli import log

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """What long work reports to.

    Args:
        description: What is being done, for example `rendering`.
        unit: What the items are, in the plural, for example `images`.
    """

    def __init__(self, description: str, unit: str, *, quiet: bool) -> None:
        self._description, self._unit, self._quiet = description, unit, quiet
        self._total: int | None = None
        self.done = self._first = 0
        self._start: float | None = None
        self._written = 0.0
        self._told = 0
        self._status = ""
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int | None, status: str = "") -> None:
        """So many of so many items (None: nobody knows) are finished; `status`, as `loss 0.123`, is shown beside them.

        What was finished at the first call does not count for the speed (a resumed run).
        """
        self.done, self._status = done, status
        if self._start is None:
            self._first, self._total = done, total
            self._start = self._written = time.monotonic()
            if not self._quiet and is_terminal():
                self._bar = _rich_bar()
                self._bar.add_task(self._description, total=total, completed=done, text="")
                self._bar.start()
        elif self._bar is not None:
            text = self._text().removeprefix(f"{self._description}: ")
            self._bar.update(self._bar.task_ids[0], completed=self.done, text=text)
        elif not self._quiet and time.monotonic() - self._written >= LINE_INTERVAL_SECONDS:
            self._write()

    @property
    def per_second(self) -> float:
        """Items that were finished in a second, those before the beginning aside."""
        seconds = 0.0 if self._start is None else time.monotonic() - self._start
        return (self.done - self._first) / max(seconds, 1e-9)

    def line(self, text: str) -> None:
        """Write a line without disturbing the bar."""
        if self._bar is None:
            log.write_line(text)
        else:
            self._bar.console.print(log.one_line(text), soft_wrap=True)

    def end(self, *, whole: bool) -> None:
        """Take the bar away, or write a closing line after others if the work is whole."""
        if self._bar is not None:
            self._bar.stop()
        elif whole and self._start is not None and self._written > self._start and self._told < self.done:
            self._write()

    def _write(self) -> None:
        self._written, self._told = time.monotonic(), self.done
        log.write_line(self._text())

    def _text(self) -> str:
        """For example `rendering: 30/60 frames (50 %), 4.2 frames/s, 0:07 left`."""
        unit, total, done, per_second = self._unit, self._total, self.done, self.per_second
        if total is None:
            parts = [f"{done} {unit}"]
        else:
            parts = [f"{done}/{total} {unit} ({100 * done // total if total > 0 else 100} %)"]
        parts.append(f"{per_second:.1f} {unit}/s" if per_second >= 0.1 else f"{per_second * 60:.1f} {unit}/min")
        if total is not None and per_second > 0 and done < total:
            minutes, seconds = divmod(round((total - done) / per_second), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
        if self._status:
            parts.append(self._status)
        return f"{self._description}: {', '.join(parts)}"


def is_terminal() -> bool:
    """Whether stderr takes cursor movements: not under NO_COLOR or TERM=dumb, not when piped or closed."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", None):
        return False
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # a closed file
        return False


def _rich_bar() -> Bar:
    """A bar by rich, which is imported only here: it costs a tenth of a second."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr, highlight=False, markup=False, emoji=False),
        transient=True,
    )
