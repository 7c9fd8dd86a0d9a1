"""How speed is measured: two ways of one work in turn, ABBA, by CPU time or a GPU's own clock, and only if they agree.

A ratio is of one round of one process, so that what other processes take from the machine hits both ways alike. The
other way gets its memory as in a plain Python process, ours as the commands do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vq3dcli.allocator import plain_allocator

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MATMUL, _COPIED, _TRIES = 1536, 1 << 25, 5


Figures = dict[str, Any]
"""What was measured, as JSON values."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of some rounds."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


class Gate(NamedTuple):
    """How well two ways agree, and how well they must for a ratio to count."""

    name: str
    value: float
    least: float

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        return self.value >= self.least


class Work(NamedTuple):
    """What can be measured."""

    what: str  # its name
    act: Callable[[], Any]  # our way; the first call is not measured, so that it may compile
    things: int  # how many one call makes
    unit: str  # their name, plural
    baseline: str | None = None  # name of the other way, if there is one
    other: Callable[[], Any] = lambda: None  # that way
    agreement: Callable[[Any, Any], Gate] = lambda ours, theirs: Gate("none", math.nan, 0.0)  # of what both give


def measure(work: Work, rounds: int, device: torch.device) -> Figures:
    """A work alone, or with its baseline: so many rounds of ours, theirs, theirs, ours.

    `seconds` of CPU time or of a GPU, `added_bytes` at its peak (None where nobody can tell), how many things a second;
    the same of the `baseline`, for as many things, the `ratio` of both, and how well they agree.
    """
    if work.baseline is None:
        work.act()
        return _figures(work, [seconds_of(work.act, device) for _ in range(rounds)], device)

    def other() -> object:
        with plain_allocator():  # that of the commands is a part of ours
            return work.other()

    gate = work.agreement(work.act(), other())
    ours, theirs, ratios = [], [], []
    for _ in range(rounds):
        first, second, third, fourth = (seconds_of(act, device) for act in (work.act, other, other, work.act))
        ours += [first, fourth]
        theirs += [second, third]
        ratios.append((second + third) / (first + fourth))
    baseline = {
        "name": work.baseline,
        "seconds": spread(theirs),
        "added_bytes": added_bytes(other, device),
        "ratio": spread(ratios),
        gate.name: gate.value,
        "agrees": gate.passed,
        "agreement": f"{gate.name} {gate.value:.4g}" + ("" if gate.passed else f", not {gate.least:.4g}"),
    }
    return {**_figures(work, ours, device), "baseline": baseline}


def _figures(work: Work, seconds: Sequence[float], device: torch.device) -> Figures:
    ours = spread(seconds)
    costs = {"seconds": ours, "added_bytes": added_bytes(work.act, device)}
    return {"work": work.what, **costs, f"{work.unit}_a_second": work.things / ours["median"]}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """CPU seconds of all threads of this process and of the programs that it ran, or seconds on a GPU."""
    if device.type == "cuda":
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        work()
        ended.record()
        torch.cuda.synchronize(device)
        return started.elapsed_time(ended) / 1e3
    began = _cpu_seconds()
    work()
    return _cpu_seconds() - began


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def added_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Memory that a work adds at its peak; of the CPU resident pages, which only Linux can count anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier work left would be used again and not be seen
        _CLEAR.write_text("5")  # the peak begins at what is there (Linux, Documentation/filesystems/proc.rst)
        before = _resident("VmRSS")
        work()
        return max(_resident("VmHWM") - before, 0)
    return None


def _resident(name: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def psnr_db(ours: Tensor, theirs: Tensor) -> float:
    """Of pictures in [0, 1], as floats: nothing is rounded to grey levels before."""
    error = float((ours.double() - theirs.double()).square().mean())
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def signal_db(ours: Tensor, theirs: Tensor) -> float:
    """Of gradients: their size over that of the difference."""
    error = float((ours.double() - theirs.double()).square().sum())
    return math.inf if error == 0.0 else 10.0 * math.log10(float(theirs.double().square().sum()) / error)


def host_limits(device: torch.device) -> dict[str, float]:
    """What the machine can do at best: copying in bytes a second, read and written, and float32 matrix products."""
    a, b = (torch.ones(_COPIED, device=device) for _ in range(2))
    copied = min(seconds_of(lambda: a.copy_(b), device) for _ in range(_TRIES))
    square = torch.ones(_MATMUL, _MATMUL, device=device)
    multiplied = min(seconds_of(lambda: square @ square, device) for _ in range(_TRIES))
    return {"copy_gb_a_second": 2e-9 * a.nbytes / copied, "float32_gflops": 2e-9 * _MATMUL**3 / multiplied}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """On one thread of a CPU: threads that wait for each other would count as work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
