"""The `vq3d` program: prepares the process, then runs the command line."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

from vq3dcli import signals
from vq3dcli.allocator import keep_freed_memory

_OPEN_FILES = 10_240  # the most that macOS allows


def main() -> int:
    """Run `vq3d` with the arguments of this process; returns the exit code."""
    signals.interrupt()
    try:
        return _run()
    except KeyboardInterrupt:  # outside of the command, which says so itself
        if sys.stderr is not None:
            sys.stderr.write(f"{signals.INTERRUPTED}\n")
        return 130
    finally:
        signals.let_go()


def _run() -> int:
    _open_closed_streams()
    _settle_libraries()
    _allow_open_files()
    keep_freed_memory()
    from vq3dcli import cli

    if "_VQ3D_COMPLETE" in os.environ:
        cli.complete()
    code = cli.run(sys.argv[1:])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more at exit: let that go nowhere instead of failing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return code or (141 if isinstance(error, BrokenPipeError) else 74)
    return code


def _allow_open_files() -> None:
    """Raise the soft limit of open files, 256 on macOS, as far as the system lets a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _settle_libraries() -> None:
    """Settings that libraries read when they are imported; what the user has set stays.

    MKL may choose its number of threads by the load of the machine, which would change the last bits of a
    sum. Idle OpenMP threads that spin take time from others where cores are shared. onnxruntime would report to
    Microsoft. PyTorch's profiler writes lines of its own, with errors that are none.
    """
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if "WORLD_SIZE" in os.environ:  # a rank that loses another says so itself, in one line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _open_closed_streams() -> None:
    """Point closed standard streams to the null device: else the next file that is opened takes their number.

    Python's own `stdout` stays None, which `print` passes over and `stdout_bytes` refuses.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if name != "stdout":
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that are no text in the terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
