"""What signals do: they end a command, whose temporary files go; training, once it steps, saves first."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = "interrupted"
BEFORE_FIRST_STEP, AGAIN = "stopped before the first step", "the same command again"

LAUNCHER = "VQ3D_LAUNCHER"  # the number of the process that started this rank

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h

_raised: list[int] = []
_requested: list[int] = []
_polling: list[int] = []


def interrupt() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt`; those that the caller ignores stay ignored.

    A rank that a launcher of ours started ends with it, and of signals without a word.
    """
    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))
        let_go()
        return
    for number in _ENDING:
        handle(number, _raise)
    sys.unraisablehook = _raise_again


def let_go() -> None:
    """Nothing is left to tidy up: from now on signals end the process without a word."""
    for number in (*_ENDING, signal.SIGUSR1):
        handle(number, signal.SIG_DFL)


def interrupted() -> bool:
    """Whether a signal raised `KeyboardInterrupt`: whatever ends the command then is its echo."""
    return bool(_raised)


def preempted() -> bool:
    """Whether that was a wish to come back later: any signal but Ctrl-C, to a command that saves."""
    return bool(_polling) and any(number != signal.SIGINT for number in _raised)


def watch(*, one_of_many: bool = False) -> None:
    """Of a command that can save: SIGUSR1 counts, too, and from the first `stop_requested` on signals are wishes.

    Until then nothing is worth saving, and they end it; `one_of_many` at once, even while it waits in a library for
    others of its kind.
    """
    _polling[:] = (*_ENDING, signal.SIGUSR1)
    _requested.clear()  # by a command before this one in the same process
    for number in _polling:
        handle(number, signal.SIG_DFL if one_of_many else _raise)


def stop_requested() -> bool:
    """Whether a signal asked this process to save and stop; the same signal again ends it."""
    while _polling:
        handle(_polling.pop(), _request)
    return bool(_requested)


def handle(number: int, handler: Any) -> None:
    """Set the handler of a signal that is not ignored."""
    if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell's background
        signal.signal(number, handler)


def end_with(parent: int) -> None:
    """End this process when its parent does: at once on Linux, elsewhere the caller has to notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def _raise(number: int, frame: FrameType | None) -> None:
    _raised.append(number)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end_at_once()  # a library that is being loaded may abort when it meets an exception
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_at_once() -> None:
    code, text = (75, f"error: {BEFORE_FIRST_STEP}; try: {AGAIN}") if preempted() else (130, INTERRUPTED)
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(code)


def _raise_again(unraisable: Any) -> None:
    """An interrupt that came in a destructor or callback, where Python drops it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.raise_signal(_raised[-1] if _raised else signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)


def _request(number: int, frame: FrameType | None) -> None:
    _requested.append(number)
    signal.signal(number, signal.SIG_DFL)
