"""Progress on stderr: a bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from vq3dcli import log

LINE_INTERVAL_SECONDS = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, count: int = 1, status: str = "") -> None:
        """Add `count` finished items; `status` is shown beside them, for example `loss 0.123`."""
        ...

    def line(self, text: str) -> None:
        """Write a line without disturbing the bar."""
        ...


@contextmanager
def shown(description: str, total: int | None, *, unit: str, done: int, quiet: bool) -> Iterator[Progress]:
    """Progress for the work inside the `with` block.

    Args:
        description: What is being done, for example `rendering`.
        total: Number of items, or None if it is not known.
        unit: What the items are, in the plural, for example `images`.
        done: Items that were finished before (a resumed run); they do not count for the speed.
        quiet: Show nothing.
    """
    if quiet:
        yield _Lines(description, total, unit, done, interval=float("inf"))
    elif is_terminal():
        with _bar(description, total, unit, done) as bar:
            yield bar
    else:
        lines = _Lines(description, total, unit, done, interval=LINE_INTERVAL_SECONDS)
        yield lines
        lines.close()


def is_terminal() -> bool:
    """Whether stderr takes cursor movements: not under NO_COLOR or TERM=dumb, not when piped or closed."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", None):
        return False
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # a closed file
        return False


class _Lines:
    """A plain line at most every `interval` seconds."""

    def __init__(self, description: str, total: int | None, unit: str, done: int, interval: float) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._done = self._first = done
        self._interval = interval
        self._start = self._last = time.monotonic()
        self._status = ""

    def advance(self, count: int = 1, status: str = "") -> None:
        self._done += count
        self._status = status
        if time.monotonic() - self._last >= self._interval:
            self._write()

    def line(self, text: str) -> None:
        log.write_line(text)

    def close(self) -> None:
        """Write the closing line, if any line was written before."""
        if self._last > self._start:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        per_second = (self._done - self._first) / max(self._last - self._start, 1e-9)
        log.write_line(progress_text(self._description, self._done, self._total, self._unit, per_second, self._status))


def progress_text(
    description: str, done: int, total: int | None, unit: str, per_second: float, status: str = ""
) -> str:
    """The plain line, for example `rendering: 30/60 frames (50 %), 4.2 frames/s, 0:07 left`."""
    if total is None:
        parts = [f"{done} {unit}"]
    else:
        percent = 100 * done // total if total > 0 else 100
        parts = [f"{done}/{total} {unit} ({percent} %)"]
    parts.append(f"{per_second:.1f} {unit}/s" if per_second >= 0.1 else f"{per_second * 60:.1f} {unit}/min")
    if total is not None and per_second > 0 and done < total:
        parts.append(f"{clock((total - done) / per_second)} left")
    if status:
        parts.append(status)
    return f"{description}: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """`seconds` as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _bar(description: str, total: int | None, unit: str, done: int) -> Iterator[Progress]:
    """A bar by rich, which is imported only here: it costs a tenth of a second."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr, highlight=False, markup=False, emoji=False),
        transient=True,
    )
    with bar:
        yield _Bar(bar, description, total, unit, done)


class _Bar:
    """A rich progress bar with the same text as the plain line."""

    def __init__(self, bar: object, description: str, total: int | None, unit: str, done: int) -> None:
        from rich.progress import Progress as RichProgress

        assert isinstance(bar, RichProgress)
        self._bar = bar
        self._total = total
        self._unit = unit
        self._done = self._first = done
        self._start = time.monotonic()
        self._task = bar.add_task(description, total=total, completed=done, text="")

    def advance(self, count: int = 1, status: str = "") -> None:
        self._done += count
        per_second = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        text = progress_text("", self._done, self._total, self._unit, per_second, status)
        self._bar.update(self._task, completed=self._done, text=text.removeprefix(": "))

    def line(self, text: str) -> None:
        self._bar.console.print(log.one_line(text), soft_wrap=True)
