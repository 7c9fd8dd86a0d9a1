"""One line a message, on stderr.

The library logs through the standard `logging` module (`logging.getLogger(__name__)`) and never prints. A command
line run attaches one `LineHandler`, which writes the lines and hands the warnings to whoever collects them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

_ROOT = logging.getLogger("vq3dcli")


def one_line(text: str) -> str:
    """`text` on one line and safe to print: control characters and undecodable bytes of file names are escaped."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in flat)


def write_line(text: str) -> None:
    """Write one line to stderr; a closed stderr is not an error, since nobody is left to tell."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(f"{one_line(text)}\n")
        stream.flush()
    except (OSError, ValueError):
        return


class LineHandler(logging.Handler):
    """Writes records as lines, below WARNING unless `quiet`, and passes the text of warnings on."""

    def __init__(self, *, quiet: bool, write: Callable[[str], None], on_warning: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self._write = write
        self._on_warning = on_warning

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = one_line(record.getMessage())
        if record.levelno >= logging.WARNING:
            self._on_warning(text)
            self._write(f"warning: {text}")
        else:
            self._write(text)


def attach(handler: LineHandler) -> None:
    """Send what the package logs to `handler`, in place of an earlier one."""
    detach()
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)


def detach() -> None:
    """Remove the `LineHandler` that `attach` added, if any."""
    for handler in [h for h in _ROOT.handlers if isinstance(h, LineHandler)]:
        _ROOT.removeHandler(handler)
