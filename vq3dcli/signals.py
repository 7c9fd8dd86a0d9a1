"""A wish to stop, as a flag: training polls it, saves between two steps, and ends."""

from __future__ import annotations

import signal
from types import FrameType

_requested: list[int] = []


def watch() -> None:
    """Let SIGINT (Ctrl-C), SIGTERM and SIGUSR1 set the flag; the same signal again ends the process at once.

    Call it before torch is imported, in the main thread: nothing else happens inside a handler.
    """
    _requested.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _handle)


def stop_requested() -> bool:
    """Whether a signal asked this process to save and stop."""
    return bool(_requested)


def _handle(number: int, frame: FrameType | None) -> None:
    _requested.append(number)
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
